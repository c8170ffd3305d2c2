"""Image sets: a folder, a list, or another source, with images decoded for a network."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco_plugin.data.decode import decode_array
from moco_plugin.data.labels import class_indices
from moco_plugin.data.pixels import CannotDecode, with_channels
from moco_plugin.data.source import ArraySource, FileSource, JoinedSource, Source, open_source


class ImageSet:
    """Images by index, with labels if there are any.

    A folder's images are all image files below it in sorted order, without hidden files and folders. Its labels are
    the first level of subfolders, if every image is in one. An idx file's labels are in its folder. A list is a ``.txt``
    file of one image per line, ``path`` or ``path label``, or a ``.csv`` file of ``path,label`` rows, relative to the
    list's folder; blank lines and those that start with ``#`` are skipped. Labels with ``;`` in between make a set of
    several labels per image. Tar shards and zip archives: see TarShards and ZipImages. The classes of lists and archives
    are those of the whole set, even if only a part is selected.

    Args:
        spec: A folder, a list, tar shards, a ``.zip`` archive or an ``...images-idx3-ubyte[.gz]`` file; ``[start:stop]``
            at the end selects a part, and ``[:80%]`` and ``[80%:]`` select shares of each class that are drawn by a seed,
            ``[80%:,seed=1]`` by a seed other than 0. ``[a, b]`` joins several of these in this order.
        value_range: Of images of more than 8 bits, the values that become 0 and 255; see ``decode``.
        channels: 3 for RGB; with 1, images are turned grey, with others, files must have as many.
        files: The image files and their labels, where ``spec`` is only the set's name.

    Attributes:
        source: Where the images come from.
        labels: int64, N; bool, N x C, where images have several; or None.
        classes: Names of the labels, or None.
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
        self.source: Source = FileSource(files[0], np.array(files[1], np.int64)) if files else open_source(spec)
        self.labels, self.classes = self.source.labels, self.source.classes

    @property
    def paths(self) -> list[Path]:
        """The image files, where each is one, else empty."""
        return self.source.paths if isinstance(self.source, FileSource | JoinedSource) else []

    @property
    def array(self) -> np.ndarray | None:
        """The images, uint8, N x H x W, where they are in memory, else None."""
        return self.source.array if isinstance(self.source, ArraySource) else None

    def decoded_for(self, value_range: Sequence[float] | None, channels: int) -> "ImageSet":
        """Return the same images with another range of values and number of channels."""
        other = copy.copy(self)
        other.value_range, other.channels = value_range, channels
        return other

    def with_classes(self, classes: tuple[str, ...]) -> "ImageSet":
        """Return the same images with their labels as indices of other classes, which include those of the set."""
        assert self.labels is not None and self.classes is not None
        indices = class_indices(self.classes, classes)
        other = copy.copy(self)
        other.classes = classes
        if self.labels.ndim > 1:
            other.labels = np.zeros((len(self), len(classes)), dtype=bool)
            other.labels[:, indices] = self.labels
        else:
            other.labels = indices[self.labels]
        return other

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Return the name of an image: its path, or its index or name in a file."""
        return self.source.name(index)

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
        """Return an image as ``try_load`` does, or None if it cannot be decoded."""
        return self.try_load(index)[0]

    def try_load(self, index: int) -> tuple[Image.Image | Tensor | None, str]:
        """Return an image, or None and the name of what cannot be decoded.

        Images of three channels are in RGB, of one in grey; others are uint8 tensors, C x H x W.

        Raises:
            UserError: The file cannot be read, or has values outside of its range or other channels.
        """
        array, name = self.try_load_array(index)
        if array is None:
            return None, name
        if self.channels == 3 or array.ndim == 2:
            image = Image.fromarray(array)
            return image if self.channels == 1 else image.convert("RGB"), name
        return torch.from_numpy(array).permute(2, 0, 1), name

    def try_load_array(
        self, index: int, shrink: Callable[[int, int], int] | None = None
    ) -> tuple[np.ndarray | None, str]:
        """Return an image as ``decode_array`` does, or None and the name of what cannot be decoded."""
        name = self.name(index)
        try:
            content = self.source.read(index)
            if not isinstance(content, np.ndarray):
                return decode_array(content, name, self.value_range, shrink, self.channels), ""
        except CannotDecode as error:
            return None, f"{name} ({error})" if str(error) else name
        # grey images also suit networks of three channels
        return content.copy() if self.channels == 3 else with_channels(content.copy(), name, self.channels), ""

    def picture(self, index: int) -> Image.Image | None:
        """Return an image for display: the first three channels as RGB, or only the first as grey."""
        array, _ = self.try_load_array(index)
        return None if array is None else as_picture(array)


def as_picture(image: np.ndarray) -> Image.Image:
    """Return an image (uint8, H x W or H x W x C) for display; see ``ImageSet.picture``."""
    shown = image if image.ndim == 2 else image[..., :3] if image.shape[2] >= 3 else image[..., 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
