"""The LightningModule: a method, its optimizer and its schedule."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import Tensor

from moco_plugin.backbones import create_backbone, feature_dim
from moco_plugin.config import PretrainConfig, ScheduleConfig, config_dict
from moco_plugin.data.batched_views import BatchedViews
from moco_plugin.data.normalize import normalize
from moco_plugin.data.order import seed_of
from moco_plugin.data.views import VIEWS, view_arguments
from moco_plugin.errors import UsageError
from moco_plugin.registry import build_method
from moco_plugin.training.optimizers import build_optimizer


def lr_schedule(schedule: ScheduleConfig) -> ParamScheduler:
    """Returns the factor on the learning rate as a function of the share of training done, 0 to 1.

    Raises:
        UsageError: Unknown schedule, milestones out of order, or a warm-up as long as all of training.
    """
    main = _main_schedule(schedule)
    warmup = schedule.warmup_epochs / max(schedule.epochs, 1)
    if not warmup:
        return main
    if not 0 < warmup < 1 or schedule.interval != "step":
        raise UsageError(
            f"schedule.warmup_epochs is {schedule.warmup_epochs}; expected fewer than the {schedule.epochs} epochs, "
            "and schedule.interval=step"
        )
    parts = [LinearParamScheduler(0.0, 1.0), main]
    return CompositeParamScheduler(parts, lengths=[warmup, 1 - warmup], interval_scaling=["rescaled"] * 2)


def _main_schedule(schedule: ScheduleConfig) -> ParamScheduler:
    if schedule.name == "cosine":
        return CosineParamScheduler(1.0, 0.0)
    if schedule.name == "constant":
        return ConstantParamScheduler(1.0)
    if schedule.name == "step":
        milestones = schedule.milestones
        if milestones != sorted(set(milestones)) or not all(0 < m < schedule.epochs for m in milestones):
            raise UsageError(
                f"schedule.milestones are {milestones}; expected rising epochs between 0 and {schedule.epochs}"
            )
        values = [schedule.gamma**i for i in range(len(milestones) + 1)]
        return MultiStepParamScheduler(values, num_updates=schedule.epochs, milestones=milestones)
    raise UsageError(f"unknown schedule.name {schedule.name!r}; known are cosine, step, constant")


def scaled_lr(config: PretrainConfig) -> float:
    """Returns the learning rate for the batch at hand: linear in the batch, unless scale_lr is off."""
    optimizer = config.optimizer
    scale = config.data.batch_size / optimizer.reference_batch_size if optimizer.scale_lr else 1.0
    return optimizer.lr * scale


class PretrainModule(pl.LightningModule):
    """Trains a method on batches of views.

    A batch is ``(views, corrupt)``: two uint8 tensors N x 3 x H x W, or, where the views are made here, one
    tensor of uint8 images; and the names of corrupt images ("" for the others).
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.save_hyperparameters({"config": config_dict(config)})
        backbone = create_backbone(config.backbone, **config.backbone_args)
        self.method = build_method(config.method, backbone, feature_dim(backbone), **config.method_args)
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.method.to(memory_format=self.layout)
        self.schedule = lr_schedule(config.schedule)
        self.batched_views: BatchedViews | None = None
        if config.data.batched_views:
            name = views_name(config)
            arguments = view_arguments(name, config.data.image_size, **config.data.view_args)
            self.batched_views = BatchedViews(arguments, grey_first=name == "moco_v1")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seeds each step by its number, so that a resumed run draws what an uninterrupted one would have."""
        trainer = self.trainer
        step = trainer.fit_loop.batch_idx + 1  # within the epoch
        torch.manual_seed(seed_of(self.config.seed, trainer.current_epoch, step, self.global_rank))
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes the views (if not made yet) and normalises them, on the training device."""
        views, corrupt = batch
        if self.batched_views is not None:
            views = self.batched_views(views)
        data = self.config.data
        return [
            normalize(v, data.mean, data.std).contiguous(memory_format=self.layout) for v in views
        ], corrupt

    def training_step(self, batch: tuple[list[Tensor], list[str]], batch_idx: int) -> Tensor:
        """One step of the method; its metrics are logged."""
        (im_q, im_k), _ = batch
        progress = self.trainer.global_step / self.trainer.estimated_stepping_batches
        loss, metrics = self.method(im_q, im_k, progress)
        self.log_dict(metrics, sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return cast(Tensor, loss)

    def configure_optimizers(self) -> Any:
        """The optimizer over what takes a gradient, and the learning rate's schedule."""
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = build_optimizer(self.config.optimizer, parameters, scaled_lr(self.config))
        interval = self.config.schedule.interval
        if interval == "epoch":
            total = self.config.schedule.epochs
        elif interval == "step":
            total = int(self.trainer.estimated_stepping_batches)
        else:
            raise UsageError(f"schedule.interval is {interval!r}; expected epoch or step")
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: self.schedule(min(done / total, 1.0))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}


def views_name(config: PretrainConfig) -> str:
    """Returns the views' name, with "auto" resolved to the method's own."""
    if config.data.views != "auto":
        return config.data.views
    return config.method if config.method in VIEWS else "moco_v2"
