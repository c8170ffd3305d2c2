"""Image sets as PyTorch datasets, and the handling of images that cannot be decoded."""

import sys
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError, UserError

T = TypeVar("T")

MAX_CORRUPT = 0.01  # share of a set's images that may be skipped


class CorruptImages:
    """Names and number of images that cannot be decoded; more than one image and 1% of the set is an error."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Report each new name on stderr; empty names are ignored."""
        for name in sorted(set(names) - self.names - {""}):
            self.names.add(name)
            print(f"skipped: {name} cannot be decoded ({len(self.names)} so far)", file=sys.stderr)
        if len(self.names) > max(1, MAX_CORRUPT * self.total):
            raise UserError(
                f"{len(self.names)} of {self.total} images cannot be decoded, more than 1%, "
                f"{sorted(self.names)[0]} among them; repair or remove them"
            )


def first_whole(load: Callable[[int], tuple[T | None, str]], candidates: Iterable[int]) -> tuple[T, int, str]:
    """Return the first image that can be decoded, its index, and "" or the name of the first that cannot be.

    Args:
        load: Returns the image of an index, or None and its name.
        candidates: Indices of images, one at least.

    Raises:
        UserError: No image can be decoded.
    """
    corrupt = ""
    for index in candidates:
        image, name = load(index)
        if image is not None:
            return image, index, corrupt
        corrupt = corrupt or name
    raise UserError(f"none of the images can be decoded, {corrupt} among them")


class TrainImages(Dataset[tuple[Any, Any, str]]):
    """Images for pre-training: (views, their plans, "" or the name of a corrupt image); see ``Views``.

    The index is a position of EpochOrder, which also seeds the views. A corrupt image is replaced by the next one,
    so batches keep their size.

    Args:
        images: The set.
        views: Makes two views of an array, H x W or H x W x C, and a source of random numbers.
        seed: The run's.
        shrink: As for ``decode_array``.
    """

    def __init__(
        self,
        images: ImageSet,
        views: Callable[[np.ndarray, Random], tuple[Any, Any]],
        seed: int,
        shrink: Callable[[int, int], int] | None = None,
    ) -> None:
        self.images, self.views, self.seed, self.shrink = images, views, seed, shrink

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Any, Any, str]:
        candidates = ((position + offset) % len(self) for offset in range(len(self)))
        image, _, corrupt = first_whole(lambda index: self.images.try_load_array(index, self.shrink), candidates)
        return *self.views(image, Random(f"{self.seed} {position}")), corrupt


class LabelledImages(Dataset[tuple[Any, int, str]]):
    """Images for evaluation: (image or None if corrupt, label or -1, name of a corrupt image or "")."""

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image | Tensor], Any]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        image, name = self.images.try_load(index)
        if image is None:
            return None, -1, name
        labels = self.images.labels
        return self.transform(image), -1 if labels is None or labels.ndim > 1 else int(labels[index]), ""


def check_labels(train: ImageSet, test: ImageSet, several: bool = False) -> ImageSet:
    """Return the test set with the training set's classes.

    Args:
        train: The training set.
        test: A set of the same classes, or of some of them.
        several: Whether images have several labels, or one.

    Raises:
        UsageError: A set has no such labels, or the test set has other classes.
    """
    for images in (train, test):
        if images.labels is None:
            raise UsageError(
                f"{images.spec} has no labels; expected a folder of one subfolder per class, a list of "
                "paths and labels, shards with .cls members, or a labels idx file"
            )
        if (images.labels.ndim > 1) != several:
            found = "one label" if several else "several labels"
            expected = "several" if several else "one; evaluate multilabel takes such lists"
            raise UsageError(f"{images.spec} has {found} per image, expected {expected}")
    if train.classes == test.classes:
        return test
    own, other = set(train.classes or ()), set(test.classes or ())
    if train.classes and other and other <= own:
        if len(other) < len(own):
            print(f"{test.spec} has {len(other)} of the {len(own)} classes of {train.spec}", file=sys.stderr)
        return test.with_classes(train.classes)
    rows = ((train, own - other), (test, other - own))
    only = [f"only {images.spec} has {', '.join(sorted(names)[:5])}" for images, names in rows if names]
    raise UsageError(f"the classes of {train.spec} and {test.spec} differ: {'; '.join(only)}")
