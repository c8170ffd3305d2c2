"""Image sets as PyTorch datasets, and the handling of images that cannot be decoded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from moco_plugin.data.images import ImageSet
from moco_plugin.data.order import seeded
from moco_plugin.errors import UsageError, UserError

MAX_CORRUPT = 0.01  # share of a set's images that may be skipped


class CorruptImages:
    """Names and counts the images that could not be decoded; more than 1% of the set is an error."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Report each new name on stderr; empty names stand for images that were fine."""
        for name in sorted(set(names) - self.names - {""}):
            self.names.add(name)
            print(f"skipped: {name} cannot be decoded ({len(self.names)} so far)", file=sys.stderr)
        if len(self.names) > MAX_CORRUPT * self.total:
            raise UserError(
                f"{len(self.names)} of {self.total} images cannot be decoded, more than 1%, "
                f"{sorted(self.names)[0]} among them; repair or remove them"
            )


def first_whole(images: ImageSet, candidates: Iterable[int]) -> tuple[Image.Image, int, str]:
    """Return the first image that can be decoded, its number, and "" or the name of the first that cannot be.

    Raises:
        UserError: None of the candidates can be.
    """
    corrupt, count = "", 0
    for index in candidates:
        image, name = images.try_load(index)
        if image is not None:
            return image, index, corrupt
        corrupt, count = corrupt or name, count + 1
    raise UserError(f"none of the {count} images of {images.spec} can be decoded")


class TrainImages(Dataset[tuple[Any, str]]):
    """Images for pre-training: (what ``transform`` makes of an image, "" or the name of a corrupt one).

    Asked for by position (see EpochOrder), which also seeds the transform. In the place of a corrupt image
    comes the next one, so that batches keep their size.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Any], seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Any, str]:
        candidates = ((position + offset) % len(self) for offset in range(len(self)))
        image, _, corrupt = first_whole(self.images, candidates)
        with seeded(self.seed, position):
            return self.transform(image), corrupt


class RawImages(Dataset[tuple[Tensor, str]]):
    """Images of one size as uint8 tensors (1 x H x W), for views that are made a batch at a time."""

    def __init__(self, images: ImageSet) -> None:
        if images.array is None:
            raise UsageError(
                f"data.batched_views needs images of one size, as in idx files, and {images.spec} is none; "
                "set data.batched_views=false"
            )
        self.array = torch.from_numpy(images.array.copy())

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, position: int) -> tuple[Tensor, str]:
        return self.array[position % len(self)][None], ""


class LabelledImages(Dataset[tuple[Any, int, str]]):
    """Images for evaluation: (image or None if corrupt, label or -1, name of a corrupt image or "")."""

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Any]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        image, name = self.images.try_load(index)
        if image is None:
            return None, -1, name
        return self.transform(image), -1 if self.images.labels is None else int(self.images.labels[index]), ""


def check_labels(train: ImageSet, test: ImageSet) -> None:
    """Raise UsageError unless both sets have labels of the same classes."""
    for images in (train, test):
        if images.labels is None:
            raise UsageError(
                f"{images.spec} has no labels; expected a folder of one subfolder a class, a list of "
                "paths and labels, shards with .cls members, or a labels idx file"
            )
    if train.classes != test.classes:
        odd = sorted(set(train.classes or ()) ^ set(test.classes or ()))
        raise UsageError(f"{train.spec} and {test.spec} differ in classes: {', '.join(odd[:5])} in one only")
