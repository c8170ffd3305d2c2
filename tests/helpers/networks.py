"""Small networks, and how the samples of foreign checkpoints are written."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

NARROW = {"channels": (8, 16, 24, 32), "layers": (1, 1, 1, 1), "zero_init_last": False}
TINY_VIT = {"depth": 2, "img_size": 64}


@dataclass
class Sample:
    """A file, and what reading it must give.

    Attributes:
        write: Writes the file (or folder) to a path.
        layout: Its layout's name.
        query: Maps images to the features of the encoder that is trained.
        key: The same for the momentum encoder; None if there is none.
        architecture: How the name of the backbone begins.
        unused: Names that must be listed.
    """

    write: Callable[[Path], None]
    layout: str
    query: nn.Module
    key: nn.Module | None = None
    architecture: str = "resnet"
    unused: tuple[str, ...] = ()


def seen(model: nn.Module) -> nn.Module:
    """A network whose batch norms have seen images, in eval mode."""
    for name, value in model.state_dict().items():
        if "running_mean" in name:
            value.normal_(std=0.1)
        elif "running_var" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


def other(model: nn.Module) -> nn.Module:
    """A copy with other weights, as a key encoder has."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    return model


def narrow_resnet(name: str = "resnet18", **arguments: Any) -> nn.Module:
    return seen(timm.create_model(name, num_classes=0, **{**NARROW, **arguments}))


def tiny_vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    return seen(timm.create_model(name, num_classes=0, **{**arguments, **TINY_VIT}))


def torchvision_resnet(block: str = "BasicBlock", layers: tuple[int, ...] = (1, 1, 1, 1), **arguments: Any) -> Any:
    kind: Any = getattr(torchvision.models.resnet, block)
    model = torchvision.models.ResNet(kind, list(layers), **arguments)
    model.fc = nn.Identity()
    return seen(model)


def torchvision_vit() -> Any:
    model = torchvision.models.VisionTransformer(64, 16, 2, 3, 192, 768)
    model.heads = nn.Identity()
    nn.init.normal_(model.conv_proj.bias)
    return model.eval()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def save(content: Any, legacy: bool = False) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def head(prefix: str, width: int) -> dict[str, Tensor]:
    return {f"{prefix}0.weight": torch.randn(16, width), f"{prefix}2.weight": torch.randn(8, 16)}


def features(model: nn.Module) -> Tensor:
    """What a network gives for two fixed images of 64 x 64 (224 x 224 where it insists)."""
    side = getattr(getattr(model, "patch_embed", None), "img_size", (64, 64))[0]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images).flatten(1)
