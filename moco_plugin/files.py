"""Reading of input files, and atomic writing of files and folders.

Every file that a user, a list, a config or an archive names is opened here: only regular files of bounded size.
"""

import codecs
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from moco_plugin.errors import UsageError, UserError, reason

MOST_BYTES = 1 << 30
"""Size of the largest file that is read whole."""
MOST_TEXT = 1 << 28
"""Size of the largest list or other text."""
STALLED = 10
"""Seconds without a byte, after which a connection counts as interrupted."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class MissingFile(UserError):
    """A file that does not exist."""


def check_file(path: str | Path, what: str = "a file", error: type[UserError] = UserError) -> os.stat_result:
    """Return the status of a regular file, without opening it.

    Args:
        path: Its path; links are followed.
        what: What is expected there, for messages.
        error: The class of errors; a file that is missing is a ``MissingFile`` where that is ``UserError``.

    Raises:
        UserError: Nothing is there, it is a folder, a pipe or a device, or the path cannot be one.
    """
    try:
        status = os.stat(path)
    except ValueError as cause:  # NUL, or half a pair of UTF-16
        raise error(f"{shown(path)} cannot be a path ({reason(cause)}); expected {what}") from cause
    except (FileNotFoundError, NotADirectoryError) as cause:
        found = "is a link to nothing" if os.path.islink(path) else f"cannot be read ({cause.strerror})"
        kind = MissingFile if error is UserError else error
        raise kind(f"{shown(path)} {found}; check the path") from cause
    except OSError as cause:
        raise error(f"{shown(path)} cannot be read ({cause.strerror}); check the path and its permissions") from cause
    if not stat.S_ISREG(status.st_mode):
        kind_of_file = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise error(f"{shown(path)} is {kind_of_file}; expected {what}")
    return status


def check_name(path: str | Path) -> None:
    """Raise UsageError for a text that cannot be a path, for which pathlib raises other errors."""
    try:
        os.stat(Path(path).expanduser())
    except (ValueError, RuntimeError) as error:  # the latter: ~ and no such user
        raise UsageError(f"{shown(path)} cannot be a path ({reason(error)}); check the path") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{shown(path)} cannot be a path ({error.strerror}); check the path") from error


def open_file(path: str | Path, what: str = "a file", error: type[UserError] = UserError) -> IO[bytes]:
    """Open a regular file for reading; see ``check_file``."""
    check_file(path, what, error)
    try:
        return open(path, "rb")
    except OSError as cause:
        raise error(f"{shown(path)} cannot be read ({cause.strerror}); check the path and its permissions") from cause


def read_file(
    path: str | Path, most: int = MOST_BYTES, what: str = "a file", error: type[UserError] = UserError
) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes; see ``check_file``.

    Raises:
        UserError: As ``check_file``, or it is larger.
    """
    size = check_file(path, what, error).st_size
    try:
        if size > most:
            data = b""
        else:
            with open(path, "rb", buffering=0) as file:
                data = file.read(size + 1)
                if len(data) != size:  # it changes, or the system does not know its size
                    data += io.BufferedReader(file).read(most + 1 - len(data))
    except OSError as cause:
        raise error(f"{shown(path)} cannot be read ({cause.strerror}); check the path and its permissions") from cause
    if size > most or len(data) > most:
        raise error(f"{shown(path)} has more than {most:,} bytes; expected {what}")
    return data


def read_text(
    path: str | Path, most: int = MOST_TEXT, what: str = "a text file", error: type[UserError] = UserError
) -> str:
    """Return the text of a regular file in the encoding that ``decode_text`` finds, with ``\\n`` at ends of lines."""
    return decode_text(read_file(path, most, what, error))


def decode_text(data: bytes) -> str:
    """Return a text by its byte order mark; without one it is UTF-8, or what Windows writes in the West (cp1252)."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252" if encoding == "utf-8" else encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown(path: str | Path) -> str:
    """Return a path for messages, with unprintable characters escaped and cut if it is long."""
    text = str(path)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"


@contextmanager
def fetching() -> Iterator[None]:
    """Set a timeout for connections inside the block, since libraries set none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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
        _open_to_others(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_to_others(file: Path) -> None:
    """Give a file the mode of new files, which mkstemp does not."""
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
    return parse_json(read_file(path, what="a JSON file"), shown(path))


def parse_json(text: str | bytes, name: str, advice: str = "check the file") -> Any:
    """Return the content of a JSON text.

    Args:
        text: The text; of bytes, in the encoding of their byte order mark.
        name: Where it comes from, for messages.
        advice: What to do about an invalid file.

    Raises:
        UserError: It is not valid JSON.
    """
    try:
        return json.loads(decode_text(text) if isinstance(text, bytes) else text)
    except (RecursionError, ValueError) as error:
        found = "nested too deep" if isinstance(error, RecursionError) else reason(error)
        raise UserError(f"{name} is not valid JSON ({found}); {advice}") from error


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Return ``path``, or raise UsageError if it exists and ``overwrite`` is false."""
    path = Path(path)
    check_name(path)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already and was kept; pass --overwrite or choose another output")
    return path


def check_checkpoint(path: str) -> None:
    """Raise UserError if a path does not exist and is not the name of a released checkpoint."""
    if "://" in path:
        return
    check_name(path)
    if re.search(r"[./\\]", path) and not os.path.exists(os.path.expanduser(path)):
        raise UserError(f"{path}: no such file; expected a checkpoint")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return file_digest(path, "sha256")


def file_digest(path: str | Path, algorithm: str) -> str:
    """Return a file's digest in hexadecimal; ``algorithm`` is one of hashlib's, "md5" only detects accidental changes."""
    with open_file(path) as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
