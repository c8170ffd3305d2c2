"""A CSV log with one row per logged step, continued by resumed runs."""

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path, read_text
from moco_plugin.typed import Step, convert


def check_folder(folder: Path) -> None:
    """Raise UserError if a run's folder was deleted during the run."""
    if not folder.is_dir():
        raise UserError(f"{folder} was deleted while the run was writing to it; start the run again")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, ``step`` as a number and the other values as text.

    Raises:
        UserError: The file is not such a log.
    """
    try:
        rows: list[dict[str, Any]] = list(csv.DictReader(read_text(path).splitlines()))
    except csv.Error as error:
        raise UserError(f"{path} is not a log of a run ({error}); remove it") from error
    steps = convert([row.get("step") for row in rows], list[Step], f"{path}, step")
    return [row | {"step": step} for row, step in zip(rows, steps, strict=True)]


def log_step(module: pl.LightningModule, values: Mapping[str, Tensor]) -> None:
    """Log a training step's values and the learning rate at logging steps only, since reading waits for the device.

    Args:
        module: The module that is trained.
        values: Scalars of this process by name, including ``loss``; means over all processes are logged.
    """
    trainer = module.trainer
    if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return
    stacked = torch.stack([value.detach().to(values["loss"]) for value in values.values()])
    if trainer.world_size > 1:
        torch.distributed.all_reduce(stacked)
        stacked /= trainer.world_size
    for name, value in zip(values, stacked.unbind(), strict=True):
        module.log(name, value)
    module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])


class CSVLog(Logger):
    """A Lightning logger that writes metrics to a CSV file with a ``step`` column; new metrics become new columns.

    Args:
        path: The file. Existing rows are kept, up to the step that the run resumes from.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        self.next_write = 0.0
        if path.exists():
            self.rows = {
                row["step"]: {key: value for key, value in row.items() if value != ""} for row in read_rows(path)
            }

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def forget_from(self, step: int) -> None:
        """Drop the rows of ``step`` and later, which a resumed run writes again."""
        self.rows = {s: row for s, row in self.rows.items() if s < step}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {"step": step or 0}).update(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in config.yaml next to the log."""

    def latest(self) -> dict[str, float]:
        """Return the last value of every metric."""
        return {k: float(v) for step in sorted(self.rows) for k, v in self.rows[step].items() if k != "step"}

    @rank_zero_only
    def save(self) -> None:
        """Write the file, unless writing takes more than 1% of the time (logs of long runs)."""
        if time.monotonic() >= self.next_write:
            start = time.monotonic()
            self.write()
            self.next_write = time.monotonic() + 100 * (time.monotonic() - start)

    @rank_zero_only
    def write(self) -> None:
        """Write the file.

        Raises:
            UserError: The disk is full, or the run's folder was deleted.
        """
        check_folder(self.path.parent)
        columns = dict.fromkeys(column for row in self.rows.values() for column in row)
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.write()
