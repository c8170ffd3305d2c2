"""Reading of input files, and atomic writing of files and folders.

Every file that a user, a list, a config or an archive names is opened here, if it is a regular file of bounded size.
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
"""Size of the largest text file."""
STALLED = 10
"""Seconds without data after which a connection is closed."""
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
    """Return the status of a regular file without opening it.

    Args:
        path: Path of the file; links are followed.
        what: The expected kind of file, for messages.
        error: Class of the error; for ``UserError``, a missing file raises ``MissingFile``.

    Raises:
        UserError: The path is invalid, or no regular file is there.
    """
    try:
        status = os.stat(path)
    except ValueError as cause:  # a NUL character or a surrogate
        raise error(f"{shown(path)} is not a valid path ({reason(cause)}); expected {what}") from cause
    except (FileNotFoundError, NotADirectoryError) as cause:
        found = "is a broken link" if os.path.islink(path) else f"cannot be read ({cause.strerror})"
        kind = MissingFile if error is UserError else error
        raise kind(f"{shown(path)} {found}; check the path") from cause
    except OSError as cause:
        raise error(f"{shown(path)} cannot be read ({cause.strerror}); check the path and its permissions") from cause
    if not stat.S_ISREG(status.st_mode):
        kind_of_file = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise error(f"{shown(path)} is {kind_of_file}; expected {what}")
    return status


def check_name(path: str | Path) -> None:
    """Raise UsageError for an invalid path, for which pathlib raises other errors."""
    try:
        os.stat(Path(path).expanduser())
    except (ValueError, RuntimeError) as error:  # the latter for ~ and an unknown user
        raise UsageError(f"{shown(path)} is not a valid path ({reason(error)}); check the path") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{shown(path)} is not a valid path ({error.strerror}); check the path") from error


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
        UserError: As for ``check_file``, or the file is larger.
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
    """Return the text of a regular file; see ``decode_text``."""
    return decode_text(read_file(path, most, what, error))


def decode_text(data: bytes) -> str:
    """Decode text by its byte order mark, else as UTF-8 or Windows-1252; lines end with ``\\n``."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252" if encoding == "utf-8" else encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown(path: str | Path) -> str:
    """Return a path for messages: unprintable characters are escaped, and long paths are shortened."""
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
    """Yield a temporary path next to ``path``, which is renamed to ``path`` if the block ends without an error."""
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
    """Set the mode of a file to that of new files."""
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
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: The file cannot be read, or is not valid JSON.
    """
    return parse_json(read_file(path, what="a JSON file"), shown(path))


def parse_json(text: str | bytes, name: str, advice: str = "check the file") -> Any:
    """Return the content of a JSON text; half a surrogate pair, which no output can hold, becomes a question mark.

    Args:
        text: The text; bytes are decoded by ``decode_text``.
        name: Name of the source, for messages.
        advice: Advice for an invalid file.

    Raises:
        UserError: The text is not valid JSON.
    """
    try:
        text = decode_text(text) if isinstance(text, bytes) else text
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        return value
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
    """Raise UserError for a path to no file; a name without slash or dot may be a released checkpoint."""
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
