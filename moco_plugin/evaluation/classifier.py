"""The LightningModule of a classifier on a backbone: linear on a frozen one, or fine-tuned with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from moco_plugin.data.datasets import CorruptImages, first_whole
from moco_plugin.data.images import ImageSet
from moco_plugin.data.normalize import View, normalize
from moco_plugin.data.order import EpochOrder, seed_of, seeded
from moco_plugin.evaluation.metrics import count_correct, scores
from moco_plugin.evaluation.protocols import ClassificationConfig
from moco_plugin.runs.logs import log_step
from moco_plugin.runs.optimizers import build_optimizer
from moco_plugin.runs.schedules import lr_schedule, with_schedule


def training_crop(image_size: int, min_scale: float) -> Callable[[Image.Image | Tensor], Tensor]:
    """Return the protocols' training view, uint8: a random crop of ``min_scale`` to 1 of the area, and a flip."""
    steps = [v2.RandomResizedCrop(image_size, scale=(min_scale, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    return cast(Callable[[Image.Image | Tensor], Tensor], v2.Compose(steps))


class TrainingCrops(Dataset[tuple[Tensor, int, str]]):
    """Images by position (see EpochOrder), which seeds the transform: (view, label, "" or a corrupt one's name).

    A corrupt image is replaced by the next one and its label.

    Args:
        images: A set with labels.
        indices: Which of its images.
        transform: Makes the view.
        seed: The run's.
    """

    def __init__(
        self, images: ImageSet, indices: Tensor, transform: Callable[[Image.Image | Tensor], Tensor], seed: int
    ) -> None:
        assert images.labels is not None
        self.images, self.transform, self.seed = images, transform, seed
        self.indices = indices.tolist()
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int, str]:
        candidates = (self.indices[(position + offset) % len(self)] for offset in range(len(self)))
        image: Image.Image | Tensor
        image, index, corrupt = first_whole(self.images.try_load, candidates)
        with seeded(self.seed, position):
            return self.transform(image), int(self.labels[index]), corrupt


class ClassifierModule(pl.LightningModule):
    """Trains a linear classifier on a backbone's features; a frozen backbone stays in eval mode and does not change.

    A training batch is (uint8 images N x C x H x W, labels, names of corrupt images); a test batch is what
    ``keep_whole`` makes.

    Args:
        backbone: Maps normalised images to N x D features.
        dim: D.
        classes: Number of classes.
        config: The protocol.
        lr: Learning rate at the start.
        view: Mean and standard deviation that the backbone was trained with.
        images: Sizes of the training and of the test set.

    Attributes:
        total_steps: Optimizer steps of the whole training; set before it starts.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        classes: int,
        config: ClassificationConfig,
        lr: float,
        view: View,
        images: tuple[int, int],
    ) -> None:
        super().__init__()
        self.config, self.lr, self.view, self.total_steps = config, lr, view, 0
        self.backbone = backbone
        self.fc = nn.Linear(dim, classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        backbone.requires_grad_(not config.frozen)
        self.strict_loading = not config.frozen
        self.schedule = lr_schedule(config.schedule)
        self.counts = torch.zeros(3, classes, dtype=torch.int64)
        self.corrupt_train, self.corrupt_test = map(CorruptImages, images)
        self.train()  # Lightning leaves modes as they are, and checkpoints are read in eval mode

    def train(self, mode: bool = True) -> ClassifierModule:
        """Set the mode; a frozen backbone stays in eval mode, since its batch norm must not use a batch's statistics."""
        super().train(mode)
        if self.config.frozen:
            self.backbone.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a frozen backbone out: its weights are in its own checkpoint."""
        if self.config.frozen:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("backbone.")}

    def logits(self, images: Tensor) -> Tensor:
        """Return N x classes logits of uint8 images."""
        images = normalize(images, self.view.mean, self.view.std)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            features = self.backbone(images)
        return cast(Tensor, self.fc(features))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed each training step by its index, so that a resumed run draws the same random numbers."""
        if self.trainer.training:
            step = self.trainer.fit_loop.batch_idx + 1
            torch.manual_seed(seed_of(self.config.seed, self.trainer.current_epoch, step, self.global_rank))
        return batch

    def training_step(self, batch: tuple[Tensor, Tensor, list[str]], batch_idx: int) -> Tensor:
        """Compute the cross-entropy of a batch; log it with its top-1 and the learning rate."""
        images, labels, names = batch
        self.corrupt_train.add(names)
        order = cast(DataLoader[Any], self.trainer.train_dataloader).sampler
        whole, own = cast(EpochOrder, order).counts(batch_idx)
        logits, labels = self.logits(images)[:own], labels[:own]  # padding does not count
        # the mean over processes, which DDP takes, is then the mean over the images of the whole batch
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") * self.trainer.world_size / whole
        right = (logits.argmax(dim=1) == labels).sum() * self.trainer.world_size / whole
        log_step(self, {"loss": loss, "train_top1": 100 * right})
        return loss

    def on_validation_epoch_start(self) -> None:
        """Broadcast the first process's batch norm statistics: the measured network is the saved one."""
        if self.trainer.world_size > 1:
            for buffer in self.backbone.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self.counts = torch.zeros_like(self.counts, device=self.device)

    def validation_step(self, batch: tuple[Tensor | None, Tensor, Tensor, list[str]], batch_idx: int) -> None:
        """Count correct predictions."""
        images, labels, _, names = batch
        self.corrupt_test.add(names)
        if images is not None:
            self.counts += count_correct(self.logits(images).float(), labels)

    def on_validation_epoch_end(self) -> None:
        """Log ``top1``, ``top5`` and ``mean_per_class`` over all processes' images."""
        counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")
        result = scores(cast(Tensor, counts).cpu())
        self.log_dict({name: value for name, value in asdict(result).items() if value is not None})

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the trained parameters, and the learning rate schedule."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = build_optimizer(self.config.optimizer, parameters, self.lr)
        return with_schedule(optimizer, self.config.schedule, self.schedule, self.total_steps)


def weights_digest(module: nn.Module) -> str:
    """Return a SHA-256 over all parameters and buffers of a module, names included."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
