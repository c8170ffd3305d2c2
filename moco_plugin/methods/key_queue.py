"""The queue of keys of past batches, first in, first out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """A ring of K keys with C values each, every key of unit length.

    It starts with random directions, as the released code does, so that the loss has its full K negatives
    from the first step. Any batch of at most K keys fits; K need not be a multiple of it.

    Args:
        size: K, the number of keys held.
        dim: C, the length of a key.
    """

    keys: Tensor  # K x C
    pointer: Tensor  # where the next key goes, 0 to K - 1
    filled: Tensor  # how many of the K keys came from images, 0 to K

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by ``keys`` (N x C, N at most K)."""
        if len(keys) > len(self):
            raise ValueError(
                f"a batch of {len(keys)} keys does not fit a queue of {len(self)}; "
                "choose queue_size at least as large as the batch over all processes"
            )
        slots = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self)
        self.keys.index_copy_(0, slots, keys.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % len(self))
        self.filled.copy_((self.filled + len(keys)).clamp(max=len(self)))
