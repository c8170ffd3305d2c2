"""Index of a tar shard: where in the archive each image's bytes are, made once from the archive's headers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fsspec.core import url_to_fs

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.data.labels import sort_classes
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import MissingFile, atomic_path, check_file, open_file, parse_json, read_file, read_text

INDEX_FORMAT = 2
INDEX_SUFFIX = ".index.json"  # of the index next to a shard
PACKED = ".packed"  # suffix of the hidden folder of a complete set until its shards are renamed
SET_LIST = "set.txt"  # names of the set's files
PAUSES = (0.5, 1.0, 2.0)  # seconds before a read that failed is tried again
LONGEST_NAME = 1024  # characters of a member's name
MOST_JSON = 1 << 20  # bytes of a sample's .json member
SCAN_BLOCK = 4 << 20  # bytes that a scan fetches at once
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_Result = TypeVar("_Result")


@dataclass
class ShardIndex:
    """The positions of one shard's images; ``stamp`` identifies its version among those of the same size."""

    size: int
    stamp: str
    classes: tuple[str, ...]
    names: np.ndarray  # bytes
    labels: np.ndarray  # indices of classes, -1 for none
    offsets: np.ndarray
    sizes: np.ndarray

    def dump(self) -> str:
        names = [name.decode(errors="surrogateescape") for name in self.names.tolist()]
        numbers = {key: getattr(self, key).tolist() for key in ("labels", "offsets", "sizes")}
        head = {"format": INDEX_FORMAT, "size": self.size, "stamp": self.stamp, "classes": self.classes}
        return json.dumps({**head, "names": names, **numbers}, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> ShardIndex | None:
        """Return the index that ``dump`` wrote, or None for another text."""
        try:
            value: Any = json.loads(text)
            labels, offsets, sizes = (np.array(value[k], np.int64) for k in ("labels", "offsets", "sizes"))
            names = np.array([str(name).encode(errors="surrogateescape") for name in value["names"]], "S")
            size, stamp, classes = int(value["size"]), str(value["stamp"]), tuple(map(str, value["classes"]))
            index = cls(size, stamp, classes, names, labels, offsets, sizes)
            whole = (
                value["format"] == INDEX_FORMAT
                and labels.shape == names.shape == offsets.shape == sizes.shape == (len(names),)
                and names.itemsize <= 4 * LONGEST_NAME
                and min(offsets.min(initial=0), sizes.min(initial=0)) >= 0
                and (offsets + sizes).max(initial=0) <= index.size
                and labels.min(initial=0) >= -1
                and labels.max(initial=-1) < len(index.classes)
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return index if whole else None


def files_of_set(folder: Path, name: str) -> list[Path]:
    """Return the shards ``NAME-0000.tar`` and so on of a folder, and their indexes."""
    pattern = re.compile(re.escape(name) + r"-\d+\.tar(" + re.escape(INDEX_SUFFIX) + ")?")
    return [file for file in folder.iterdir() if pattern.fullmatch(file.name)]


def settle(folder: Path) -> None:
    """Move completely packed sets to their final names if ``make_shards`` was interrupted before.

    Steps may be repeated, also by several processes at once.
    """
    for packed in folder.glob(f".*{PACKED}"):
        name = packed.name[1 : -len(PACKED)]
        try:
            with contextlib.suppress(MissingFile, FileNotFoundError):  # another process was faster
                names = read_text(packed / SET_LIST).splitlines()
                for file in files_of_set(folder, name):
                    if file.name not in names:
                        file.unlink(missing_ok=True)
                for file in files_of_set(packed, name):
                    with contextlib.suppress(FileNotFoundError):
                        file.replace(folder / file.name)
                (packed / SET_LIST).unlink()
            with contextlib.suppress(FileNotFoundError):
                packed.rmdir()
        except OSError as error:
            raise UserError(
                f"the shards {folder / name}-*.tar are still in {packed} and cannot be moved "
                f"({error.strerror}); make the folder writable"
            ) from error


def is_remote(url: str) -> bool:
    return "://" in url


def _filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's filesystem for a URL and the path there; fsspec keeps one per process, also after a fork."""
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url} cannot be opened ({error})") from error
    return filesystem, path


def patiently(url: str, action: Callable[[], _Result]) -> _Result:
    """Call a function, up to four times if it fails for reasons that may pass."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except UserError:
            raise
        except FileNotFoundError as error:
            server = ", or its server cannot be reached" if is_remote(url) else ""
            raise UserError(f"there is no {url}{server}") from error
        except Exception as error:  # every filesystem raises its own errors
            if pause is None:
                raise UserError(
                    f"{url} cannot be read ({error or type(error).__name__}), tried {len(PAUSES) + 1} times"
                ) from error
        time.sleep(pause)
    raise AssertionError


def fetch(url: str, start: int = 0, end: int | None = None) -> bytes:
    if is_remote(url):
        filesystem, path = _filesystem(url)
        return bytes(filesystem.cat_file(path, start=start or None, end=end))
    if end is None:
        return read_file(url)
    with open_file(url) as file:
        file.seek(start)
        return file.read(end - start)


def _open(url: str, block_size: int, cache_type: str) -> Any:
    if not is_remote(url):
        return open_file(url)
    filesystem, path = _filesystem(url)
    return filesystem.open(path, "rb", block_size=block_size, cache_type=cache_type)


def no_ranges(url: str) -> str:
    return f"the server of {url} sends whole files only, and images are read one by one; copy the shards here"


def _version(url: str) -> tuple[int, str]:
    """Return a shard's size and what else shows that it changed."""
    if not is_remote(url):
        status = check_file(url, "a tar archive")
        return status.st_size, str(status.st_mtime_ns)
    filesystem, path = _filesystem(url)
    info = filesystem.info(path)
    if info.get("size") is None:
        raise UserError(f"the server of {url} does not report its size; copy the shards here")
    keys = ("ETag", "LastModified", "Last-Modified", "mtime")
    return int(info["size"]), str(next((info[key] for key in keys if info.get(key)), ""))


def check_ranges(url: str) -> None:
    """Raise UserError if a server would send a whole shard for each image."""
    size, _ = patiently(url, lambda: _version(url))

    def probe() -> None:
        try:
            with _open(url, 1, "none") as file:
                file.seek(max(0, size - 1))
                file.read(1)
        except ValueError as error:  # a file that cannot seek, or fsspec's error for an answer that is not a range
            raise UserError(no_ranges(url)) from error

    patiently(url, probe)


def read_index(url: str) -> ShardIndex:
    """Return a shard's index: the one next to it, the cached one, or a new one, which is then cached."""
    size, stamp = patiently(url, lambda: _version(url))
    index = None if is_remote(url) else _index_beside(url, size)
    if index is not None:
        return index
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = root / "moco_plugin" / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
    with contextlib.suppress(UserError):
        index = ShardIndex.parse(read_file(cached))
    if index is not None and (index.size, index.stamp) == (size, stamp):
        return index
    index = _index_beside(url, size) if is_remote(url) else None
    index = replace(index or patiently(url, lambda: scan_shard(url, size)), stamp=stamp)
    with contextlib.suppress(OSError, UserError), atomic_path(cached) as temporary:  # else it is computed again
        temporary.write_text(index.dump())
    return index


def _index_beside(url: str, size: int) -> ShardIndex | None:
    def get() -> bytes:
        try:
            return fetch(url + INDEX_SUFFIX)
        except (FileNotFoundError, MissingFile):
            return b""
        except Exception as error:
            if getattr(error, "status", None) == 403 or isinstance(error, PermissionError):
                return b""  # what object stores reply for missing files
            raise

    index = ShardIndex.parse(patiently(url + INDEX_SUFFIX, get))
    if index is not None and index.size != size:
        raise UserError(
            f"{url}{INDEX_SUFFIX} is of a shard of {index.size} bytes, and {url} has {size}; "
            "pack the shards again or remove the index"
        )
    return index


def scan_shard(url: str, size: int) -> ShardIndex:
    """Make a shard's index from its headers.

    Raises:
        UserError: It is compressed, truncated or not a tar archive.
    """
    broken = f"{url} is truncated or not a tar archive (%s); get it again"
    images: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    with _open(url, SCAN_BLOCK, "readahead") as stream:
        if stream.read(8).startswith(_COMPRESSED):
            raise UserError(f"{url} is compressed, and reading single images needs a plain tar; decompress it")
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else it remembers them all
                    file = member.name.rpartition("/")[2]
                    if (length := len(member.name)) > LONGEST_NAME:
                        raise UserError(f"{url} has a name of {length} characters; expected at most {LONGEST_NAME}")
                    if not member.isfile() or file.startswith("."):
                        continue
                    if member.name.lower().endswith(SUFFIXES) and not member.issparse():
                        images.append((member.name, member.offset_data, member.size))
                    elif file.endswith(".cls"):
                        text = archive.extractfile(member)
                        name = text.read(256).decode(errors="replace").strip() if text else ""
                        labels[member.name.removesuffix(".cls")] = name
                    elif file.endswith(".json") and member.size < MOST_JSON:
                        text = archive.extractfile(member)
                        label = _json_label(text.read() if text else b"")
                        if label is not None:
                            labels.setdefault(member.name.removesuffix(".json"), label)
                end = archive.offset
        except tarfile.TarError as error:
            raise UserError(broken % error) from error
        stream.seek(end)
        if stream.read(512) != bytes(512):  # where tarfile met no header, it takes that for the end
            raise UserError(broken % f"no header and no end at byte {end} of {size}")
    keys = {_key(name) for name, _, _ in images if _stem(name) == _key(name)}
    # webdataset's a.jpg and a.mask.png are one sample; a.v1.000.jpg alone is an image with dots in its name
    images = [image for image in images if _key(image[0]) not in keys or _stem(image[0]) == _key(image[0])]
    of_images = [labels.get(_stem(name), labels.get(_key(name))) for name, _, _ in images]
    classes = sort_classes(labels.values())
    indices: dict[str | None, int] = {name: index for index, name in enumerate(classes)}
    names = np.array([name.encode(errors="surrogateescape") for name, _, _ in images], "S")
    of_classes = np.array([indices.get(label, -1) for label in of_images], np.int64)
    offsets, sizes = np.array([image[1:] for image in images], np.int64).reshape(-1, 2).T
    return ShardIndex(size, "", classes, names, of_classes, offsets, sizes)


def _json_label(text: bytes) -> str | None:
    """Return the label that a sample's JSON has under ``label``, ``cls`` or ``class``."""
    try:
        value = parse_json(text, "a .json member")
    except UserError:
        return None
    if not isinstance(value, dict):
        return None
    label = next((value[key] for key in ("label", "cls", "class") if key in value), None)
    return str(label) if isinstance(label, (int, str)) else None


def _stem(name: str) -> str:
    """Return a member's name without its last suffix."""
    return name.rpartition(".")[0]


def _key(name: str) -> str:
    """Return a member's key as webdataset has it: its name up to the first dot behind the folders."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
