"""Image sets: a folder, a list, tar shards, a zip archive or an idx file."""

import copy
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco_plugin.data.bands import CannotDecode, with_channels
from moco_plugin.data.decode import decode, decode_array
from moco_plugin.data.idx import is_idx, load_idx_images, split_slice
from moco_plugin.data.listing import folder_labels, image_files, read_list
from moco_plugin.data.shards import TarShards, is_shards
from moco_plugin.data.zip_images import ZipImages
from moco_plugin.errors import UsageError, UserError

T = TypeVar("T")
_SHARES = re.compile(r"(?P<source>.*)\[(?P<first>[\d.]+%)?:(?P<last>[\d.]+%)?(?:,seed=(?P<seed>\d+))?\](?<!\[:\])")


class ImageSet:
    """Images by number, with labels if there are any.

    A folder's images are all image files below it in sorted order, without hidden files and folders. Its labels are
    the first level of subfolders, if every image is in one. An idx file's labels are in its folder. A list is a ``.txt``
    file of one image per line, ``path`` or ``path label``, or a ``.csv`` file of ``path,label`` rows, relative to the
    list's folder; blank lines and those that start with ``#`` are skipped. Labels with ``;`` in between make a set of
    several labels per image. Tar shards and zip archives: see TarShards and ZipImages. The classes of lists and archives
    are those of the whole set, also when a part is taken.

    Args:
        spec: A folder, a list, tar shards, a ``.zip`` archive or an ``...images-idx3-ubyte[.gz]`` file; ``[start:stop]``
            at the end takes a part, and ``[:80%]`` and ``[80%:]`` take shares of each class that are drawn by a seed,
            ``[80%:,seed=1]`` by another than 0.
        value_range: Of images of more than 8 bits, the values that become 0 and 255; see ``decode``.
        channels: 3 for RGB; with 1, images are turned grey, with others, files must have as many.
        files: The image files and their labels, where ``spec`` is only the set's name.

    Attributes:
        labels: int64, N; bool, N x C, where images have several; or None.
        classes: Names of the labels, or None.
        array: uint8, N x H x W, where the images are in memory, else None.
        paths: The image files, where each is one, else empty.
    """

    def __init__(
        self,
        spec: str,
        value_range: Sequence[float] | None = None,
        channels: int = 3,
        files: tuple[list[Path], Sequence[int]] | None = None,
    ) -> None:
        self.spec = spec
        self.value_range, self.channels = value_range, channels
        self.array: np.ndarray | None = None
        self.paths: list[Path] = []
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        self.archive: TarShards | ZipImages | None = None
        if files is not None:
            self.paths, self.labels = files[0], np.array(files[1], np.int64)
        elif match := _SHARES.fullmatch(spec):
            self._open(match["source"])
            self._take(share_of(self.labels, len(self), *_shares(match)))
        else:
            self._open(spec)

    def _open(self, spec: str) -> None:
        if is_shards(spec):
            self.archive = TarShards(spec)
            self.labels, self.classes = self.archive.labels, self.archive.classes
            return
        path, part = split_slice(spec)
        if path.is_file() and is_idx(path):
            self.array, self.labels, self.classes = load_idx_images(spec)
            return
        if path.is_file() and path.suffix.lower() in (".txt", ".csv"):
            self.paths, self.labels, self.classes = read_list(path)
        elif path.is_file() and path.suffix.lower() == ".zip":
            self.archive = ZipImages(path)
            self.labels, self.classes = self.archive.labels, self.archive.classes
        else:  # its classes are those of the images that are taken
            files = image_files(path)
            self.paths = files[part]
            if not self.paths:
                raise UserError(f"{spec} selects no image; {path} holds {len(files)}")
            self.labels, self.classes = folder_labels(path, self.paths)
            return
        if part != slice(None):
            self._take(np.arange(len(self))[part])

    def _take(self, numbers: np.ndarray) -> None:
        """Keep only these images; the classes do not change."""
        if not len(numbers):
            raise UserError(f"{self.spec} selects no image of {len(self)}")
        if self.archive is not None:
            self.archive.take(numbers)
        elif self.array is not None:
            self.array = self.array[numbers]
        else:
            self.paths = [self.paths[number] for number in numbers]
        self.labels = None if self.labels is None else self.labels[numbers]

    def decoded_for(self, value_range: Sequence[float] | None, channels: int) -> "ImageSet":
        """Return the same images as a network takes them that was trained with this range and number of channels."""
        other = copy.copy(self)
        other.value_range, other.channels = value_range, channels
        return other

    def __len__(self) -> int:
        if self.archive is not None:
            return len(self.archive)
        return len(self.paths) if self.array is None else len(self.array)

    def name(self, index: int) -> str:
        """Return the name of an image: its path, or its position in the file or shard."""
        if self.archive is not None:
            return self.archive.name(index)
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

    def load(self, index: int) -> Image.Image | Tensor | None:
        """Return an image as ``try_load`` does, or None if it cannot be decoded.

        Raises:
            UserError: Its file cannot be read, or has values outside of its range or other channels.
        """
        return self.try_load(index)[0]

    def try_load(self, index: int) -> tuple[Image.Image | Tensor | None, str]:
        """Return an image, or None and the name of what cannot be decoded.

        Images of three channels are in RGB, of one in grey; those of other numbers are uint8 tensors, C x H x W.
        """
        if self.channels != 3:
            array, name = self.try_load_array(index)
            if array is None or array.ndim == 2:
                return None if array is None else Image.fromarray(array), name
            return torch.from_numpy(array).permute(2, 0, 1), name
        if self.array is not None:
            return Image.fromarray(self.array[index]).convert("RGB"), ""

        def whole(source: Path | bytes, name: str) -> Image.Image:
            return decode(io.BytesIO(source) if isinstance(source, bytes) else source, name, self.value_range)

        return self._try(whole, index)

    def try_load_array(
        self, index: int, shrink: Callable[[int, int], int] | None = None
    ) -> tuple[np.ndarray | None, str]:
        """Return an image as ``decode_array`` does, or None and the name of what cannot be decoded."""
        if self.array is not None:
            array = self.array[index].copy()  # grey, which a network of three channels takes as well
            return array if self.channels == 3 else with_channels(array, self.name(index), self.channels), ""
        return self._try(
            lambda source, name: decode_array(source, name, self.value_range, shrink, self.channels), index
        )

    def picture(self, index: int) -> Image.Image | None:
        """Return an image for display: the first three channels as RGB, or only the first as grey."""
        array, _ = self.try_load_array(index)
        return None if array is None else as_picture(array)

    def _try(self, decoder: Callable[[Path | bytes, str], T], index: int) -> tuple[T | None, str]:
        try:
            source = self.paths[index] if self.archive is None else self.archive.read(index)
            return decoder(source, self.name(index)), ""
        except CannotDecode as error:
            return None, f"{self.name(index)} ({error})" if str(error) else self.name(index)


def as_picture(image: np.ndarray) -> Image.Image:
    """Return an image (uint8, H x W or H x W x C) for display: the first three channels, or only the first as grey."""
    shown = image if image.ndim == 2 else image[..., :3] if image.shape[2] >= 3 else image[..., 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")


def _shares(match: re.Match[str]) -> tuple[float, float, int]:
    """Return where the shares of ``[20%:80%,seed=1]`` start and end, and the seed."""
    try:
        first, last = (float(text[:-1]) / 100 for text in (match["first"] or "0%", match["last"] or "100%"))
    except ValueError:
        first, last = 1.0, 0.0
    if not 0 <= first < last <= 1:
        raise UsageError(f"{match[0]}: expected rising shares from 0% to 100%, such as [:80%] and [80%:]")
    return first, last, int(match["seed"] or 0)


def share_of(labels: np.ndarray | None, count: int, first: float, last: float, seed: int) -> np.ndarray:
    """Return the numbers of images between two shares of each class, in rising order.

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
