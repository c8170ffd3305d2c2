"""Training callbacks of every run: time limit, signals, non-finite losses, checkpoints."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, Timer

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


class TimeLimit(Timer):
    """Lightning's Timer, counting from the start of each command: a resumed run has the full time again."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if stepped(trainer, trainer.fit_loop.batch_idx):
            super().on_train_batch_end(trainer, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Guard(pl.Callback):
    """Stops all processes at the same step: cleanly after a signal, with an error if the loss is not finite."""

    def __init__(self) -> None:
        self.signal = 0
        self.handlers: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block; ignored ones (nohup) stay ignored."""
        try:
            self._install()
            yield
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            self.handlers = {}

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN and before != self._note:
                self.handlers.setdefault(number, before)
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise Interrupted
        self.signal = number
        name = signal.Signals(number).name
        print(f"\n{name}: stopping after this step; a second signal stops at once", file=sys.stderr, flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install()  # Lightning has put its own SIGTERM handler around ours

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        flags = torch.stack([loss.new_tensor(float(self.signal)), 1 - loss.detach().isfinite().to(loss.dtype)])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        number, bad = flags.tolist()
        if bad:
            raise not_finite(trainer, "the loss is")
        if number and stepped(trainer, batch_idx):
            self.signal = int(number)
            trainer.should_stop = True


def not_finite(trainer: pl.Trainer, what: str) -> UserError:
    """Return the error of a training that diverged."""
    return UserError(
        f"{what} not finite at step {trainer.global_step} (epoch {trainer.current_epoch + 1}); the last good "
        "checkpoint was kept: lower optimizer.lr, or use trainer.precision=32-true or bf16-mixed, and start again"
    )


class Saver(Checkpoint):
    """Writes ``last.ckpt`` at the end of each epoch, every so many steps within one, and when the run is stopped.

    Args:
        path: The file.
        every: Steps between two checkpoints within an epoch.
        csv_log: Written with each checkpoint, so that a run killed later resumes with all its rows.
        identity: Kept in the checkpoint, to be compared when the run resumes.
    """

    def __init__(self, path: Path, every: int, csv_log: CSVLog, identity: Identity) -> None:
        self.path, self.every, self.csv_log, self.identity = path, every, csv_log, identity

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
        """Write the checkpoint, unless a weight is not finite."""
        weights = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        if not torch.stack([w.isfinite().all() for w in weights]).all():
            raise not_finite(trainer, "a weight is")
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
