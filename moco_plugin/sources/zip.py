"""Image sets in a zip archive, read at random without unpacking."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from moco_plugin.data.decode import SUFFIXES, CannotDecode
from moco_plugin.data.listing import HIDDEN, folder_labels
from moco_plugin.errors import UserError
from moco_plugin.files import MOST_BYTES, open_file


def open_zip(source: str) -> ZipImages | None:
    """Open a file whose name ends in .zip; None for others."""
    path = Path(source).expanduser()
    return ZipImages(path) if path.suffix.lower() == ".zip" and path.is_file() else None


class ZipImages:
    """Images of a zip archive, in the order of the unpacked folder, without hidden files.

    Labels are the first level of folders; a single folder that contains all others is ignored.

    Args:
        path: The archive.

    Attributes:
        labels: int64, N, or None.
        classes: Names of the labels, or None.

    Raises:
        UserError: The archive cannot be read, or has no image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        names = (info.filename for info in self._archive().infolist() if not info.is_dir())
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not _is_hidden(name))
        self._names = sorted(images, key=lambda name: name.split("/"))  # as paths compare: "a/b" is before "a-b/a"
        if not self._names:
            raise UserError(f"{path} contains no image; expected files such as .jpg, .png or .tif")
        inside = [name.lstrip("/") for name in self._names]
        firsts = {PurePosixPath(name).parts[0] for name in inside}
        nested = len(firsts) == 1 and all("/" in name for name in inside)
        root = path / firsts.pop() if nested else path
        self.labels, self.classes = folder_labels(root, [path / name for name in inside])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the name of an image: the archive and its name there."""
        return f"{self.path} member {self._names[index]}"

    def take(self, indices: np.ndarray) -> None:
        """Keep only these images and their labels."""
        self._names = [self._names[index] for index in indices]
        self.labels = None if self.labels is None else self.labels[indices]

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            CannotDecode: They are damaged, or more than ``MOST_BYTES``.
            UserError: They are encrypted.
        """
        archive, name = self._archive(), self._names[index]
        info = archive.getinfo(name)
        if info.flag_bits & 1:
            raise UserError(f"{self.name(index)} is encrypted; unpack the archive")
        if info.file_size > MOST_BYTES:
            raise CannotDecode(f"more than {MOST_BYTES:,} bytes")
        try:
            return archive.read(name)
        except Exception as error:  # decompressors raise many kinds of exceptions
            raise CannotDecode(str(error)) from error

    def _archive(self) -> zipfile.ZipFile:
        """Return the archive, opened once per process: a loader process must not share the position in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(open_file(self.path, "a zip archive"))
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise UserError(f"{self.path} cannot be read as a zip archive ({error}); check it") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in HIDDEN for part in PurePosixPath(name).parts)
