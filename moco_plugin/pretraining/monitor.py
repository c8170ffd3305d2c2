"""Callbacks that monitor pre-training: throughput, corrupt images, kNN accuracy."""

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.utils import make_grid

from moco_plugin.data.datasets import CorruptImages, check_labels
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import loader_processes
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError, duration
from moco_plugin.evaluation.features import FeatureSet, extract_feature_set, own_share
from moco_plugin.evaluation.knn import baseline, default_k, knn_accuracy
from moco_plugin.evaluation.subject import pixel_view
from moco_plugin.methods.distributed import all_gather, batch_sizes
from moco_plugin.pretraining.config import PretrainConfig
from moco_plugin.runs.callbacks import mid_epoch

TAGS = {
    "loss": "train/loss",
    "top1": "train/contrast_top1",
    "top5": "train/contrast_top5",
    "feature_std": "features/standard_deviation",
    "knn_top1": "features/knn_top1",
    "lr": "optimizer/learning_rate",
    "images_per_second": "speed/images_per_second",
}
"""TensorBoard's tags of the metrics in ``metrics.csv``."""
TIMED, WARM_UP = 3, 1  # batches timed for the estimate of the duration; warm-up batches among them


class Throughput(pl.Callback):
    """Logs ``images_per_second`` over all processes since the last logged step, without the time of monitoring.

    After its first steps it says how long the rest takes.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.steps, self.start = 0, 0.0
        self.first: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps, self.start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.steps += 1
        if len(self.first) < TIMED:
            self.first.append(time.perf_counter())
            if len(self.first) == TIMED and trainer.is_global_zero:
                step = (self.first[-1] - self.first[WARM_UP]) / (TIMED - 1 - WARM_UP)
                steps = int(pl_module.total_steps) - trainer.global_step  # type: ignore[arg-type]
                batches = steps * trainer.accumulate_grad_batches
                print(f"\nabout {duration(step * batches)} to go, {step:.2g} s per batch", flush=True)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rate = self.steps * self.batch_size / (time.perf_counter() - self.start)
            pl_module.log("images_per_second", rate)
            self.steps, self.start = 0, time.perf_counter()


class GroupedTensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger with the metrics of pre-training in groups; ``metrics.csv`` has their plain names."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({TAGS.get(name, name): value for name, value in metrics.items()}, step)


class ViewPairs(pl.Callback):
    """Shows the pairs of views of a run's first batch in TensorBoard."""

    def __init__(self, config: PretrainConfig, count: int = 8) -> None:
        self.config, self.count = config, count

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int) -> None:
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if trainer.global_step or i or board is None or not trainer.is_global_zero:
            return
        data = self.config.data
        mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
        pairs = torch.stack([view[: self.count].float().cpu() for view in batch[0]], dim=1).flatten(0, 1)
        shown = (pairs * std + mean).clamp(0, 1)
        shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1]
        board.experiment.add_image("views/pairs", make_grid(shown, nrow=2), 0)


class CorruptImageWatch(pl.Callback):
    """Names each corrupt image once; stops the run at more than 1% of the set."""

    def __init__(self, total: int) -> None:
        self.corrupt = CorruptImages(total)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int) -> None:
        self.corrupt.add(batch[1])


class KNNMonitor(pl.Callback):
    """Logs ``knn_top1`` of the backbone or the query encoder before training and every few epochs.

    Raises:
        UsageError: A set has no labels, the two have different classes, or ``knn.features`` is unknown.
    """

    def __init__(self, config: PretrainConfig) -> None:
        knn, data = config.knn, config.data
        self.knn = knn
        self.train, test = (ImageSet(str(root)) for root in (knn.train, knn.test))
        self.test = check_labels(self.train, test)
        if knn.features not in ("backbone", "encoder"):
            raise UsageError(f"knn.features is {knn.features!r}; expected backbone or encoder")
        self.workers = loader_processes(data.workers)
        self.view = View(data.image_size, data.crop_ratio, data.mean, data.std, data.value_range)

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluate on all processes, each on its share of the images; the first process logs."""
        method = pl_module.method
        network = method.encoder if self.knn.features == "encoder" else method.backbone
        if trainer.world_size > 1:
            for buffer in network.buffers():  # running statistics differ; those of the first process are saved
                torch.distributed.broadcast(buffer, 0)
        top1, k, labels = self._accuracy(trainer, network, self.view)
        if trainer.global_step == 0:
            self.pixels = self._accuracy(trainer, nn.Flatten(), pixel_view(self.view))[0]
        trainer.callback_metrics["knn_top1"] = torch.tensor(top1)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics({"knn_top1": top1}, step=trainer.global_step)
        pixels = f"raw pixels {self.pixels:.2f}%, " if trainer.global_step == 0 else ""
        compared = f"{pixels}{baseline(labels)}"
        print(f"\nkNN top-1 after {trainer.global_step} steps: {top1:.2f}% (k {k}; {compared})", flush=True)

    def _accuracy(self, trainer: pl.Trainer, network: nn.Module, view: View) -> tuple[float, int, Tensor]:
        """Return the accuracy in percent, k, and the labels of the test images."""
        device = trainer.strategy.root_device
        shares = []
        for images, name in ((self.train, "kNN train"), (self.test, "kNN test")):
            progress = name if trainer.is_global_zero else None
            share, workers = own_share(len(images)), 0 if images.array is not None else self.workers
            options: dict[str, Any] = {"device": device, "workers": workers, "progress": progress}
            shares.append(extract_feature_set(network, images, view, indices=share, disk=True, **options))
        train, test = shares
        sizes = batch_sizes(test.labels.to(device))
        features, labels = (all_gather(part.to(device), sizes) for part in (test.features, test.labels))
        sizes = batch_sizes(train.labels.to(device))
        bank = all_gather(train.labels.to(device), sizes)
        k = default_k(bank) if self.knn.k is None else min(self.knn.k, len(bank))
        whole = FeatureSet(features, labels, labels)
        return knn_accuracy(train, whole, [k], self.knn.temperature, device=device)[k], k, labels

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if mid_epoch(trainer):  # the run is being stopped
            return
        if epoch % self.knn.every == 0 or epoch == trainer.max_epochs:
            self.measure(trainer, pl_module)
