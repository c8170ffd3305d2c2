"""The LightningModule: a method, its optimizer and its schedule."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from moco_plugin.backbones import breaks_channels_last, check_features, create_backbone
from moco_plugin.data.normalize import normalize
from moco_plugin.data.order import seed_of
from moco_plugin.data.views import Views
from moco_plugin.methods import METHODS, MoCoV3, build_method
from moco_plugin.pretraining.config import PretrainConfig, config_dict, image_channels
from moco_plugin.pretraining.weights import start_from
from moco_plugin.runs.logs import log_step
from moco_plugin.runs.optimizers import build_optimizer, scaled_lr
from moco_plugin.runs.schedules import lr_schedule, with_schedule


def accumulation(config: PretrainConfig) -> int:
    """Return how many batches' gradients make one optimizer step."""
    return int(config.trainer.get("accumulate_grad_batches", 1))


def starting_lr(config: PretrainConfig) -> float:
    """Return the learning rate at the start, for the images of an optimizer step."""
    images = config.data.batch_size * accumulation(config)
    return scaled_lr(config.optimizer, images)


class PretrainModule(pl.LightningModule):
    """Trains a method on batches of views.

    A batch is what ``Views.collate`` returns.

    Args:
        config: The run.

    Attributes:
        total_steps: Optimizer steps of the whole training; set before it starts.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.total_steps = 0
        self.save_hyperparameters({"config": config_dict(config)}, logger=False)
        image_size = config.data.image_size
        backbone = create_backbone(config.backbone, image_size=image_size, **config.backbone_args)
        dim = check_features(backbone, config.backbone, image_size, image_channels(config))
        if config.weights:
            start_from(backbone, config)
        own = dict(config.method_args)
        on_gpu = config.trainer.get("accelerator", "auto") not in ("cpu", "mps")
        if issubclass(METHODS.get(config.method), MoCoV3) and own.get("batch_norm", "auto") == "auto" and not on_gpu:
            own["batch_norm"] = "plain"  # auto depends on whether the machine has a GPU
        self.method = build_method(config.method, backbone, dim, **own)
        self.method.even_batches = True  # the loader drops a last smaller batch
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.method.to(memory_format=self.layout)
        if config.compile:
            for network in self.method.modules_to_compile():
                network.compile()
        self.schedule = lr_schedule(config.schedule)
        channels, arguments = image_channels(config), config.data.view_args
        self.views = Views(views_name(config), image_size, config.views.engine, channels=channels, **arguments)
        for name, values in (("mean", config.data.mean), ("std", config.data.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        self.copies: Any = None  # the stream on which batches are copied to a GPU

    def choose_layout(self, device: torch.device) -> str:
        """Switch channels-last off where torch cannot train it on a device; return a sentence if so."""
        layer = breaks_channels_last(self.method)
        if device.type != "cpu" or self.layout is torch.contiguous_format or not layer:
            return ""
        self.layout = torch.contiguous_format
        self.method.to(memory_format=self.layout)
        return f"channels_last is off: torch's CPU convolutions fail in this layout at {layer}"

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed each step by its number, so that a resumed run draws the same random numbers."""
        trainer = self.trainer
        step = trainer.fit_loop.batch_idx + 1  # within the epoch
        self.method.seed_step(seed_of(self.config.seed, trainer.current_epoch, step))
        torch.manual_seed(seed_of(self.config.seed, trainer.current_epoch, step, self.global_rank))
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch to the device; on a GPU in a separate stream, which overlaps with the previous step."""
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self.copies = self.copies or torch.cuda.Stream(device)
        with torch.cuda.stream(self.copies):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        current = torch.cuda.current_stream(device)
        current.wait_stream(self.copies)
        tree_map_only(Tensor, lambda tensor: tensor.record_stream(current), batch)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish the views and normalize them, on the training device."""
        arrays, plans, corrupt = batch
        finished = self.views.finish(arrays, plans)
        views = [normalize(view.permute(0, 3, 1, 2), self.mean, self.std) for view in finished]  # type: ignore[arg-type]
        return [view.to(self.dtype).contiguous(memory_format=self.layout) for view in views], corrupt

    def training_step(self, batch: tuple[list[Tensor], list[str]], batch_idx: int) -> Tensor:
        """Run one step of the method; log its metrics."""
        (im_q, im_k), _ = batch
        progress = self.trainer.global_step / self.total_steps
        first = batch_idx % accumulation(self.config) == 0
        loss, metrics = self.method(im_q, im_k, progress, update_key_encoder=first)
        log_step(self, {**metrics, "loss": loss.detach()})
        return cast(Tensor, loss)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the trained parameters, and the learning rate schedule."""
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = build_optimizer(self.config.optimizer, parameters, starting_lr(self.config))
        return with_schedule(optimizer, self.config.schedule, self.schedule, self.total_steps)


def views_name(config: PretrainConfig) -> str:
    """Return the name of the views, with "auto" resolved to those of the method."""
    return METHODS.get(config.method).views if config.data.views == "auto" else config.data.views
