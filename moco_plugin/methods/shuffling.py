"""Encoding of keys in batches that batch norm cannot read: in groups, and shuffled (v1, section 3.3)."""

import torch
from torch import Tensor, nn

from moco_plugin.methods.batch_norm import SplitBatchNorm, SyncBatchNorm, has_batch_norm, replace_batch_norm, set_groups
from moco_plugin.methods.distributed import all_gather, batch_sizes, exchange, process_number, send

MODES = ("auto", "shuffle", "split", "sync", "plain")


class KeyShuffle:
    """Encodes keys with shuffled batch norm.

    The permutations are drawn from ``generator``, which has the same state on all processes.

    Args:
        encoder: The query encoder, prepared in place; copy the key encoder from it afterwards.
        mode: One of MODES, see ``MoCo``.
        groups: Groups of "auto" (over all processes) and "split" (on each process).

    Raises:
        ValueError: Unknown mode, or no group.
    """

    def __init__(self, encoder: nn.Module, mode: str, groups: int) -> None:
        if mode not in MODES:
            raise ValueError(f"batch_norm is {mode!r}; expected {', '.join(MODES)}")
        if groups < 1:
            raise ValueError(f"batch_norm_groups is {groups}; expected 1 or more")
        self.mode, self.number = mode, groups
        self.generator = torch.Generator().manual_seed(0)  # on the CPU for images on any device
        self.shuffles = mode in ("auto", "shuffle", "split") and has_batch_norm(encoder)
        if self.shuffles:
            replace_batch_norm(encoder, SplitBatchNorm)
        elif mode == "sync":
            replace_batch_norm(encoder, SyncBatchNorm)

    def groups(self, processes: int) -> int:
        """Return the number of groups on each of ``processes`` processes."""
        if not self.shuffles or self.mode == "shuffle":
            return 1
        return self.number if self.mode == "split" else max(1, self.number // processes)

    def start(self, images: Tensor, even: bool, *encoders: nn.Module) -> list[int]:
        """Set the groups of the encoders' batch norm; return the batch size of each process, see ``batch_sizes``."""
        sizes = batch_sizes(images, even)
        for encoder in encoders:
            set_groups(encoder, self.groups(len(sizes)))
        return sizes

    @torch.no_grad()
    def encode(self, encoder: nn.Module, images: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return the keys of this process's images, N x C, and those of all processes in the order of their ranks.

        Args:
            encoder: The key encoder.
            images: This process's images, N x 3 x H x W.
            sizes: The value of ``start``.
        """
        if self.shuffles and encoder.training:
            order = torch.randperm(sum(sizes), generator=self.generator)
            there, back = send(torch.stack([order, order.argsort()]), images.device)
            shuffled = encoder(images[there] if len(sizes) == 1 else exchange(images, order, sizes))
            all_keys = all_gather(shuffled, sizes)[back]
        else:
            all_keys = all_gather(encoder(images), sizes)
        first = sum(sizes[: process_number()])
        return all_keys[first : first + len(images)], all_keys
