"""A residual network's shape, derived from the shapes of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from moco_plugin.backbones import widen_stem
from moco_plugin.checkpoints.networks import Mismatch, count_blocks, fit

NAMES: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
ROOTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def resnet_from_state(
    state: Mapping[str, Tensor], small_stem_padding: int = 1
) -> tuple[str, Callable[[], ResNet], ResNet]:
    """Build the timm ResNet that a state dict in torchvision's (and timm's) names belongs to.

    Plain residual networks of any depth, width, cardinality and base width: a 7x7 stem, or the 3x3 stem for small
    images (stride 1, no max-pool), then four stages of basic or bottleneck blocks.

    Args:
        state: Weights without classifier.
        small_stem_padding: Of a 3x3 stem; shapes do not tell it.

    Returns:
        A name such as "resnet50" (with its widths where they are not the usual ones), a function that builds
        the network with random weights, and the network with the weights loaded; both in eval mode.

    Raises:
        Mismatch: The weights are not such a network's, or some are missing or left over.
    """
    stem = state.get("conv1.weight")
    blocks = tuple(count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    if 0 in blocks or stem is None or stem.ndim != 4 or stem.shape[2:] not in ((7, 7), (3, 3)):
        raise Mismatch(
            f"the weights are not those of a plain ResNet (first keys: {', '.join(k[:80] for k in list(state)[:3])}); "
            "expected conv1 (7x7 or 3x3), bn1, layer1 to layer4"
        )
    bottleneck = "layer1.0.conv3.weight" in state
    last = f"conv{3 if bottleneck else 2}.weight"
    first = [state.get(f"layer{stage}.0.{last}") for stage in (1, 2, 3, 4)]
    middle = state.get("layer1.0.conv2.weight")
    given = [stem, middle, *first]
    if middle is None or any(w is None or w.ndim != 4 or not w.numel() for w in given):
        raise Mismatch(
            "the weights are not those of a plain ResNet: Missing keys: layerN.0.conv2.weight or conv3.weight"
        )
    channels = tuple(cast(Tensor, w).shape[0] // (4 if bottleneck else 1) for w in first)
    width, per_group = middle.shape[:2]
    if not all(channels) or not per_group or width % per_group:
        raise Mismatch("the weights are not those of a plain ResNet: the widths of layer1 do not fit together")
    cardinality = width // per_group if bottleneck else 1
    base_width = 64 * width // (cardinality * channels[0]) if bottleneck else 64

    width_of_stem, colours, side = stem.shape[:3]  # the tensor itself would keep the whole mapped file in memory

    def untrained() -> ResNet:
        network = ResNet(
            cast(Any, Bottleneck if bottleneck else BasicBlock),
            blocks,
            num_classes=0,
            in_chans=colours,
            channels=channels,
            cardinality=cardinality,
            base_width=base_width,
            zero_init_last=False,
        )
        if width_of_stem != 64:
            widen_stem(network, width_of_stem)
        if side == 3:
            convolution = nn.Conv2d(colours, width_of_stem, 3, padding=small_stem_padding, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            network.conv1 = cast(Any, convolution)
            network.maxpool = cast(Any, nn.Identity())
        return network.eval()

    network = fit(untrained, state, "a plain ResNet")
    name = NAMES.get((bottleneck, blocks), f"resnet {'-'.join(map(str, blocks))}")
    if cardinality > 1:
        name = f"{name.replace('resnet', 'resnext')}_{cardinality}x{base_width}d"
    elif base_width != 64:
        name = f"wide_{name}, base width {base_width}"
    if channels[0] != 64:
        name += f", channels {'-'.join(map(str, channels))}"
    if stem.shape[2] == 3:
        name += ", 3x3 stem"
    return name, untrained, network
