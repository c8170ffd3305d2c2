"""Image sets in tar archives (webdataset's layout), read at random: no streaming, no shuffle buffer.

The shards' indexes give access to single images: the order of a run is a full permutation that depends only on the
seed, and each process fetches its own images only, from a disk or by range requests. Nothing is unpacked.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from moco_plugin.data.decode import SUFFIXES, CannotDecode
from moco_plugin.data.labels import class_indices, sort_classes
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import MOST_BYTES
from moco_plugin.sources.shard_index import check_ranges, fetch, is_remote, no_ranges, patiently, read_index, settle

THREADS = 8
MOST_SHARDS = 1_000_000
_ARCHIVE = re.compile(r".*\.(tar(\.\w+)?|tgz|tbz2?|txz)", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d{1,99})\.\.(\d{1,99})\}")


def open_shards(source: str) -> TarShards | None:
    """Open tar shards; None for other sources."""
    return TarShards(source) if is_shards(source) else None


def is_shards(source: str) -> bool:
    """Return whether a source is tar shards: a URL, archives by name, or a folder of archives alone."""
    if is_remote(source) or _BRACES.search(source):
        return True
    path = Path(source).expanduser()
    if not path.is_dir():
        return _ARCHIVE.fullmatch(path.name) is not None
    settle(path)
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
                f"{source} contains no image; expected members such as 0001.jpg, ending in {', '.join(SUFFIXES)}"
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
            CannotDecode: The file is larger than ``MOST_BYTES``.
            UserError: They cannot be read after several attempts.
        """
        url, start, size = self.urls[self._shards[index]], int(self._offsets[index]), int(self._sizes[index])
        if size > MOST_BYTES:
            raise CannotDecode(f"more than {MOST_BYTES:,} bytes")

        def read() -> bytes:
            data = fetch(url, start, start + size)
            if len(data) > size:
                raise UserError(no_ranges(url))
            if len(data) < size:
                raise OSError(f"{len(data)} bytes came of the {size} of {self.name(index)}")
            return data

        return patiently(url, read)


def _expand(source: str) -> list[str]:
    """Return the shards of a source, as URLs or absolute paths."""
    head, *rest = _BRACES.split(source)  # after the head: first, last and the text behind, for each range
    ranges = [(len(first), range(int(first), int(last) + 1)) for first, last in zip(rest[::3], rest[1::3], strict=True)]
    total = math.prod(max(0, numbers.stop - numbers.start) for _, numbers in ranges)
    if not 0 < total <= MOST_SHARDS:
        names = f"more than {MOST_SHARDS} shards" if total else "no shard"
        raise UsageError(f"{source} names {names}; expected a range such as {{0000..0099}}")
    parts = [
        [f"{number:0{digits}d}{text}" for number in numbers]
        for (digits, numbers), text in zip(ranges, rest[2::3], strict=True)
    ]
    urls = [head + "".join(chosen) for chosen in itertools.product(*parts)]
    if is_remote(source):
        return urls
    paths = [Path(os.path.abspath(Path(url).expanduser())) for url in urls]
    for folder in {path.parent for path in paths}:
        settle(folder)
    return [str(file) for path in paths for file in (_archives(path) if path.is_dir() else [path])]


def _archives(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if _ARCHIVE.fullmatch(file.name))
