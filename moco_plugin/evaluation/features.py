"""Features of a frozen backbone over an image set: in memory, or on disk where they are many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from moco_plugin.data.datasets import CorruptImages, LabelledImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import loader_processes
from moco_plugin.data.normalize import View, normalize
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import UserError
from moco_plugin.evaluation.feature_file import FeatureFile

IN_MEMORY = 512 << 20  # bytes of features; those of a larger set go to disk where that is allowed


@dataclass
class FeatureSet:
    """Features of a set.

    Attributes:
        features: float32, N x D, on the CPU or on disk.
        labels: int64, N, -1 without labels.
        numbers: int64, N: which images of the set these are, since corrupt ones are left out.
    """

    features: Tensor | FeatureFile
    labels: Tensor
    numbers: Tensor

    def in_memory(self) -> Tensor:
        """Return the features of a set that was not put on disk."""
        assert isinstance(self.features, Tensor)
        return self.features


def keep_whole(samples: list[tuple[Any, int, str]]) -> tuple[Tensor | None, Tensor, Tensor, list[str]]:
    """Collate LabelledImages: images (None if all are corrupt), their labels and places, names of corrupt ones."""
    places = [place for place, (image, _, _) in enumerate(samples) if image is not None]
    images = [samples[place][0] for place in places]
    labels = torch.tensor([samples[place][1] for place in places], dtype=torch.int64)
    corrupt = [name for _, _, name in samples if name]
    return torch.stack(images) if images else None, labels, torch.tensor(places, dtype=torch.int64), corrupt


def _stream(
    backbone: nn.Module,
    images: ImageSet,
    view: View,
    indices: Sequence[int] | None,
    normalized: bool,
    device: torch.device | str,
    batch_size: int,
    workers: int,
    progress: str | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield features, labels and numbers, a batch at a time."""
    shown = images.decoded_for(view.value_range, view.channels)
    dataset: Dataset[Any] = LabelledImages(shown, evaluation_transform(view.image_size, view.crop_ratio))
    numbers = torch.arange(len(images)) if indices is None else torch.as_tensor(indices)
    if indices is not None:
        dataset = Subset(dataset, indices)
    loader = DataLoader(dataset, batch_size, num_workers=loader_processes(workers), collate_fn=keep_whole)
    corrupt = CorruptImages(len(numbers))
    mode = backbone.training
    dtype = next((p.dtype for p in backbone.parameters()), torch.float32)
    backbone.eval()
    batches = tqdm(loader, desc=progress, disable=progress is None, leave=False)
    for part, (batch, labels, places, names) in zip(numbers.split(batch_size), batches, strict=True):
        corrupt.add(names)
        if batch is not None:
            with torch.no_grad():
                features = backbone(normalize(batch.to(device), view.mean, view.std).to(dtype)).float()
            yield (F.normalize(features, dim=1) if normalized else features).cpu(), labels, part[places]
    backbone.train(mode)


def extract_feature_set(
    backbone: nn.Module,
    images: ImageSet,
    view: View,
    *,
    indices: Sequence[int] | None = None,
    normalized: bool = True,
    disk: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    progress: str | None = None,
) -> FeatureSet:
    """Run a network in eval mode over a set; corrupt images are named and left out.

    Args:
        backbone: Maps N x C x H x W normalised images to N x D features. Its mode is restored afterwards.
        images: The set.
        view: How to show its images.
        indices: Which images; None for all.
        normalized: Divide each feature by its L2 norm.
        disk: Put features of more than IN_MEMORY bytes into a temporary file.
        progress: Label of a progress bar; None shows none.
    """
    parts = _stream(backbone, images, view, indices, normalized, device, batch_size, workers, progress)
    count = len(images) if indices is None else len(indices)
    file: FeatureFile | None = None
    features: list[Tensor] = []
    labels: list[Tensor] = []
    numbers: list[Tensor] = []
    for part in parts:
        if file is None and disk and not features and 4 * count * part[0].shape[1] > IN_MEMORY:
            file = FeatureFile()
        if file is not None:
            file.append(part[0])
        else:
            features.append(part[0])
        labels.append(part[1])
        numbers.append(part[2])
    if not labels:
        raise UserError(f"none of the {count} images of {images.spec} can be decoded")
    return FeatureSet(file or torch.cat(features), torch.cat(labels), torch.cat(numbers))
