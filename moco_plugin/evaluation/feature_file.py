"""Features on disk, read back a slice at a time, so that memory does not grow with them."""

import tempfile

import numpy as np
import torch
from torch import Tensor

from moco_plugin.errors import UserError


class FeatureFile:
    """Float32 rows in a temporary file that is deleted with this object; ``file[start:stop]`` reads some of them.

    Read, not mapped: pages of a mapped file would count as this process's memory.

    Args:
        folder: Where the file is; None for the system's folder for temporary files (``TMPDIR``).
    """

    def __init__(self, folder: str | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as this object
        self.shape = (0, 0)

    def append(self, rows: Tensor) -> None:
        """Add rows (N x D).

        Raises:
            UserError: The disk is full.
        """
        data = rows.contiguous().float().numpy().data.cast("B")
        self._file.seek(0, 2)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise UserError(
                f"features cannot be written to {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with more room"
            ) from error
        self.shape = (self.shape[0] + len(rows), rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(len(self))
        rows = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        data = rows.data.cast("B") if rows.size else memoryview(b"")
        self._file.seek(4 * start * self.shape[1])
        while data:
            data = data[self._file.readinto(data) :]
        return torch.from_numpy(rows)
