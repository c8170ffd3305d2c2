"""Pairs of views for custom training loops."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from moco_plugin.data.datasets import CorruptImages, TrainImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import training_loader_options
from moco_plugin.data.normalize import normalize
from moco_plugin.data.order import EpochOrder
from moco_plugin.data.views import Views
from moco_plugin.errors import UsageError


class PairLoader:
    """Batches of two views of each image: float32, N x 3 x H x W, normalised, in a new order in each epoch.

    The last incomplete batch is dropped. An image that cannot be decoded is reported and replaced by the next one.

    Args:
        images: A folder, a list, shards, a zip archive or an idx images file; [start:stop] takes a part.
        batch_size: Images per batch, at most the number of images.
        image_size: Side of a view in pixels.
        views: "moco_v1", "moco_v2" or "moco_v3".
        workers: Loader processes; -1 uses the available cores.
        seed: Random seed of the order and the views.
        device: Device of the batches.
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        **view_args: Arguments of lightly's transforms that differ from the paper's.

    Raises:
        UsageError: The images do not exist or are too few, or an argument is unknown.
    """

    def __init__(
        self,
        images: str,
        batch_size: int,
        image_size: int = 224,
        *,
        views: str = "moco_v2",
        workers: int = 0,
        seed: int = 0,
        device: str | torch.device = "cpu",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **view_args: Any,
    ) -> None:
        self.images = ImageSet(images)
        if not 0 < batch_size <= len(self.images):
            raise UsageError(
                f"batch_size is {batch_size} and {images} contains {len(self.images)} images; choose a smaller one"
            )
        self.views = Views(views, image_size, **view_args)
        self.device, self.mean, self.std = device, mean, std
        self.order = EpochOrder(len(self.images), seed, batch_size)
        self.corrupt = CorruptImages(len(self.images))
        self.loader: DataLoader[Any] = DataLoader(
            TrainImages(self.images, self.views, seed),
            batch_size,
            sampler=self.order,
            collate_fn=self.views.collate,
            drop_last=True,
            **training_loader_options(workers),
        )

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for arrays, plans, corrupt in self.loader:
            self.corrupt.add(corrupt)
            views = self.views.finish([array.to(self.device) for array in arrays], plans)
            yield [normalize(view.permute(0, 3, 1, 2), self.mean, self.std) for view in views]
        self.order.set_epoch(self.order.epoch + 1)
