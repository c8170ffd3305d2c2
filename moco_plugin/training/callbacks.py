"""What watches a run: throughput, corrupt images, the kNN monitor, signals and losses, checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, Timer

from moco_plugin.config import PretrainConfig
from moco_plugin.data.images import CorruptImages, ImageSet, check_labels
from moco_plugin.errors import UsageError, UserError
from moco_plugin.evaluation.features import View, extract_features
from moco_plugin.evaluation.knn import knn_top1
from moco_plugin.files import atomic_path
from moco_plugin.training.logs import CSVLog

# SIGUSR1: what SLURM is asked to send before its limit
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Throughput(pl.Callback):
    """Logs ``images_per_second`` over all processes since the last logged step, monitoring left out."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.steps, self.start = 0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps, self.start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.steps += 1
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rate = self.steps * self.batch_size / (time.perf_counter() - self.start)
            pl_module.log("images_per_second", rate, prog_bar=True)
            self.steps, self.start = 0, time.perf_counter()


class CorruptImageWatch(pl.Callback):
    """Names corrupt images as they come by; stops the run at more than 1% of the set."""

    def __init__(self, total: int) -> None:
        self.corrupt = CorruptImages(total)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int
    ) -> None:
        self.corrupt.add(batch[1])


class KNNMonitor(pl.Callback):
    """Logs ``knn_top1`` of the backbone or the query encoder before training and every few epochs.

    Raises:
        UsageError: A set has no labels, the two have different classes, or unknown features.
    """

    def __init__(self, config: PretrainConfig) -> None:
        knn, data = config.knn, config.data
        self.knn = knn
        self.train, self.test = ImageSet(str(knn.train)), ImageSet(str(knn.test))
        check_labels(self.train, self.test)
        if knn.features not in ("backbone", "encoder"):
            raise UsageError(f"knn.features is {knn.features!r}; expected backbone or encoder")
        self.view = View(data.image_size, data.crop_ratio, data.mean, data.std)

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures and logs on the first process; the others wait."""
        if trainer.is_global_zero:
            method = pl_module.method
            network = method.encoder_q if self.knn.features == "encoder" else method.backbone
            sets: list[torch.Tensor] = []
            for images, name in ((self.train, "kNN train"), (self.test, "kNN test")):
                sets += extract_features(network, images, self.view, device=pl_module.device, progress=name)
            top1 = knn_top1(
                sets[0],
                sets[1],
                sets[2],
                sets[3],
                k=min(self.knn.k, len(sets[0])),
                temperature=self.knn.temperature,
            )
            trainer.callback_metrics["knn_top1"] = torch.tensor(top1)
            for logger in trainer.loggers:
                logger.log_metrics({"knn_top1": top1}, step=trainer.global_step)
            print(f"\nkNN top-1 after {trainer.global_step} steps: {top1:.2f}%", flush=True)
        trainer.strategy.barrier()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if mid_epoch(trainer):  # asked to stop
            return
        if epoch % self.knn.every == 0 or epoch == trainer.max_epochs:
            self.measure(trainer, pl_module)


def mid_epoch(trainer: pl.Trainer) -> bool:
    """Tells whether batches of this epoch are still to come."""
    return trainer.fit_loop.batch_idx + 1 < trainer.num_training_batches


class TimeLimit(Timer):
    """Lightning's Timer, counting from the start of each command, so that a resumed run has its time anew."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Guard(pl.Callback):
    """Stops all processes at the same step: cleanly after a signal, with an error at a loss that is no number."""

    def __init__(self) -> None:
        self.signal = 0
        self.handlers: dict[int, Any] = {}

    def _note(self, number: int, frame: Any) -> None:
        if self.signal:  # asked twice
            raise KeyboardInterrupt
        self.signal = number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        flags = torch.stack(
            [loss.new_tensor(float(self.signal)), 1 - loss.detach().isfinite().to(loss.dtype)]
        )
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        number, bad = flags.tolist()
        if bad:
            raise not_finite(trainer, "the loss is")
        if number:
            self.signal = int(number)
            trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def not_finite(trainer: pl.Trainer, what: str) -> UserError:
    """Returns the error of a training that has gone out of bounds."""
    return UserError(
        f"{what} not a finite number at step {trainer.global_step} (epoch {trainer.current_epoch + 1}); the last good "
        "checkpoint was kept: lower optimizer.lr, or use trainer.precision=32-true or bf16-mixed, and start again"
    )


class Saver(Checkpoint):
    """Writes ``last.ckpt`` at the end of each epoch, every so many steps within one, and when asked to stop.

    Args:
        path: The file.
        every: Steps between two checkpoints within an epoch.
        csv_log: Written along, so that a run killed later goes on with all its rows.
    """

    def __init__(self, path: Path, every: int, csv_log: CSVLog) -> None:
        self.path, self.every, self.csv_log = path, every, csv_log

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps
        if mid_epoch(trainer) and stepped and (due or trainer.should_stop):
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not mid_epoch(trainer):
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the checkpoint, unless the weights are no numbers any more."""
        weights = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        if not torch.stack([w.isfinite().all() for w in weights]).all():
            raise not_finite(trainer, "a weight is")
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            # Lightning logs a step after its callbacks: a run killed in between would lack that row
            row = {name: float(value) for name, value in trainer.logged_metrics.items()}
            self.csv_log.log_metrics({**row, "epoch": trainer.current_epoch}, trainer.global_step - 1)
        self.csv_log.write()
        trainer.save_checkpoint(self.path, weights_only=False)  # optimizer, loops and all


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their place, then moves them there: a broken-off one is never found."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
