"""Features of a frozen backbone over an image set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from moco_plugin.data.images import CorruptImages, ImageSet, LabelledImages
from moco_plugin.data.normalize import normalize
from moco_plugin.data.views import evaluation_transform


@dataclass
class View:
    """How images are shown to a frozen network: side in pixels, share kept by the centre crop, mean and std."""

    image_size: int
    crop_ratio: float
    mean: list[float]
    std: list[float]


def _keep_whole(samples: list[tuple[Any, int, str]]) -> tuple[Tensor | None, Tensor, list[str]]:
    images = [image for image, _, _ in samples if image is not None]
    labels = [label for image, label, _ in samples if image is not None]
    corrupt = [name for _, _, name in samples if name]
    return torch.stack(images) if images else None, torch.tensor(labels, dtype=torch.int64), corrupt


@torch.no_grad()
def extract_features(
    backbone: nn.Module, images: ImageSet, view: View, *, device: torch.device | str = "cpu",
    batch_size: int = 256, workers: int = 0, progress: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Runs a network in eval mode over a set; corrupt images are named and left out.

    Args:
        backbone: Maps N x 3 x H x W normalised images to N x D features. Its mode is restored afterwards.
        images: The set.
        view: How to show its images.
        progress: Label of a progress bar; None shows none.

    Returns:
        L2-normalised float32 features (N x D) and labels (N, -1 without labels), on the CPU.
    """
    dataset = LabelledImages(images, evaluation_transform(view.image_size, view.crop_ratio))
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_keep_whole)
    corrupt = CorruptImages(len(images))
    mode = backbone.training
    backbone.eval()
    features, labels = [], []
    for batch, batch_labels, names in tqdm(loader, desc=progress, disable=progress is None, leave=False):
        corrupt.add(names)
        if batch is not None:
            batch = normalize(batch.to(device), view.mean, view.std)
            features.append(F.normalize(backbone(batch).float(), dim=1).cpu())
            labels.append(batch_labels)
    backbone.train(mode)
    return torch.cat(features), torch.cat(labels)
