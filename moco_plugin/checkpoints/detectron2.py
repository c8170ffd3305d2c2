"""A ResNet's weights under detectron2's names, as the converter of the released code writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from moco_plugin.errors import UserError


def detectron2_name(name: str) -> str:
    """Returns detectron2's name of a ResNet tensor, e.g. layer1.0.downsample.1.bias to res2.0.shortcut.norm.bias."""
    if name.startswith("layer"):
        name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    else:
        name = f"stem.{name}"
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


# of a ResNet without squeeze-and-excitation, deep stem and the like, under torchvision's (and timm's) names
PLAIN_RESNET = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+")


def is_plain_resnet(names: Iterable[str]) -> bool:
    """Tells whether all tensors have a twin in detectron2's own ResNet."""
    return all(PLAIN_RESNET.fullmatch(name) for name in names)


def to_detectron2(state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns the arrays that go into a detectron2 ``.pkl``.

    Args:
        state: Weights of a plain ResNet in torchvision's (and timm's) names.
        head: The projection head (``fc...``); it goes along as ``stem.fc...``, which detectron2 leaves aside.

    Raises:
        UserError: A tensor that no detectron2 ResNet has, such as those of a deep stem.
    """
    for name in state:
        if not PLAIN_RESNET.fullmatch(name):
            raise UserError(f"detectron2's ResNet has no twin of {name!r}; expected a plain ResNet or ResNeXt")
    return {detectron2_name(name): value.numpy() for name, value in {**state, **head}.items()}
