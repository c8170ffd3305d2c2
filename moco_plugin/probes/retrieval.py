"""Retrieval: the share of the nearest training images that have the class of a test image."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.neighbours import Neighbours, check_neighbours, nearest
from moco_plugin.evaluation.subject import ViewOptions, read_sets, read_subject


def evaluate_retrieval(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    k: Sequence[int] = (1, 5, 10),
    **options: Unpack[ViewOptions],
) -> tuple[dict[str, Any], list[Neighbours]]:
    """Measure recall: whether an image of the same class is among the nearest.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images to search.
        test: Labelled images to find neighbours of; by default a fifth of each class of ``train``.
        k: Numbers of neighbours.
        **options: See ``ViewOptions``.

    Returns:
        The content of the JSON, with ``recall`` in percent by k, and the neighbours of one image per class.
    """
    subject = read_subject(weights, **options)
    train_set, test_set = read_sets(train, test)
    same = train == test
    check_neighbours(k, len(train_set), same)
    bank, queries = subject.bank_and_queries(train_set, test_set)
    recall, neighbours = retrieval(bank, queries, k, same=same, device=subject.device, progress="neighbours")
    sizes = {"train_images": len(bank.labels), "test_images": len(queries.labels)}
    chance = {one: chance_recall(bank.labels, queries.labels, one, same) for one in recall}
    images = f"{len(bank.labels)} train, {len(queries.labels)} test images"
    for one, value in recall.items():
        print(f"recall at {one}: {value:.2f}% (chance {chance[one]:.2f}%; {images})")
    result = subject.write(
        "retrieve",
        train_set.spec,
        test_set.spec,
        recall={str(one): value for one, value in recall.items()},
        chance_recall={str(one): value for one, value in chance.items()},
        **sizes,
        neighbours=[asdict(one) for one in neighbours],
    )
    return result, neighbours


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
    """Find the nearest training images of each test image.

    Args:
        train: L2-normalised features to search.
        test: L2-normalised features to search for.
        ks: Numbers of neighbours.
        same: Both are the same set: an image is not a neighbour of itself.
        shown: Number of classes whose first test image is returned with its neighbours.
        device: Where similarities are computed.
        progress: Label of a progress bar; None shows none.

    Returns:
        Recall at each k: the share, in percent, of test images with one of their class among the k nearest; and
        the neighbours of some test images.

    Raises:
        UsageError: A k is above the number of training images.
    """
    hits = dict.fromkeys(ks, 0)
    examples = {int((test.labels == label).nonzero()[0, 0]) for label in test.labels.unique()[:shown]}
    neighbours: list[Neighbours] = []
    blocks = nearest(test.features, train.features, max(ks), same=same, device=device, progress=progress)
    for part, _, indices in blocks:
        indices = indices.cpu()
        right = train.labels[indices] == test.labels[part, None]
        for k in hits:
            hits[k] += int(right[:, :k].any(dim=1).sum())
        for row in range(part.start, part.stop):
            if row in examples:
                near = train.indices[indices[row - part.start]]
                neighbours.append(Neighbours(int(test.indices[row]), near.tolist()))
    neighbours.sort(key=lambda n: n.test)
    return {k: 100 * count / len(test.labels) for k, count in hits.items()}, neighbours
