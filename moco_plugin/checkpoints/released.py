"""Released checkpoints by name, which are downloaded once and verified."""

import http.client
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse

from iopath.common.file_io import HTTPURLHandler, PathManager, get_cache_dir

from moco_plugin.errors import UserError, did_you_mean
from moco_plugin.files import atomic_path, fetching, file_digest, open_file, read_text, sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Released:
    """A checkpoint that the authors published, and the first eight digits of its MD5 if they published them."""

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


_path_manager = PathManager()
_path_manager.register_handler(HTTPURLHandler())


def cache_path(url: str) -> Path:
    """Return the path of a downloaded file in iopath's cache, $FVCORE_CACHE if that is set."""
    return Path(get_cache_dir()) / urlparse(url).path.lstrip("/")


def is_released(path_or_name: str | Path) -> bool:
    """Return whether this is the name of a released checkpoint and not of an existing file or folder."""
    return str(path_or_name) in RELEASED and not os.path.exists(path_or_name)


def resolve(path_or_name: str | Path) -> Path:
    """Return the path of a file, or of a released checkpoint, which is fetched.

    Args:
        path_or_name: A path, which takes precedence if it exists, or one of ``RELEASED``.

    Raises:
        UserError: The checkpoint cannot be fetched, or is not the published one; or a misspelt name.
    """
    path, name = Path(os.path.expanduser(path_or_name)), str(path_or_name)
    exists = os.path.exists(path)
    if exists or not is_released(name):
        hint = did_you_mean(name, RELEASED) if not ({"/", ".", os.sep} & set(name) or exists) else ""
        if hint:
            raise UserError(f"{name}: no such file, and no released checkpoint has that name{hint}")
        return path
    released = RELEASED[name]
    cached = cache_path(released.url)
    fetched = not cached.is_file()
    if fetched:
        _download(name, released.url, cached)
    if released.md5 is None:
        _check_recorded(cached, name)
    elif not (md5 := file_digest(cached, "md5")).startswith(released.md5):
        cached.unlink()
        raise UserError(
            f"{cached} was not {name} and is removed: its MD5 begins with {md5[:8]}, the published one with "
            f"{released.md5}; get it again from {released.url}"
        )
    elif fetched:
        logger.info("%s: its MD5 begins with %s, as published", name, released.md5)
    return cached


def _check_recorded(cached: Path, name: str) -> None:
    """Compare a file that has no published checksum with the SHA-256 recorded when it was first fetched."""
    record, digest = cached.with_name(f"{cached.name}.sha256"), sha256(cached)
    if not record.is_file():
        with atomic_path(record) as temporary:
            temporary.write_text(f"{digest}\n")
        logger.warning("%s: its authors published no checksum; its SHA-256 is %s, kept in %s", name, digest, record)
    elif read_text(record).strip() != digest:
        raise UserError(
            f"{cached} changed since it was fetched: its SHA-256 is {digest}, and {record} contains another; remove both "
            "files to fetch it again"
        )


def _download(name: str, url: str, cached: Path) -> None:
    """Download a released checkpoint atomically; raise UserError if this fails."""
    try:
        with fetching():
            _path_manager.get_local_path(url)
        with open_file(cached) as file:
            page = file.read(1) == b"<"  # a log-in or error page
        if page:
            cached.unlink()
            raise OSError("a web page came in place of the file")
    except (OSError, http.client.HTTPException) as error:  # also a cache that nothing can be written to
        said = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise UserError(
            f"{name} could not be fetched from {url} ({said}); try again, or get it elsewhere and put it at {cached}"
        ) from error
