"""Image sets in tar archives (webdataset's layout), read at random: no streaming, no shuffle buffer.

An index says where in which archive each image's bytes lie. It is made once, from the archives' headers, so that
any image can be read alone: the order of a run stays a full permutation, a function of the seed alone, and each
process fetches its own images only, from a disk or by range requests. Nothing is ever unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fsspec.core import url_to_fs
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from moco_plugin.data.idx import split_slice
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import atomic_path

INDEX_FORMAT = 1
INDEX_SUFFIX = ".index.json"  # of the index that lies beside a shard
PAUSES = (0.5, 1.0, 2.0)  # seconds before a read that failed is tried again
SCAN_BLOCK = 4 << 20  # bytes that a scan fetches at once
THREADS = 8
MOST_SHARDS = 1_000_000
_ARCHIVE = re.compile(r".*\.(tar(\.\w+)?|tgz|tbz2?|txz)", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_Result = TypeVar("_Result")


def is_shards(spec: str) -> bool:
    """Tells tar shards: a URL, archives by name, or a folder of archives with no image and no folder in it."""
    source = _without_slice(spec)
    if _is_remote(source) or _BRACES.search(source):
        return True
    path = Path(source).expanduser()
    if not path.is_dir():
        return _ARCHIVE.fullmatch(path.name) is not None
    found = False
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and (entry.is_dir() or entry.name.lower().endswith(IMG_EXTENSIONS)):
                return False
            found = found or _ARCHIVE.fullmatch(entry.name) is not None
    return found


def sort_classes(names: Iterable[str]) -> list[str]:
    """Returns each name once, in numeric order where all are integers."""
    found = set(names)
    return sorted(found, key=int) if all(re.fullmatch(r"-?\d+", name) for name in found) else sorted(found)


@dataclass
class _Index:
    """What lies where in one shard; ``stamp`` tells its version apart from others of the same size."""

    size: int
    stamp: str
    classes: list[str]
    labels: np.ndarray  # places in classes, -1 for none
    names: np.ndarray  # bytes
    offsets: np.ndarray
    sizes: np.ndarray

    def dump(self) -> str:
        lists = {
            "labels": self.labels.tolist(),
            "names": [name.decode(errors="surrogateescape") for name in self.names.tolist()],
            "offsets": self.offsets.tolist(),
            "sizes": self.sizes.tolist(),
        }
        head = {"format": INDEX_FORMAT, "size": self.size, "stamp": self.stamp, "classes": self.classes}
        return json.dumps({**head, **lists}, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> _Index | None:
        """Returns the index that ``dump`` wrote, or None if this is none."""
        try:
            value: Any = json.loads(text)
            labels, offsets, sizes = (np.array(value[k], np.int64) for k in ("labels", "offsets", "sizes"))
            names = np.array([str(name).encode(errors="surrogateescape") for name in value["names"]], "S")
            index = cls(
                int(value["size"]), str(value["stamp"]), list(map(str, value["classes"])), labels, names, offsets, sizes
            )
            whole = (
                value["format"] == INDEX_FORMAT
                and labels.shape == names.shape == offsets.shape == sizes.shape == (len(names),)
                and min(offsets.min(initial=0), sizes.min(initial=0)) >= 0
                and (offsets + sizes).max(initial=0) <= index.size
                and labels.min(initial=0) >= -1
                and labels.max(initial=-1) < len(index.classes)
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return index if whole else None


class TarShards:
    """Images in tar archives by number.

    An image is a member whose name ends, after its first dot, in an image suffix (``cat/0001.jpg``); its label
    is the text of the member ``cat/0001.cls``, where every image has one. A shard's index is ``SHARD.index.json``
    beside it, as ``moco-make-shards`` writes it, or made from the shard's headers and kept in the user's cache.

    Args:
        spec: A folder of tar files, one tar file or ``photos-{0000..0099}.tar``; the latter two also as a URL of
            any kind that fsspec reads. ``[start:stop]`` at the end takes a part.

    Attributes:
        labels: int64, N, or None.
        classes: Names of the labels over all shards, or None.
    """

    def __init__(self, spec: str) -> None:
        source, (_, part) = _without_slice(spec), split_slice(spec)
        _check_ranges_of(source)
        self.urls = _expand(source)
        if _is_remote(self.urls[0]):
            _check_ranges(self.urls[0])
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(_index, self.urls)
            bar = tqdm(found, desc="index of shards", total=len(self.urls), unit="shard", leave=False, delay=1)
            indexes = list(bar)
        total = sum(len(index.offsets) for index in indexes)
        if not total:
            raise UserError(
                f"{source} holds no image; expected members such as 0001.jpg, ending in {', '.join(IMG_EXTENSIONS)}"
            )
        counts = [len(index.offsets) for index in indexes]
        self._shards = np.repeat(np.arange(len(indexes), dtype=np.int32), counts)[part]
        self._offsets = np.concatenate([index.offsets for index in indexes])[part]
        self._sizes = np.concatenate([index.sizes for index in indexes])[part]
        self._names = np.concatenate([index.names for index in indexes])[part]
        if not len(self):
            raise UserError(f"{spec} selects no image; {source} holds {total}")
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        if all((index.labels >= 0).all() for index in indexes):
            lists = [index.classes for index in indexes if len(index.offsets)]
            same = all(names == lists[0] for names in lists)  # a set that was packed keeps its order of classes
            self.classes = tuple(lists[0] if same else sort_classes(name for names in lists for name in names))
            number = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.concatenate(
                [
                    np.array([number[name] for name in index.classes], np.int64)[index.labels]
                    for index in indexes
                    if len(index.offsets)
                ]
            )[part]

    def __len__(self) -> int:
        return len(self._offsets)

    def name(self, index: int) -> str:
        """Returns what to call an image: its shard and its name there."""
        return f"{self.urls[self._shards[index]]} member {self._names[index].decode(errors='replace')}"

    def read(self, index: int) -> bytes:
        """Returns the bytes of an image file.

        Raises:
            UserError: They cannot be had, also when asked for again.
        """
        url, start, size = self.urls[self._shards[index]], int(self._offsets[index]), int(self._sizes[index])

        def read() -> bytes:
            data = _fetch(url, start, start + size)
            if len(data) > size:
                raise UserError(_no_ranges(url))
            if len(data) < size:
                raise OSError(f"{len(data)} bytes came of the {size} of {self.name(index)}")
            return data

        return _patiently(url, read)


def _without_slice(spec: str) -> str:
    return re.sub(r"\[\d*:\d*\]$", "", spec)


def _is_remote(url: str) -> bool:
    return "://" in url


def _check_ranges_of(source: str) -> None:
    """Raise UsageError if the ranges of a source name more than MOST_SHARDS shards."""
    ranges = [(first, last) for first, last in _BRACES.findall(source)]
    total = math.inf if any(len(n) > 12 for pair in ranges for n in pair) else 1
    if total == 1:
        total = math.prod(max(0, int(last) - int(first) + 1) for first, last in ranges)
    if total > MOST_SHARDS:
        raise UsageError(f"{source} names more than {MOST_SHARDS} shards; expected a range such as {{0000..0099}}")


def _expand(source: str) -> list[str]:
    """Returns the shards of a source without slice, as URLs or absolute paths."""
    if match := _BRACES.search(source):
        first, last = match.groups()
        numbers = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        if not numbers:
            raise UsageError(f"{source} names no shard; expected a range such as {{0000..0099}}")
        head, tail = source[: match.start()], source[match.end() :]
        return [url for number in numbers for url in _expand(head + number + tail)]
    if _is_remote(source):
        return [source]
    path = Path(os.path.abspath(Path(source).expanduser()))
    if not path.is_dir():
        return [str(path)]
    return sorted(str(file) for file in path.iterdir() if _ARCHIVE.fullmatch(file.name))


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's filesystem for a URL and the path there; fsspec keeps one a process, also after a fork."""
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url} cannot be opened ({error})") from error
    return filesystem, path


def _patiently(url: str, action: Callable[[], _Result]) -> _Result:
    """Does what may fail for a moment, up to four times."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except UserError:
            raise
        except FileNotFoundError as error:
            server = ", or its server cannot be reached" if _is_remote(url) else ""
            raise UserError(f"there is no {url}{server}") from error
        except Exception as error:  # every filesystem raises errors of its own
            if pause is None:
                raise UserError(
                    f"{url} cannot be read ({error or type(error).__name__}), tried {len(PAUSES) + 1} times"
                ) from error
        time.sleep(pause)
    raise AssertionError


def _fetch(url: str, start: int = 0, end: int | None = None) -> bytes:
    if _is_remote(url):
        filesystem, path = _filesystem(url)
        return bytes(filesystem.cat_file(path, start=start or None, end=end))
    with open(url, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


def _open(url: str, block_size: int, cache_type: str) -> Any:
    if not _is_remote(url):
        return open(url, "rb")
    filesystem, path = _filesystem(url)
    return filesystem.open(path, "rb", block_size=block_size, cache_type=cache_type)


def _no_ranges(url: str) -> str:
    return f"the server of {url} sends whole files only, and images are read one by one; copy the shards here"


def _version(url: str) -> tuple[int, str]:
    """Returns a shard's size and what else there is to tell that it changed."""
    if not _is_remote(url):
        status = os.stat(url)
        return status.st_size, str(status.st_mtime_ns)
    filesystem, path = _filesystem(url)
    info = filesystem.info(path)
    if info.get("size") is None:
        raise UserError(f"the server of {url} does not tell its size; copy the shards here")
    keys = ("ETag", "LastModified", "Last-Modified", "mtime")
    return int(info["size"]), str(next((info[key] for key in keys if info.get(key)), ""))


def _check_ranges(url: str) -> None:
    """Raises UserError if a server would send a whole shard for each image."""
    size, _ = _patiently(url, lambda: _version(url))

    def probe() -> None:
        try:
            with _open(url, 1, "none") as file:
                file.seek(max(0, size - 1))
                file.read(1)
        except ValueError as error:  # a file that cannot seek, or fsspec's word for an answer that is no range
            raise UserError(_no_ranges(url)) from error

    _patiently(url, probe)


def _index(url: str) -> _Index:
    """Returns a shard's index: the one beside it, the cached one, or a new one, which is then cached."""
    size, stamp = _patiently(url, lambda: _version(url))
    index = None if _is_remote(url) else _index_beside(url, size)
    if index is not None:
        return index
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = root / "moco_plugin" / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError):
        index = _Index.parse(cached.read_bytes())
    if index is not None and (index.size, index.stamp) == (size, stamp):
        return index
    index = _index_beside(url, size) if _is_remote(url) else None
    index = replace(index or _patiently(url, lambda: _scan(url, size)), stamp=stamp)
    with contextlib.suppress(OSError, UserError), atomic_path(cached) as temporary:  # without a cache: made anew
        temporary.write_text(index.dump())
    return index


def _index_beside(url: str, size: int) -> _Index | None:
    def fetch() -> bytes:
        try:
            return _fetch(url + INDEX_SUFFIX)
        except FileNotFoundError:
            return b""
        except Exception as error:
            if getattr(error, "status", None) == 403 or isinstance(error, PermissionError):
                return b""  # what object stores say of what is not there
            raise

    index = _Index.parse(_patiently(url + INDEX_SUFFIX, fetch))
    if index is not None and index.size != size:
        raise UserError(
            f"{url}{INDEX_SUFFIX} is of a shard of {index.size} bytes, and {url} has {size}; "
            "pack the shards again or remove the index"
        )
    return index


def _scan(url: str, size: int) -> _Index:
    """Makes a shard's index from its headers.

    Raises:
        UserError: It is compressed, no tar archive or broken off.
    """
    broken = f"{url} is no tar archive or is broken off (%s); get it again"
    images: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    with _open(url, SCAN_BLOCK, "readahead") as file:
        if file.read(8).startswith(_COMPRESSED):
            raise UserError(f"{url} is compressed, and reading single images needs a plain tar; decompress it")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else it remembers them all
                    key, suffix = _split(member.name)
                    if member.isfile() and not member.issparse() and suffix in IMG_EXTENSIONS:
                        images.append((member.name, member.offset_data, member.size))
                    elif member.isfile() and suffix == ".cls":
                        text = archive.extractfile(member)
                        labels[key] = text.read(256).decode(errors="replace").strip() if text else ""
                end = archive.offset
        except tarfile.TarError as error:
            raise UserError(broken % error) from error
        file.seek(end)
        if file.read(512) != bytes(512):  # where tarfile met no header, it takes that for the end
            raise UserError(broken % f"no header and no end at byte {end} of {size}")
    classes = sort_classes(labels.values())
    number = {name: i for i, name in enumerate(classes)}
    return _Index(
        size,
        "",
        classes,
        np.array([number[labels[k]] if (k := _split(n)[0]) in labels else -1 for n, _, _ in images], np.int64),
        np.array([name.encode(errors="surrogateescape") for name, _, _ in images], "S"),
        np.array([offset for _, offset, _ in images], np.int64),
        np.array([length for _, _, length in images], np.int64),
    )


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name as webdataset does, at the first dot behind the folders."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return folder + slash + key, (dot + suffix).lower()


def make_shards(
    output: str | Path,
    paths: Sequence[Path],
    labels: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    *,
    images_per_shard: int = 10000,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Packs image files, byte for byte, into ``OUTPUT-0000.tar`` and so on, all or none, with their indexes.

    The same files give the same bytes.

    Args:
        output: Folder and first part of the shards' names.
        paths: The image files, in the order they are to have.
        labels: One number an image; it becomes a ``.cls`` member.
        classes: Names of the labels; they go into the indexes.
        images_per_shard: Images in each shard but the last.
        overwrite: Replace shards of that name.
        progress: Show a progress bar.

    Returns:
        The shards.

    Raises:
        UsageError: A number that cannot be right, or there are shards of that name.
        UserError: An image cannot be read, or nothing can be written there.
    """
    output = Path(output).expanduser()
    if images_per_shard < 1:
        raise UsageError(f"expected at least one image a shard, got {images_per_shard}")
    pattern = re.compile(re.escape(output.name) + r"-\d+\.tar(" + re.escape(INDEX_SUFFIX) + ")?")
    old = [file for file in output.parent.glob("*") if pattern.fullmatch(file.name)]
    if old and not overwrite:
        raise UsageError(f"{min(old)} exists already and was kept; pass --overwrite or choose another output")
    names = None if labels is None else list(classes or map(str, range(int(labels.max()) + 1)))
    count = -(-len(paths) // images_per_shard)
    digits, key_digits = max(4, len(str(count - 1))), max(8, len(str(len(paths) - 1)))
    shards = [f"{output.name}-{number:0{digits}d}.tar" for number in range(count)]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary,
            tqdm(total=len(paths), desc="packing", unit="image", disable=not progress) as bar,
        ):
            for number, shard in enumerate(shards):
                first = number * images_per_shard
                part = slice(first, first + images_per_shard)
                _pack(
                    Path(temporary, shard),
                    paths[part],
                    None if labels is None else labels[part],
                    names,
                    [f"{key:0{key_digits}d}" for key in range(len(paths))[part]],
                    bar,
                )
            for file in old:
                file.unlink()
            for file in sorted(Path(temporary).iterdir()):
                file.replace(output.parent / file.name)
    except OSError as error:
        raise UserError(f"cannot write {output}-*.tar: {error.strerror}; choose another output") from error
    return [output.parent / shard for shard in shards]


def _pack(
    shard: Path, paths: Sequence[Path], labels: np.ndarray | None, classes: list[str] | None, keys: list[str], bar: Any
) -> None:
    """Writes one shard and its index."""
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (path, key) in enumerate(zip(paths, keys, strict=True)):
            if path.suffix.lower() not in IMG_EXTENSIONS:
                raise UserError(f"{path} does not end as images do, in {', '.join(IMG_EXTENSIONS)}; rename it")
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}); repair or remove it") from error
            if labels is not None:
                _add(archive, f"{key}.cls", str(labels[number]).encode())
            _add(archive, key + path.suffix.lower(), data)
            bar.update()
    index = _scan(str(shard), shard.stat().st_size)
    if labels is not None and classes is not None:
        index = replace(index, labels=labels, classes=classes)
    shard.with_name(shard.name + INDEX_SUFFIX).write_text(index.dump())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group 0
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
