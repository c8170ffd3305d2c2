"""Released checkpoints by name: downloaded once, resumed if interrupted, and verified."""

import http.client
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from iopath.common.file_io import HTTPURLHandler, PathManager, file_lock, get_cache_dir
from tqdm import tqdm

from moco_plugin.errors import UserError, did_you_mean
from moco_plugin.files import atomic_path, file_digest

logger = logging.getLogger(__name__)

TIMEOUT = 30  # seconds without a byte, after which a connection counts as interrupted
BLOCK = 1 << 20


@dataclass(frozen=True)
class Released:
    """A checkpoint that the authors published, and the first eight digits of its MD5 where they gave them."""

    url: str
    md5: str | None = None


_V2 = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints"
_V3 = "https://dl.fbaipublicfiles.com/moco-v3"
RELEASED: dict[str, Released] = {
    "moco_v1_200ep": Released(f"{_V2}/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar", "b251726a"),
    "moco_v2_200ep": Released(f"{_V2}/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar", "59fd9945"),
    "moco_v2_800ep": Released(f"{_V2}/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar", "a04e12f8"),
    "moco_v3_r50_100ep": Released(f"{_V3}/r-50-100ep/r-50-100ep.pth.tar"),
    "moco_v3_r50_300ep": Released(f"{_V3}/r-50-300ep/r-50-300ep.pth.tar"),
    "moco_v3_r50_1000ep": Released(f"{_V3}/r-50-1000ep/r-50-1000ep.pth.tar"),
    "moco_v3_vit_s": Released(f"{_V3}/vit-s-300ep/vit-s-300ep.pth.tar"),
    "moco_v3_vit_b": Released(f"{_V3}/vit-b-300ep/vit-b-300ep.pth.tar"),
}


class _Interrupted(Exception):
    """An interrupted transfer; what arrived is kept for the next attempt."""


class ResumingHTTPHandler(HTTPURLHandler):
    """iopath's handler of addresses, with the same cache, that resumes an interrupted transfer."""

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        cached = cache_path(path, cache_dir)
        with file_lock(str(cached)):  # other processes wait here and find the file
            if force or not cached.is_file():
                download(path, cached)
        return str(cached)


_path_manager = PathManager()
_path_manager.register_handler(ResumingHTTPHandler())


def cache_path(url: str, cache_dir: str | None = None) -> Path:
    """Return the path of a downloaded file: as in iopath, below $FVCORE_CACHE if that is set."""
    return Path(get_cache_dir(cache_dir)) / urlparse(url).path.lstrip("/")


def is_released(path_or_name: str | Path) -> bool:
    """Return whether this names a released checkpoint; a file or folder of that name takes precedence."""
    return str(path_or_name) in RELEASED and not Path(path_or_name).exists()


def resolve(path_or_name: str | Path) -> Path:
    """Return the file that a path or the name of a released checkpoint stands for, fetching the latter.

    Args:
        path_or_name: A path, which takes precedence if it exists, or one of ``RELEASED``.

    Raises:
        UserError: The checkpoint cannot be fetched, or what arrived is not what was published; or neither a
            path nor a name, but something like one.
    """
    path, name = Path(path_or_name).expanduser(), str(path_or_name)
    if path.exists() or not is_released(name):
        hint = did_you_mean(name, RELEASED) if not ({"/", ".", os.sep} & set(name) or path.exists()) else ""
        if hint:
            raise UserError(f"{name}: no such file, and no released checkpoint has that name{hint}")
        return path
    released = RELEASED[name]
    cached = cache_path(released.url)
    fetched = not cached.is_file()
    try:
        _path_manager.get_local_path(released.url)
    except (UserError, OSError) as error:  # OSError: a cache that nothing can be written to
        raise UserError(
            f"{name} could not be fetched from {released.url} ({error}); try again, or get it elsewhere and "
            f"put it at {cached}"
        ) from error
    if released.md5 is None:
        _check_recorded(cached, name)
        return cached
    found = file_digest(cached, "md5")
    if not found.startswith(released.md5):
        cached.unlink()
        raise UserError(
            f"{cached} was not {name} and is removed: its MD5 begins with {found[:8]}, the published one with "
            f"{released.md5}; get it again from {released.url}"
        )
    if fetched:
        logger.info("%s: its MD5 begins with %s, as published", name, released.md5)
    return cached


def _check_recorded(cached: Path, name: str) -> None:
    """Compare a file that has no published checksum with the SHA-256 recorded when it was first fetched."""
    record, found = cached.with_name(f"{cached.name}.sha256"), file_digest(cached, "sha256")
    if not record.is_file():
        with atomic_path(record) as temporary:
            temporary.write_text(f"{found}\n")
        logger.warning("%s: its authors published no checksum; its SHA-256 is %s, kept in %s", name, found, record)
    elif record.read_text().strip() != found:
        raise UserError(
            f"{cached} changed since it was fetched: its SHA-256 is {found}, and {record} holds another; remove both "
            "files to fetch it again"
        )


def download(url: str, path: Path) -> None:
    """Download a file atomically; a partial download stays in ``path`` + ``.part`` for the next attempt.

    An interrupted transfer is resumed immediately, as long as each attempt gets further than the last.

    Raises:
        UserError: The download failed.
    """
    part = path.with_name(f"{path.name}.part")
    furthest = _size(part)
    while True:
        try:
            _fetch(url, part)
            os.replace(part, path)
            return
        except _Interrupted as error:
            if _size(part) > furthest:
                furthest = _size(part)
                continue
            raise UserError(str(error)) from error
        except urllib.error.HTTPError as error:
            raise UserError(f"the server replied {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise UserError(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise UserError(str(error) or type(error).__name__) from error


def _fetch(url: str, part: Path) -> None:
    """Append the missing bytes to ``part``; start over if the server cannot resume."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # "range not satisfiable": the file has all of it, or more
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return
        part.unlink()
        response = urllib.request.urlopen(url, timeout=TIMEOUT)
    with response:
        if "html" in response.headers.get_content_subtype():  # a log-in or error page in place of the file
            raise OSError("a web page came in place of the file")
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=Path(url).name) as bar,
        ):
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
                have += len(block)
        if total is not None and have < total:
            raise _Interrupted(f"the connection was interrupted after {have} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(BLOCK))
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection was interrupted: {error or type(error).__name__}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
