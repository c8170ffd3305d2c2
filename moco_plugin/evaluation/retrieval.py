"""Retrieval: the share of the nearest training images that have the class of a test image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.neighbours import nearest


@dataclass
class Neighbours:
    """A test image and the training images nearest to it, by number, the nearest first."""

    test: int
    train: list[int]


def chance_recall(train: Tensor, test: Tensor, k: int, same: bool) -> float:
    """Return the expected recall at k, in percent, of k random images.

    Args:
        train: Labels of the images to search, N.
        test: Labels of the images to search for, M.
        k: Number of neighbours.
        same: Both are the same set: an image is not a neighbour of itself.
    """
    classes, counts = test.unique(return_counts=True)
    right = (train[None] == classes[:, None]).sum(dim=1).double() - int(same)
    total = len(train) - int(same)
    draws = torch.arange(k).double()
    missed = ((total - right[:, None] - draws) / (total - draws)).clamp(min=0).prod(dim=1)
    return float(100 * ((1 - missed) * counts).sum() / len(test))


def retrieval(
    train: FeatureSet,
    test: FeatureSet,
    ks: Sequence[int] = (1, 5, 10),
    *,
    same: bool = False,
    shown: int = 10,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> tuple[dict[int, float], list[Neighbours]]:
    """Search the training images for each test image.

    Args:
        train: L2-normalised features to search.
        test: L2-normalised features to search for.
        ks: Numbers of neighbours.
        same: Both are the same set: an image is not a neighbour of itself.
        shown: Of the first test image of each class, so many are returned with their neighbours, at most.
        device: Where similarities are computed.
        progress: Label of a progress bar; None shows none.

    Returns:
        Recall at each k: the share, in percent, of test images with one of their class among the k nearest; and
        some test images with their nearest, to look at.

    Raises:
        UsageError: A k is above the number of training images.
    """
    hits = dict.fromkeys(ks, 0)
    examples = {int((test.labels == label).nonzero()[0, 0]) for label in test.labels.unique()[:shown]}
    neighbours: list[Neighbours] = []
    found = nearest(test.features, train.features, max(ks), same=same, device=device, progress=progress)
    for part, _, places in found:
        places = places.cpu()
        right = train.labels[places] == test.labels[part, None]
        for k in hits:
            hits[k] += int(right[:, :k].any(dim=1).sum())
        for row in range(part.start, part.stop):
            if row in examples:
                neighbours.append(Neighbours(int(test.numbers[row]), train.numbers[places[row - part.start]].tolist()))
    neighbours.sort(key=lambda n: n.test)
    return {k: 100 * count / len(test.labels) for k, count in hits.items()}, neighbours
