"""Training runs in a folder: one Trainer, resume, signals, limits and messages for every kind of training."""

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from moco_plugin.data.loading import ended_with
from moco_plugin.errors import Stopped, UsageError, UserError
from moco_plugin.files import atomic_path
from moco_plugin.runs.callbacks import AtomicCheckpoints, Guard, Interrupted, Saver
from moco_plugin.runs.logs import CSVLog, check_folder
from moco_plugin.runs.processes import known_failure
from moco_plugin.runs.run_folder import Identity, SavedRun, locked, remove_files, remove_stale
from moco_plugin.runs.trainer_arguments import build_trainer

NCCL_GRACE = 60.0  # seconds
QUIET = (
    "does not have many workers",
    "in eval mode at the start of",  # a frozen network is
    "dataloader is not resumable",  # its sampler is
    "LeafSpec",  # Lightning's and torch's to agree on
    "broadcast_buffers",
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence messages of Lightning that a user cannot act on, inside the block."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")  # devices, tips
    level = logger.level
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


@dataclass(kw_only=True)
class Run:
    """A training run in a folder; the same command resumes it.

    Args:
        folder: Holds all files of the run.
        files: Their names; ``overwrite`` removes these and nothing else, the last one last.
        checkpoint: Name of the checkpoint in the folder.
        identity: What a resumed run must share with the one that saved the checkpoint.
        trainer: Arguments of Lightning's Trainer that the user gave.
        epochs: Length of the training.
        steps: Length in optimizer steps, in place of ``epochs``.
        save_every: Steps between two checkpoints within an epoch.
        timeout: Seconds that processes wait for each other before the run fails.
        log_every: Steps between two rows of the log.
        overwrite: Remove the run in the folder.
        config_text: Content of ``config.yaml``; "" for no such file.
        kept: False if the folder is temporary, so that the run cannot be resumed.
        out_of_memory: Returns advice for a step that does not fit into the GPU's memory.
    """

    folder: Path
    files: tuple[str, ...]
    checkpoint: str
    identity: Identity
    trainer: Mapping[str, Any]
    epochs: int
    steps: int | None = None
    save_every: int
    timeout: float
    log_every: int = 10
    overwrite: bool = False
    config_text: str = ""
    kept: bool = True
    out_of_memory: Callable[[], str] = lambda: "choose a smaller batch or data.image_size"
    log: CSVLog = field(init=False)
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.log = CSVLog(self.folder / "metrics.csv")
        limit = self.trainer.get("max_time")
        try:
            self.guard = Guard(limit, self.timeout)
        except (TypeError, MisconfigurationException) as error:
            raise UsageError(
                f"trainer.max_time is {limit!r}; expected DD:HH:MM:SS, such as 00:12:00:00, or {{hours: 12}}"
            ) from error

    @property
    def last(self) -> Path:
        """Path of the checkpoint."""
        return self.folder / self.checkpoint

    def saved(self) -> SavedRun | None:
        """Return the run that will be resumed, or None.

        Raises:
            UsageError: Its settings or images differ.
        """
        saved = None if self.overwrite else SavedRun.read(self.last)
        if saved:
            saved.check_same(self.identity)
        return saved

    @_quiet()
    def trainer_for(self, callbacks: Sequence[pl.Callback] = (), loggers: Sequence[Logger] = ()) -> pl.Trainer:
        """Return the Trainer of the run, with further callbacks and loggers; ``metrics.csv`` is always written.

        Raises:
            UsageError: The run that would be resumed is another, or Lightning refuses an argument.
        """
        self.saved()
        saver = Saver(self.last, self.save_every, self.log, self.identity, self.guard)
        given = {key: value for key, value in self.trainer.items() if key != "max_time"}
        defaults: dict[str, Any] = {
            "max_epochs": -1 if self.steps else self.epochs,
            "max_steps": self.steps or -1,
            "plugins": [AtomicCheckpoints()],
            "callbacks": [self.guard, *callbacks, saver],
            "log_every_n_steps": self.log_every,
            "benchmark": not self.trainer.get("deterministic"),
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        }
        trainer = build_trainer(given, defaults, [self.log, *loggers], self.folder)
        if isinstance(trainer.strategy, DDPStrategy):
            # set here, since only the Trainer knows whether there are several processes
            # longer than the guard's timeout, which raises an exception first: NCCL kills the process
            trainer.strategy._timeout = timedelta(seconds=self.timeout + NCCL_GRACE)
            # Lightning's own check for SIGTERM waits for the device in each step; the guard's does not
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
            # queues are equal on all processes and batch norm saves the first one's statistics: nothing to send
            trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
        return trainer

    def total_steps(self, trainer: pl.Trainer, batches: DataLoader[Any]) -> int:
        """Return the optimizer steps of the whole training."""
        return self.steps or self.epochs * math.ceil(len(batches) / trainer.accumulate_grad_batches)

    @_quiet()
    def fit(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        batches: DataLoader[Any],
        validation: DataLoader[Any] | None,
        message: str,
    ) -> dict[str, float] | None:
        """Train, or resume the run in the folder.

        Args:
            trainer: The value of ``trainer_for``.
            module: Its ``total_steps`` is set here.
            batches: For training, with an EpochOrder as sampler.
            validation: Batches to validate with, or None.
            message: Printed when training starts.

        Returns:
            On the first process and if all steps are done, the last value of each metric with ``epochs`` and
            ``steps``; else None.

        Raises:
            UserError: The run cannot start, or failed; the last good checkpoint is kept.
            Stopped: By a signal.
            KeyboardInterrupt: By a second signal.
        """
        first = trainer.is_global_zero
        module.total_steps = total_steps = self.total_steps(trainer, batches)  # type: ignore[assignment]
        with locked(self.folder) if first else nullcontext():
            saved = self.saved()  # again: another process may have trained until now
            if first:
                if self.overwrite:
                    remove_files(self.folder, self.files)
                self.last.parent.mkdir(parents=True, exist_ok=True)
                remove_stale(self.last, *(self.folder / name for name in self.files))
                if self.config_text:
                    with atomic_path(self.folder / "config.yaml") as temporary:
                        temporary.write_text(self.config_text)
                print(message)
            step = 0
            if saved:
                step = saved.step
                batches.sampler.resume(saved.epoch, saved.batches)  # type: ignore[attr-defined]
                if first:
                    print(f"resuming from {self.last}, step {step}")
            self.log.forget_from(step + 1 if saved else 0)
            # Lightning converts the module once the checkpoint is loaded, which would cut float64 weights to float32
            trainer.precision_plugin.convert_module(module)
            with self._failures(trainer), self.guard.listening(), ended_with(batches, validation):
                trainer.fit(module, batches, validation, ckpt_path=self.last if saved else None, weights_only=True)
        return self._result(trainer, total_steps)

    @contextmanager
    def _failures(self, trainer: pl.Trainer) -> Iterator[None]:
        """Turn failures into one sentence, and terminate the processes that Lightning started."""
        hook = threading.excepthook
        # TensorBoard's writer thread passes its errors on to this thread
        threading.excepthook = lambda a: None if issubclass(a.exc_type, OSError) else hook(a)
        try:
            yield
        except Interrupted:
            raise KeyboardInterrupt from None
        except UserError:
            raise
        except OSError as error:
            check_folder(self.folder)
            name = os.fsdecode(error.filename or self.folder)
            raise UserError(f"cannot read or write {name} ({error.strerror or error}); {self._rest()}") from error
        except torch.OutOfMemoryError as error:
            raise UserError(f"the GPU ran out of memory; {self.out_of_memory()}; {self._rest()}") from error
        except RuntimeError as error:
            if sentence := known_failure(error, trainer.world_size, self.timeout):
                raise UserError(f"{sentence}; {self._rest()}") from error
            raise
        finally:
            threading.excepthook = hook
            kill = getattr(trainer.strategy.launcher, "kill", None)
            if trainer.interrupted and kill:
                kill(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _rest(self) -> str:
        """Describe the saved progress."""
        if not self.kept:
            return "without --out nothing was kept"
        if self.last.exists():
            return f"{self.last} is kept and the same command resumes it"
        return "no checkpoint was written yet"

    def _result(self, trainer: pl.Trainer, total_steps: int) -> dict[str, float] | None:
        if not trainer.is_global_zero:
            return None
        if self.guard.signal:
            name = signal.Signals(self.guard.signal).name
            raise Stopped(f"stopped by {name} after step {trainer.global_step}; {self._rest()}", self.guard.signal)
        if trainer.global_step < total_steps:
            print(f"stopped after step {trainer.global_step} of {total_steps}; {self._rest()}")
            return None
        return {"epochs": trainer.current_epoch, "steps": trainer.global_step, **self.log.latest()}
