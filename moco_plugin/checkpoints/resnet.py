"""A residual network's shape, read off the shapes of its weights, so that no table of names is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor

from moco_plugin.backbones import widen_stem
from moco_plugin.errors import UserError

NAMES: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


def resnet_from_state(state: Mapping[str, Tensor]) -> tuple[str, Callable[[], ResNet], ResNet]:
    """Builds the timm ResNet that a state dict in torchvision's (and timm's) names belongs to.

    Plain residual networks of any depth, width, cardinality and base width: a 7x7 stem, then four stages of
    basic or bottleneck blocks.

    Args:
        state: Weights without classifier.

    Returns:
        A name such as "resnet50" (with its widths where they are not the usual ones), a function that builds
        the network with random weights, and the network with the weights loaded; both in eval mode.

    Raises:
        UserError: The weights are no such network's, or some are missing or left over.
    """
    blocks = [
        1 + max((int(m[1]) for key in state if (m := re.match(rf"layer{stage}\.(\d+)\.", key))), default=-1)
        for stage in (1, 2, 3, 4)
    ]
    stem = state.get("conv1.weight")
    if 0 in blocks or stem is None or stem.ndim != 4 or "layer1.0.conv1.weight" not in state:
        raise UserError(
            f"the weights are not those of a plain ResNet (first keys: {', '.join(list(state)[:3])}); "
            "expected conv1, bn1, layer1 to layer4"
        )
    bottleneck = "layer1.0.conv3.weight" in state
    try:
        channels = tuple(
            state[f"layer{stage}.0.conv{3 if bottleneck else 2}.weight"].shape[0] // (4 if bottleneck else 1)
            for stage in (1, 2, 3, 4)
        )
        width, per_group = state["layer1.0.conv2.weight"].shape[:2]
        cardinality = width // per_group if bottleneck else 1
        base_width = 64 * width // (cardinality * channels[0]) if bottleneck else 64

        def untrained() -> ResNet:
            network = ResNet(
                cast(Any, Bottleneck if bottleneck else BasicBlock), tuple(blocks), num_classes=0, channels=channels,
                cardinality=cardinality, base_width=base_width, zero_init_last=False,
            )  # fmt: skip
            if stem.shape[0] != 64:
                widen_stem(network, stem.shape[0])
            return network.eval()

        network = untrained()
        network.load_state_dict(dict(state))
    except (RuntimeError, KeyError, ZeroDivisionError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights are not those of a plain ResNet: {reason}") from error
    name = NAMES.get((bottleneck, tuple(blocks)), f"resnet {'-'.join(map(str, blocks))}")
    if cardinality > 1:
        name = f"{name.replace('resnet', 'resnext')}_{cardinality}x{base_width}d"
    elif base_width != 64:
        name = f"wide_{name}, base width {base_width}"
    if channels[0] != 64:
        name += f", channels {'-'.join(map(str, channels))}"
    return name, untrained, network
