"""The nearest features by cosine similarity, found block by block, so that memory does not grow with the sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from moco_plugin.errors import UsageError
from moco_plugin.methods.distributed import all_gather, world_size

TEST_BLOCK = 8192
TRAIN_BLOCK = 16384


@dataclass
class Neighbours:
    """Index of a test image, and those of the training images nearest to it, the nearest first."""

    test: int
    train: list[int]


def check_neighbours(ks: Sequence[int], images: int, same: bool) -> None:
    """Raise UsageError if a number of neighbours is not between 1 and the number of possible neighbours."""
    available = images - same
    for k in ks:
        if not 0 < k <= available:
            besides = " besides the image itself" if same else ""
            raise UsageError(f"k is {k} with {available} labelled training images{besides}; choose k from 1 to that")


def nearest(
    test: Tensor,
    train: Tensor,
    k: int,
    *,
    same: bool = False,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Find the k training features of the highest cosine similarity to each test feature.

    Args:
        test: L2-normalised, M x D.
        train: L2-normalised, N x D.
        k: 1 to N.
        same: Both are the same set: an image is not a neighbour of itself, and k is at most N - 1.
        device: Where similarities are computed.
        progress: Label of a progress bar; None shows none.

    Yields:
        For one block of test features after the other: which they are, the similarities (m x k, descending) and
        the indices in ``train`` (m x k), on ``device``.

    Raises:
        UsageError: There are fewer than k neighbours.
    """
    check_neighbours([k], len(train), same)
    blocks = len(range(0, len(test), TEST_BLOCK)) * len(range(0, len(train), TRAIN_BLOCK))
    with tqdm(total=blocks, desc=progress, disable=progress is None, leave=False, unit="block") as bar:
        for start in range(0, len(test), TEST_BLOCK):
            queries = test[start : start + TEST_BLOCK].to(device)
            best: tuple[Tensor, Tensor] | None = None
            for first in range(0, len(train), TRAIN_BLOCK):
                keys = train[first : first + TRAIN_BLOCK].to(queries.device)
                similarities = queries @ keys.T
                if same:
                    own = torch.arange(start, start + len(queries), device=queries.device) - first
                    rows = ((own >= 0) & (own < len(keys))).nonzero()[:, 0]
                    similarities[rows, own[rows]] = -torch.inf
                values, indices = similarities.topk(min(k, len(keys)))
                indices += first
                if best is not None:
                    values, order = torch.cat([best[0], values], dim=1).topk(min(k, first + len(keys)))
                    indices = torch.cat([best[1], indices], dim=1).gather(1, order)
                best = values, indices
                bar.update()
            assert best is not None
            yield slice(start, start + len(queries)), *best


def nearest_over_processes(similarities: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Merge the neighbours that each process found in its part of a bank into the overall k nearest.

    Args:
        similarities: m x k or fewer, of this process's neighbours, descending.
        labels: int64, labels of these neighbours.
        k: Number of neighbours.
    """
    missing = (0, k - similarities.shape[1])  # collectives need equal shapes
    padded = F.pad(similarities, missing, value=-torch.inf), F.pad(labels, missing)
    sizes = [len(labels)] * world_size()
    gathered = (torch.cat(all_gather(part, sizes).split(sizes), dim=1) for part in padded)
    values, their_labels = gathered
    values, order = values.topk(k)
    return values, their_labels.gather(1, order)
