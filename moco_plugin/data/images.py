"""Image sets: a folder, a list, tar shards or an idx file; and what to do with images that cannot be decoded."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from moco_plugin.data.idx import is_idx, load_idx_images, split_slice
from moco_plugin.data.order import seeded
from moco_plugin.data.shards import TarShards, is_shards, sort_classes
from moco_plugin.errors import UsageError, UserError

LONGEST_LINE = 4096  # characters
MAX_CORRUPT = 0.01  # share of a set's images that may be skipped


class ImageSet:
    """Images by number, with labels where there are any.

    A folder's images are all image files below it in sorted order. Its labels are the first level of
    subfolders, where every image lies in one. An idx file's labels lie beside it. A list is a ``.txt`` file of
    one image a line, ``path`` or ``path label``, relative to the list's folder; blank lines and those that start
    with ``#`` are skipped. Tar shards: see TarShards. The classes of lists and shards are those of the whole, also
    when a part is taken.

    Args:
        spec: A folder, a list, tar shards or an ``...images-idx3-ubyte[.gz]`` file; ``[start:stop]`` at the end
            takes a part.

    Attributes:
        labels: int64, N, or None.
        classes: Names of the labels, or None.
        array: uint8, N x H x W, where the images are in memory, else None.
        paths: The image files, where each is one, else empty.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.array: np.ndarray | None = None
        self.paths: list[Path] = []
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        self.shards: TarShards | None = None
        if is_shards(spec):
            self.shards = TarShards(spec)
            self.labels, self.classes = self.shards.labels, self.shards.classes
            return
        path, part = split_slice(spec)
        if path.is_file() and is_idx(path):
            self.array, self.labels, self.classes = load_idx_images(spec)
            return
        if path.is_file() and path.suffix.lower() == ".txt":
            self.paths, self.labels, self.classes = _read_list(path)
            count = len(self.paths)
            self.paths = self.paths[part]
            self.labels = None if self.labels is None else self.labels[part]
            if not self.paths:
                raise UserError(f"{spec} selects no image; the list holds {count}")
            return
        self.paths = _image_files(path)[part]
        if not self.paths:
            raise UserError(f"{spec} selects no image; {path} holds {len(_image_files(path))}")
        parents = [p.relative_to(path).parts[0] if p.parent != path else "" for p in self.paths]
        if all(parents) and len(set(parents)) > 1:
            self.classes = tuple(sorted(set(parents)))
            number = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.array([number[name] for name in parents], dtype=np.int64)

    def __len__(self) -> int:
        if self.shards is not None:
            return len(self.shards)
        return len(self.paths) if self.array is None else len(self.array)

    def name(self, index: int) -> str:
        """Returns what to call an image: its path, or its place in the file or shard."""
        if self.shards is not None:
            return self.shards.name(index)
        return f"{self.spec} image {index}" if self.array is not None else str(self.paths[index])

    def identity(self) -> dict[str, Any]:
        """Return the number of images, and a SHA-256 over their names (pixels, if in memory) and labels."""
        digest = hashlib.sha256()
        if self.array is not None:
            digest.update(np.ascontiguousarray(self.array).data)
        else:
            for index in range(len(self)):
                digest.update(self.name(index).encode(errors="surrogateescape") + b"\n")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return {"count": len(self), "digest": digest.hexdigest()}

    def load(self, index: int) -> Image.Image | None:
        """Returns an image in RGB, or None if it cannot be decoded."""
        if self.array is not None:
            return Image.fromarray(self.array[index]).convert("RGB")
        source = self.paths[index] if self.shards is None else io.BytesIO(self.shards.read(index))
        try:
            with Image.open(source) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises
            return None


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise UserError(
            f"{folder}: found {found}, expected a folder of images, a .txt list of them, tar shards "
            "or an idx images file; check the path"
        )
    unreadable: list[OSError] = []
    files = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=unreadable.append, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS)
    ]
    if unreadable:
        raise UserError(f"{unreadable[0].filename} cannot be read ({unreadable[0].strerror}); check its permissions")
    if not files:
        raise UserError(f"{folder} holds no image at any depth; expected files ending in {', '.join(IMG_EXTENSIONS)}")
    return sorted(files)


def _read_list(path: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...] | None]:
    """Reads the paths of a list, and the labels if its lines have them; looks on disk at the first image only."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    entries: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if len(line) > LONGEST_LINE or "\0" in line:
            raise UserError(f"{path}, line {number}: not a path ({line[:40]!r}...); expected 'path' or 'path label'")
        labelled = _has_label(line)
        if labelled and not labels:  # a file of that name has the last word
            labelled = not (path.parent / line).is_file()
        if entries and labelled != bool(labels):
            has, first = ("a", "none") if labelled else ("no", "one")
            raise UserError(
                f"{path}, line {number}: {line!r} has {has} label and the first image has {first}; "
                "give each line one, or none"
            )
        entry, label = line.rsplit(maxsplit=1) if labelled else (line, "")
        if not entries and not (path.parent / entry).is_file():
            raise UserError(
                f"{path}, line {number}: there is no file {path.parent / entry}; expected 'path' or 'path label', "
                "with paths relative to the list's folder"
            )
        entries.append(entry)
        if labelled:
            labels.append(label)
    if not entries:
        raise UserError(f"{path} lists no image; expected one a line, 'path' or 'path label'")
    paths = [path.parent / entry for entry in entries]
    if not labels:
        return paths, None, None
    classes = tuple(sort_classes(labels))
    places = {name: i for i, name in enumerate(classes)}
    return paths, np.array([places[label] for label in labels], dtype=np.int64), classes


def _has_label(line: str) -> bool:
    """Tells by the image suffix whether the last word of a list's line is a label or the end of the path."""
    words = line.rsplit(maxsplit=1)
    ends_as_image = line.lower().endswith(IMG_EXTENSIONS)
    return len(words) == 2 and (not ends_as_image or words[0].lower().endswith(IMG_EXTENSIONS))


class CorruptImages:
    """Names and counts the images that could not be decoded; more than 1% of the set is an error."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Reports each new name on stderr; empty names stand for images that were fine."""
        for name in sorted(set(names) - self.names - {""}):
            self.names.add(name)
            print(f"skipped: {name} cannot be decoded ({len(self.names)} so far)", file=sys.stderr)
        if len(self.names) > MAX_CORRUPT * self.total:
            raise UserError(
                f"{len(self.names)} of {self.total} images cannot be decoded, more than 1%, "
                f"{sorted(self.names)[0]} among them; repair or remove them"
            )


def first_whole(images: ImageSet, candidates: Iterable[int]) -> tuple[Image.Image, int, str]:
    """Returns the first image that can be decoded, its number, and "" or the name of the first that cannot be.

    Raises:
        UserError: None of the candidates can be.
    """
    corrupt, count = "", 0
    for index in candidates:
        image = images.load(index)
        if image is not None:
            return image, index, corrupt
        corrupt, count = corrupt or images.name(index), count + 1
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
        image = self.images.load(index)
        if image is None:
            return None, -1, self.images.name(index)
        return self.transform(image), -1 if self.images.labels is None else int(self.images.labels[index]), ""


def check_labels(train: ImageSet, test: ImageSet) -> None:
    """Raises UsageError unless both sets have labels of the same classes."""
    for images in (train, test):
        if images.labels is None:
            raise UsageError(
                f"{images.spec} has no labels; expected a folder of one subfolder a class, a list of "
                "paths and labels, shards with .cls members, or a labels idx file"
            )
    if train.classes != test.classes:
        odd = sorted(set(train.classes or ()) ^ set(test.classes or ()))
        raise UsageError(f"{train.spec} and {test.spec} differ in classes: {', '.join(odd[:5])} in one only")
