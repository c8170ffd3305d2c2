"""Checkpoints as the released code saves them, and as they are read."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from moco_plugin.backbones import create_backbone
from moco_plugin.checkpoints.read import Checkpoint
from tests.helpers.networks import seen

OFFICIAL = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")


def official(name: str, mlp: bool = True, **arguments: Any) -> dict[str, Any]:
    """A file as the released code saves it, of a network that has seen some images."""
    torch.manual_seed(0)
    model = seen(timm.create_model(name, num_classes=16, zero_init_last=False, **arguments))
    state = dict(model.state_dict())
    if mlp:
        width = state["fc.weight"].shape[1]
        state |= {"fc.2.weight": state.pop("fc.weight"), "fc.2.bias": state.pop("fc.bias")}
        state |= {"fc.0.weight": torch.randn(width, width), "fc.0.bias": torch.randn(width)}
    weights = {f"module.encoder_q.{key}": value for key, value in state.items()}
    weights |= {f"module.encoder_k.{key}": value + 1 for key, value in state.items()}
    weights |= {"module.queue": torch.randn(16, 32), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return {"epoch": 200, "arch": name, "state_dict": weights, "optimizer": {}}


# every kind of network at a size that costs little; full sizes differ from these in depth and width alone
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [8, 16, 24, 32]},
    "resnet50": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
    "resnet50d": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
    "resnext50_32x4d": {"layers": [1, 1, 1, 1]},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": [64, 64]},
    "convnext_atto": {"depths": [1, 1, 1, 1]},
    "mobilenetv3_small_100": {},
}


def checkpoint(name: str, layout: str = "timm", **arguments: Any) -> Checkpoint:
    """What a file with this network would be read into."""

    def untrained() -> nn.Module:
        torch.manual_seed(0)
        return create_backbone(name, **arguments).eval()

    network = seen(untrained())
    return Checkpoint(
        Path("source.pth"),
        layout,
        name,
        network,
        untrained,
        epoch=7,
        method="moco_v2",
        sha256="5d2e",
        arguments=arguments,
        framework="timm" if layout == "timm" else "torchvision",
    )
