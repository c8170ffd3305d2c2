"""Atomic writing of files and folders, JSON, digests, and protection of existing outputs."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moco_plugin.errors import UsageError, UserError
from moco_plugin.safe_yaml import parse_json

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, renamed to it only if the block ends without an error."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another output") from error
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_is_an_error(path):
            yield temporary
        _open_to_others(temporary)  # mkstemp gives 0600
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_to_others(file: Path) -> None:
    """Give a file the mode that the umask gives new files."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn a failed write inside the block into a UserError; torch.save hides the OSError behind a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and getattr(cause, "errno", None) not in DISK_FULL:
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror}; free some space and try again") from error


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``folder``, which it replaces only if the block ends without an error."""
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another output") from error
    try:
        temporary.chmod(folder.parent.stat().st_mode & 0o777)  # mkdtemp gives 0700
        with full_disk_is_an_error(folder):
            yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _open_to_others(file)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: It cannot be read, or is not valid JSON.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return parse_json(text, str(path))


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Return ``path``, or raise UsageError if it exists and ``overwrite`` is false."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already and was kept; pass --overwrite or choose another output")
    return path


def check_checkpoint(path: str) -> None:
    """Raise UserError if a path does not exist and is not the name of a released checkpoint."""
    if re.search(r"[./\\]", path) and "://" not in path and not Path(path).expanduser().exists():
        raise UserError(f"{path}: no such file; expected a checkpoint")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return file_digest(path, "sha256")


def file_digest(path: str | Path, algorithm: str) -> str:
    """Return a file's digest in hexadecimal; ``algorithm`` is one of hashlib's, "md5" only detects accidental changes."""
    with open(path, "rb") as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
