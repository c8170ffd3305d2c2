"""Trainings of the same network on the same images: ours, and what others document."""

import contextlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import nn

from moco_plugin.backbones import create_backbone
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.data.normalize import View
from moco_plugin.pretraining.config import load_config
from moco_plugin.pretraining.prepare import has_native_bfloat16
from moco_plugin.pretraining.run import pretrain

BACKBONE, CHANNELS, SIDE = "resnet18", (16, 32, 64, 128), 40
VIEW = View(SIDE, 1.0, IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"])
Train = Callable[[Path, Path, int, int], tuple[nn.Module, View]]
"""Trains on a folder of images, with a folder for its files, for so many epochs, with a seed; returns network and view."""


def ours(images: Path, out: Path, epochs: int, seed: int) -> tuple[nn.Module, View]:
    """Train with the demo's config, the faster batch norm and views, and bfloat16 where the CPU has it."""
    overrides = {
        "method_args.batch_norm": "plain",
        "views.engine": "fast",
        "trainer.precision": "bf16-mixed" if has_native_bfloat16() else "32-true",
        "data.root": images,
        "data.workers": 0,
        "knn.train": "null",
        "knn.test": "null",
        "schedule.epochs": epochs,
        "seed": seed,
        "out": out,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    config = load_config("demo_fashion_mnist", [f"{key}={value}" for key, value in overrides.items()])
    checkpoint = read_checkpoint(str(pretrain(config, overwrite=True)))
    return checkpoint.backbone, checkpoint.view


def lightly(images: Path, out: Path, epochs: int, seed: int) -> tuple[nn.Module, View]:
    """Train as lightly's documented MoCo example for PyTorch does, with the heads as wide as the network's features.

    From the example (lightly 1.5 and 1.6, docs.lightly.ai): a bank of 4096 keys, SGD of learning rate 0.06, batches of
    256, a momentum of 0.996 that rises to 1 along a cosine over the epochs, MoCoV2Transform, one loss of view 0.
    """
    import copy

    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform
    from lightly.utils.scheduler import cosine_schedule

    torch.manual_seed(seed)
    backbone = create_backbone(BACKBONE, channels=CHANNELS)
    dim = CHANNELS[-1]
    query = nn.Sequential(backbone, MoCoProjectionHead(dim, dim, 128))
    key = copy.deepcopy(query)
    deactivate_requires_grad(key)
    dataset = LightlyDataset(str(images), transform=MoCoV2Transform(input_size=SIDE))
    loader = torch.utils.data.DataLoader(dataset, 256, shuffle=True, drop_last=True)
    criterion = NTXentLoss(memory_bank_size=(4096, 128))
    optimizer = torch.optim.SGD(query.parameters(), lr=0.06)
    for epoch in range(epochs):
        momentum = cosine_schedule(epoch, epochs, 0.996, 1)
        for (view_q, view_k), *_ in loader:
            update_momentum(query, key, m=momentum)
            loss = criterion(query(view_q), key(view_k).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return backbone, VIEW


def lightly_train(method: str) -> Train:
    """Return a training with a method of LightlyTrain, with its defaults but for sizes that follow the images.

    Args:
        method: "dino", "simclr", or ours in LightlyTrain, "moco".
    """

    def train(images: Path, out: Path, epochs: int, seed: int) -> tuple[nn.Module, View]:
        os.environ.setdefault("LIGHTLY_TRAIN_EVENTS_DISABLED", "1")
        import lightly_train as package

        import moco_plugin.integrations.lightly_train  # noqa: F401  (registers ours)

        views: dict[str, object] = {"image_size": (SIDE, SIDE)}
        if method == "dino":
            views["local_view"] = {"view_size": (17, 17)}  # 96 of 224 pixels, at this size
        package.pretrain(
            out=str(out),
            data=str(images),
            model=f"timm/{BACKBONE}",
            model_args={"channels": list(CHANNELS)},
            method=method,
            epochs=epochs,
            seed=seed,
            num_workers=0,
            accelerator="cpu",
            devices=1,
            overwrite=True,
            transform_args=views,
        )
        checkpoint = read_checkpoint(str(out / "exported_models" / "exported_last.pt"))
        return checkpoint.backbone, VIEW

    return train


CONTESTANTS: dict[str, Train] = {
    "ours": ours,
    "lightly's MoCo example": lightly,
    "LightlyTrain, DINO": lightly_train("dino"),
    "LightlyTrain, SimCLR": lightly_train("simclr"),
    "LightlyTrain, ours": lightly_train("moco"),
}


def train_quietly(name: str, images: Path, out: Path, epochs: int, seed: int) -> tuple[nn.Module, View]:
    """Train a contestant on one thread, without what it prints."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return CONTESTANTS[name](images, out, epochs, seed)
