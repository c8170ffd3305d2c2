"""Image sets in tar archives (webdataset's layout), read at random: no streaming, no shuffle buffer.

The shards' indexes give access to single images: the order of a run is a full permutation that depends only on the
seed, and each process fetches its own images only, from a disk or by range requests. Nothing is unpacked.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.data.labels import class_indices, sort_classes
from moco_plugin.errors import UsageError, UserError
from moco_plugin.sources.shard_index import check_ranges, fetch, is_remote, no_ranges, patiently, read_index

THREADS = 8
MOST_SHARDS = 1_000_000
_ARCHIVE = re.compile(r".*\.(tar(\.\w+)?|tgz|tbz2?|txz)", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_shards(source: str) -> TarShards | None:
    """Open tar shards; None for what is none."""
    return TarShards(source) if is_shards(source) else None


def is_shards(source: str) -> bool:
    """Return whether a source is tar shards: a URL, archives by name, or a folder of nothing but archives."""
    if is_remote(source) or _BRACES.search(source):
        return True
    path = Path(source).expanduser()
    if not path.is_dir():
        return _ARCHIVE.fullmatch(path.name) is not None
    archives = False
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and (entry.is_dir() or entry.name.lower().endswith(SUFFIXES)):
                return False
            archives = archives or _ARCHIVE.fullmatch(entry.name) is not None
    return archives


class TarShards:
    """Images in tar archives.

    An image is a member whose name ends, after its first dot, in an image suffix (``cat/0001.jpg``); its label
    is the text of the member ``cat/0001.cls``, where every image has one. A shard's index is ``SHARD.index.json``
    next to it, as ``moco-make-shards`` writes it, or made from the shard's headers and kept in the user's cache.

    Args:
        source: A folder of tar files, one tar file or ``photos-{0000..0099}.tar``; the latter two also as a URL of
            any kind that fsspec reads.

    Attributes:
        labels: int64, N, or None.
        classes: Names of the labels over all shards, or None.
    """

    def __init__(self, source: str) -> None:
        _check_ranges_of(source)
        self.urls = _expand(source)
        if is_remote(self.urls[0]):
            check_ranges(self.urls[0])
        with ThreadPoolExecutor(THREADS) as pool:
            reading = pool.map(read_index, self.urls)
            bar = tqdm(reading, desc="index of shards", total=len(self.urls), unit="shard", leave=False, delay=1)
            indexes = list(bar)
        counts = [len(index.offsets) for index in indexes]
        if not sum(counts):
            raise UserError(
                f"{source} holds no image; expected members such as 0001.jpg, ending in {', '.join(SUFFIXES)}"
            )
        self._shards = np.repeat(np.arange(len(indexes), dtype=np.int32), counts)
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])
        self._names = np.concatenate([index.names for index in indexes])
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        if all((index.labels >= 0).all() for index in indexes):
            filled = [index for index in indexes if len(index.offsets)]
            same = all(index.classes == filled[0].classes for index in filled)
            # a set that was packed keeps its order of classes
            self.classes = (
                tuple(filled[0].classes) if same else sort_classes(name for index in filled for name in index.classes)
            )
            self.labels = np.concatenate([class_indices(index.classes, self.classes)[index.labels] for index in filled])

    def __len__(self) -> int:
        return len(self._offsets)

    def take(self, indices: np.ndarray) -> None:
        """Keep only these images and their labels."""
        self._shards, self._offsets = self._shards[indices], self._offsets[indices]
        self._sizes, self._names = self._sizes[indices], self._names[indices]
        self.labels = None if self.labels is None else self.labels[indices]

    def name(self, index: int) -> str:
        """Return the name of an image: its shard and its name there."""
        return f"{self.urls[self._shards[index]]} member {self._names[index].decode(errors='replace')}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            UserError: They cannot be read after several attempts.
        """
        url, start, size = self.urls[self._shards[index]], int(self._offsets[index]), int(self._sizes[index])

        def read() -> bytes:
            data = fetch(url, start, start + size)
            if len(data) > size:
                raise UserError(no_ranges(url))
            if len(data) < size:
                raise OSError(f"{len(data)} bytes came of the {size} of {self.name(index)}")
            return data

        return patiently(url, read)


def _check_ranges_of(source: str) -> None:
    """Raise UsageError if the ranges of a source name more than MOST_SHARDS shards."""
    ranges = [(first, last) for first, last in _BRACES.findall(source)]
    total = math.inf if any(len(bound) > 12 for pair in ranges for bound in pair) else 1
    if total == 1:
        total = math.prod(max(0, int(last) - int(first) + 1) for first, last in ranges)
    if total > MOST_SHARDS:
        raise UsageError(f"{source} names more than {MOST_SHARDS} shards; expected a range such as {{0000..0099}}")


def _expand(source: str) -> list[str]:
    """Return the shards of a source, as URLs or absolute paths."""
    if match := _BRACES.search(source):
        first, last = match.groups()
        names = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        if not names:
            raise UsageError(f"{source} names no shard; expected a range such as {{0000..0099}}")
        head, tail = source[: match.start()], source[match.end() :]
        return [url for name in names for url in _expand(head + name + tail)]
    if is_remote(source):
        return [source]
    path = Path(os.path.abspath(Path(source).expanduser()))
    if not path.is_dir():
        return [str(path)]
    return sorted(str(file) for file in path.iterdir() if _ARCHIVE.fullmatch(file.name))
