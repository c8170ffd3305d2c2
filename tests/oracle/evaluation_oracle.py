"""Evaluations as a reader would write them: images read by Pillow one at a time, features in float64, plain torch.

From the package come only the order of the images and the seed of each crop.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from moco_plugin.data.order import EpochOrder, seeded
from tests.oracle import evaluation_sets as sets

EPOCHS = 6  # of trainings; the learning rate falls before the last


def pixels(file: Path, network: str) -> Image.Image | Tensor:
    """Read an image: Pillow's RGB, or an array of four channels, scaled to 8 bits."""
    if network != "bands":
        return Image.open(file).convert("RGB")
    values = np.load(file)
    values = values if values.shape[0] == 4 else np.moveaxis(values, 2, 0)
    low, high = sets.RANGE
    return torch.from_numpy(np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8))


def normal(image: Image.Image | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return what the network takes of a view, 1 x C x H x W."""
    view = v2.functional.pil_to_tensor(image) if isinstance(image, Image.Image) else image
    mean, std = (torch.tensor(part[: len(view)], dtype=dtype)[:, None, None] for part in (sets.MEAN, sets.STD))
    return ((view.to(dtype) / 255 - mean) / std)[None]


def files_of(sources: dict[str, Any], split: str, kind: str = "") -> list[Path]:
    """Return the images of a set in its order."""
    folder = sources["folder"]
    root = {"": folder / split, "bands": folder / f"bands/{split}-npy", "several": folder / f"{split}-colours"}[kind]
    return sorted(path for path in root.rglob("*.*") if path.is_file())


def labels_of(files: Iterable[Path], root: int) -> Tensor:
    """Return the labels that the folders give which are so many levels above the files."""
    return torch.tensor([sets.CLASSES.index(int(file.parents[root].name)) for file in files])


@torch.no_grad()
def view_features(network: nn.Module, files: list[Path], ratio: float = sets.CROP, kind: str = "") -> Tensor:
    """Return the features of test views, N x D, one image at a time."""
    side = round(sets.SIDE / ratio)
    views = [v2.functional.center_crop(v2.functional.resize(pixels(f, kind), [side]), [sets.SIDE]) for f in files]
    return torch.cat([network.double()(normal(view)) for view in views])


def votes(bank: Tensor, queries: Tensor, labels: Tensor, k: int, temperature: float, same: bool = False) -> Tensor:
    """Return each class's share of the votes, M x C, of the k nearest by cosine similarity; labels are N x C."""
    similar = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    values, near = (similar.fill_diagonal_(-torch.inf) if same else similar).topk(k, dim=1)
    weights = (values / temperature).exp()
    return (weights[..., None] * labels[near]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracies in percent."""
    right = logits.argmax(dim=1) == labels
    five = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1)
    by_class = [float(right[labels == label].double().mean()) for label in labels.unique()]
    found = {"top1": float(right.double().mean()), "top5": float(five.double().mean())}
    return {name: 100 * value for name, value in (found | {"mean_per_class": float(np.mean(by_class))}).items()}


def trained(files: list[Path], labels: Tensor, kind: str, frozen: bool, lr: float, decay: float) -> dict[str, Any]:
    """Train a classifier as the papers do, batches of 16; return it, its network and the last loss."""
    network = sets.network(kind)  # float32: fine-tuning batch norm amplifies rounding
    torch.manual_seed(0)
    fc = nn.Linear(int(network.num_features), len(sets.CLASSES))
    nn.init.normal_(fc.weight, std=0.01)
    nn.init.zeros_(fc.bias)
    crop = v2.Compose([v2.RandomResizedCrop(sets.SIDE, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()])
    order = EpochOrder(len(files), 0, 16, drop_last=False)
    learned = [*fc.parameters(), *([] if frozen else network.parameters())]
    optimizer = torch.optim.SGD(learned, lr, momentum=0.9, weight_decay=decay)
    network.train(not frozen)
    loss = torch.zeros(())
    for epoch in range(EPOCHS):
        order.set_epoch(epoch)
        optimizer.param_groups[0]["lr"] = lr if epoch < EPOCHS - 1 else 0.1 * lr
        for batch in torch.tensor(list(order)).split(16):
            views = []
            for position in batch.tolist():
                with seeded(0, position):
                    views.append(normal(crop(pixels(files[position % len(files)], kind)), torch.float32))
            loss = F.cross_entropy(fc(network(torch.cat(views))), labels[batch % len(files)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"fc": fc, "network": network.eval(), "loss": loss.item()}


def fast_logits(features: Tensor, labels: Tensor, tests: Tensor, lr: float) -> Tensor:
    """Fit a linear classifier on standardised features, four epochs along a cosine; return the logits of the others."""
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    known, others = ((part - mean) / deviation.where(deviation > 1e-6, 1.0) for part in (features, tests))
    generator = torch.Generator().manual_seed(0)
    weight = (0.01 * torch.randn(known.shape[1], len(sets.CLASSES), generator=generator)).double().requires_grad_()
    bias = torch.zeros(len(sets.CLASSES)).double().requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr, momentum=0.9)
    steps = 4 * math.ceil(len(known) / 16)
    batches = (rows for _ in range(4) for rows in torch.randperm(len(known), generator=generator).split(16))
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        F.cross_entropy(known[rows] @ weight + bias, labels[rows]).backward()
        optimizer.step()
    return (others @ weight + bias).detach()


def features(sources: dict[str, Any], ratio: float, kind: str = "") -> tuple[Tensor, Tensor]:
    """Return the oracle's features of the training and of the test images."""
    network = sets.network("bands" if kind == "bands" else "resnet")
    bank, queries = (view_features(network, files_of(sources, split, kind), ratio, kind) for split in ("train", "test"))
    return bank, queries


def labels(sources: dict[str, Any], kind: str = "") -> tuple[Tensor, Tensor]:
    """Return the labels of the training and of the test images."""
    root = 0 if kind == "bands" else 1
    train, test = (labels_of(files_of(sources, split, kind), root) for split in ("train", "test"))
    return train, test
