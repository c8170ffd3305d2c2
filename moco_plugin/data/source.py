"""Where the images of a set come from: folders and lists here, other kinds by entry points.

An entry point of the group ``moco_plugin.sources`` names a function that takes the name of a source, without slice or
shares, and returns a ``Source``, or None for other kinds. Another package can add one.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np

from moco_plugin.data.labels import class_indices, share_of, sort_classes
from moco_plugin.data.listing import folder_labels, image_files, read_list
from moco_plugin.data.spec import parse_spec, split_sources
from moco_plugin.errors import UserError


class Source(Protocol):
    """Images by index, in a fixed order.

    Attributes:
        labels: int64, N; bool, N x C, where images have several; or None.
        classes: Names of the labels, or None.
    """

    labels: np.ndarray | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return what messages call an image."""

    def read(self, index: int) -> Path | bytes | np.ndarray:
        """Return an image: its file, the bytes of one, or its pixels (uint8, H x W or H x W x C).

        Raises:
            CannotDecode: The image is damaged.
            UserError: It cannot be read.
        """

    def take(self, indices: np.ndarray) -> None:
        """Keep only these images and their labels; the classes stay."""


class FileSource:
    """Image files, named by their paths."""

    def __init__(self, paths: list[Path], labels: np.ndarray | None, classes: tuple[str, ...] | None = None) -> None:
        self.paths, self.labels, self.classes = paths, labels, classes

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> Path:
        return self.paths[index]

    def take(self, indices: np.ndarray) -> None:
        self.paths = [self.paths[index] for index in indices]
        self.labels = None if self.labels is None else self.labels[indices]


class ArraySource:
    """Images of one size in memory, named by the file and their indices in it.

    Args:
        file: What messages call the set.
        array: uint8, N x H x W.
        labels: int64, N, or None.
        classes: Names of the labels, or None.
    """

    def __init__(
        self, file: str, array: np.ndarray, labels: np.ndarray | None, classes: Sequence[str] | None = None
    ) -> None:
        self.file, self.array, self.labels = file, array, labels
        self.classes = None if classes is None else tuple(classes)
        self._indices = np.arange(len(array))

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        return f"{self.file} image {self._indices[index]}"

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.array[index])

    def take(self, indices: np.ndarray) -> None:
        self.array, self._indices = self.array[indices], self._indices[indices]
        self.labels = None if self.labels is None else self.labels[indices]


class JoinedSource:
    """Concatenation of several sources, with labels if all have labels; classes are matched by name."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._source = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self._index = np.concatenate([np.arange(len(source)) for source in sources])
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        if all(source.labels is not None and source.labels.ndim == 1 and source.classes for source in sources):
            self.classes = sort_classes(name for source in sources for name in source.classes or ())
            parts = [class_indices(source.classes or (), self.classes)[source.labels] for source in sources]
            self.labels = np.concatenate(parts)

    @property
    def paths(self) -> list[Path]:
        """The image files, or empty if some images are not files."""
        if not all(isinstance(source, FileSource) for source in self.sources):
            return []
        pairs = zip(self._source.tolist(), self._index.tolist(), strict=True)
        return [self.sources[source].paths[index] for source, index in pairs]  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._index)

    def name(self, index: int) -> str:
        return self.sources[int(self._source[index])].name(int(self._index[index]))

    def read(self, index: int) -> Path | bytes | np.ndarray:
        return self.sources[int(self._source[index])].read(int(self._index[index]))

    def take(self, indices: np.ndarray) -> None:
        self._source, self._index = self._source[indices], self._index[indices]
        self.labels = None if self.labels is None else self.labels[indices]


def open_source(text: str) -> Source:
    """Open the source that an image set names, and keep the part that it selects.

    ``[a, b]`` names several sources, each of which may be a part.

    Raises:
        UsageError: The name is invalid.
        UserError: There are no such images.
    """
    spec = parse_spec(text)
    several = split_sources(spec.source)
    source: Source | None
    if several != [spec.source]:
        source = JoinedSource([open_source(one) for one in several])
    else:
        source = _source_of_entry_points(spec.source)
    path = Path(spec.source).expanduser()
    if source is None and path.is_file() and path.suffix.lower() in (".txt", ".csv"):
        source = FileSource(*read_list(path))
    if source is None:  # a folder: its classes are those of the images in the slice
        files = image_files(path)
        total, files = len(files), files[spec.part]
        source = FileSource(files, *folder_labels(path, files))
    else:
        total = len(source)
        if spec.part != slice(None):
            source.take(np.arange(total)[spec.part])
    if spec.shares:
        source.take(share_of(source.labels, len(source), *spec.shares, spec.seed))
    if not len(source):
        raise UserError(f"{text} selects no image; {spec.source} contains {total}")
    return source


def _source_of_entry_points(source: str) -> Source | None:
    """Return the first source that opens a text; those of other packages are asked before ours."""
    known = entry_points(group="moco_plugin.sources")
    if not known:
        raise UserError("moco_plugin was installed before sources became entry points; install it again")
    for entry in sorted(known, key=lambda entry: (entry.value.startswith("moco_plugin."), entry.name)):
        opened: Source | None = entry.load()(source)
        if opened is not None:
            return opened
    return None
