"""Labels: names of classes as indices, and a share of each class."""

import re
from collections.abc import Iterable, Sequence

import numpy as np


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once, in numeric order where all are integers."""
    classes = sorted(set(names))  # which also orders 01 and 1
    return tuple(sorted(classes, key=int) if all(re.fullmatch(r"-?\d+", name) for name in classes) else classes)


def class_indices(names: Iterable[str], classes: Sequence[str]) -> np.ndarray:
    """Return the index of each name among the classes, int64."""
    indices = {name: index for index, name in enumerate(classes)}
    return np.array([indices[name] for name in names], np.int64)


def share_of(labels: np.ndarray | None, count: int, first: float, last: float, seed: int) -> np.ndarray:
    """Return the indices of images between two shares of each class, ascending.

    Args:
        labels: int64, N, or None; sets of several labels per image are split as a whole.
        count: N.
        first: 0 to 1; shares that meet have no image in common and leave none out.
        last: Above ``first``, to 1.
        seed: Of the order of the images.
    """
    order = np.random.default_rng(seed).permutation(count)
    if labels is None or labels.ndim > 1:
        groups = [order]
    else:
        order = order[np.argsort(labels[order], kind="stable")]
        groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return np.sort(np.concatenate([group[round(first * len(group)) : round(last * len(group))] for group in groups]))
