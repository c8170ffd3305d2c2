"""Training callbacks of every run: time limit, signals, non-finite losses, checkpoints."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, Timer, TQDMProgressBar
from torch import Tensor

from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path
from moco_plugin.runs.logs import CSVLog, check_folder
from moco_plugin.runs.run_folder import Identity

# SIGUSR1 is what SLURM can be asked to send before a time limit; Windows has neither it nor SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A second signal: stop at once. Lightning ends the process itself on a KeyboardInterrupt."""


def mid_epoch(trainer: pl.Trainer) -> bool:
    """Return whether batches of this epoch are still to come."""
    return trainer.fit_loop.batch_idx + 1 < trainer.num_training_batches


def stepped(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether an optimizer step ended with this batch; checkpoints are written and runs stopped only there."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or not mid_epoch(trainer)


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, which reads values at logging steps only, since reading waits for the device."""

    SHOWN = ("loss", "images_per_second")

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            logged = trainer.logged_metrics
            self.values |= {name: f"{float(logged[name]):.4g}" for name in self.SHOWN if name in logged}
        return self.values


class LateFlag:
    """A boolean on a device that is read one step late, so that nothing waits for the device."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.step = 0
        self.copied: torch.cuda.Event | None = None

    def put(self, value: Tensor, step: int) -> None:
        """Start copying the value of a step to the host."""
        on_gpu = value.device.type == "cuda"
        self.value, self.step = value.to("cpu", non_blocking=on_gpu), step
        if on_gpu:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def take(self) -> int:
        """Forget the value; return its step if it is true, else -1."""
        value, self.value = self.value, None
        if value is not None and self.copied:
            self.copied.synchronize()
        return self.step if value else -1


class Guard(pl.Callback):
    """Stops all processes at the same step: on a signal, at the time limit, or with an error if the loss is not finite.

    Processes agree over gloo on the CPU. A process that exited or does not respond raises an exception here, before NCCL
    aborts the others without a message.

    Args:
        limit: Time limit from the start of the command, in any form that Lightning's Timer accepts; None for no limit.
        timeout: Seconds that processes wait for each other.
    """

    def __init__(self, limit: Any = None, timeout: float = 1800.0) -> None:
        self.signal = 0
        self.handlers: dict[int, Any] = {}
        self.limit, self.timeout = Timer(limit), timeout
        self.bad = LateFlag()
        self.group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block; ignored ones (nohup) stay ignored."""
        try:
            self._install()
            yield
        finally:
            for signal_number, handler in self.handlers.items():
                signal.signal(signal_number, handler)
            self.handlers = {}

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signal_number in SIGNALS:
            before = signal.getsignal(signal_number)
            if before != signal.SIG_IGN and before != self._note:
                self.handlers.setdefault(signal_number, before)
                signal.signal(signal_number, self._note)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise Interrupted
        self.signal = signal_number
        name = signal.Signals(signal_number).name
        print(f"\n{name}: stopping after this step; a second signal stops at once", file=sys.stderr, flush=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self._is_late()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install()  # Lightning has put its own SIGTERM handler around ours
        self.limit.on_train_start(trainer, pl_module)
        if trainer.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        bad = -1 if loss.device.type == "cpu" else self.bad.take()
        self.bad.put(~loss.isfinite(), trainer.global_step)
        bad = self.bad.take() if loss.device.type == "cpu" else bad
        signal_number, late, bad = self._over_processes(self.signal, self._is_late(), bad)
        self._refuse(trainer, bad)
        if (signal_number or late) and stepped(trainer, batch_idx):
            self.signal = signal_number
            trainer.should_stop = True

    def _is_late(self) -> bool:
        remaining = self.limit.time_remaining()
        return remaining is not None and remaining <= 0

    def settle(self, trainer: pl.Trainer) -> None:
        """Wait for the last loss before a checkpoint is written; raise UserError if it is not finite."""
        self._refuse(trainer, self._over_processes(self.bad.take())[0])

    def _refuse(self, trainer: pl.Trainer, bad: int) -> None:
        if bad >= 0:
            raise not_finite(trainer, "the loss is", bad)

    def _over_processes(self, *values: int) -> list[int]:
        """Return the maximum of each value over all processes."""
        if self.group is None:
            return list(values)
        flags = torch.tensor(values)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self.group)
        return cast(list[int], flags.tolist())


def not_finite(trainer: pl.Trainer, what: str, step: int) -> UserError:
    """Return the error of a training that diverged."""
    return UserError(
        f"{what} not finite at step {step} (epoch {trainer.current_epoch + 1}); the last good "
        "checkpoint was kept: lower optimizer.lr, or use trainer.precision=32-true or bf16-mixed, and start again"
    )


class Saver(Checkpoint):
    """Writes ``last.ckpt`` at the end of each epoch, every so many steps within one, and when the run is stopped.

    Args:
        path: The file.
        every: Steps between two checkpoints within an epoch.
        csv_log: Written with each checkpoint, so that a run killed later resumes with all its rows.
        identity: Kept in the checkpoint, to be compared when the run resumes.
        guard: Tracks whether the losses are finite.
    """

    def __init__(self, path: Path, every: int, csv_log: CSVLog, identity: Identity, guard: Guard) -> None:
        self.path, self.every, self.csv_log, self.identity, self.guard = path, every, csv_log, identity, guard

    def state_dict(self) -> dict[str, Any]:
        return self.identity.state()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps
        if mid_epoch(trainer) and stepped(trainer, batch_idx) and (due or trainer.should_stop):
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not mid_epoch(trainer):
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint unless the last loss or a weight is not finite."""
        self.guard.settle(trainer)
        weights = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        if not torch.stack([w.isfinite().all() for w in weights]).all():
            raise not_finite(trainer, "a weight is", trainer.global_step)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            # Lightning logs a step after its callbacks: a run killed in between would lack that row
            row = {name: float(value) for name, value in trainer.logged_metrics.items()}
            self.csv_log.log_metrics({**row, "epoch": trainer.current_epoch}, trainer.global_step - 1)
        self.csv_log.write()
        trainer.save_checkpoint(self.path, weights_only=False)  # with optimizer and loops


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        check_folder(Path(path).parent)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)
