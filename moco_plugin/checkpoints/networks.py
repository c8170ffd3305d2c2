"""The networks that weights belong to: by timm's name, or by the shapes of a plain ResNet's or ViT's weights."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone, widen_stem
from moco_plugin.checkpoints.layouts import Layout
from moco_plugin.checkpoints.load import Mismatch, fit
from moco_plugin.checkpoints.metadata import Hints
from moco_plugin.errors import UserError

MOST_BLOCKS = 512  # in one network; ResNet-152 has 50
NAMES: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
# timm's sizes: width to name, depth and heads
SIZES = {
    192: ("tiny", 12, 3),
    384: ("small", 12, 6),
    768: ("base", 12, 12),
    1024: ("large", 24, 16),
    1280: ("huge", 32, 16),
}
HEAD_WIDTH = 64  # channels of an attention head, in timm's models but the largest
RESNET_ROOTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
VIT_ROOTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm", "fc_norm")


@dataclass
class Backbone:
    """A network with its weights and its construction.

    Attributes:
        architecture: timm's name, or one such as "resnet 1-2-3-1, 3x3 stem" that says how the network differs.
        arguments: Of ``create_backbone``, by which it differs from timm's.
        untrained: Builds it with random weights, in eval mode.
        network: With the weights loaded, in eval mode.
        used: Names of the weights in it.
    """

    architecture: str
    arguments: dict[str, Any]
    untrained: Callable[[], nn.Module]
    network: nn.Module
    used: set[str]


def find_backbone(layout: Layout, about: Hints, state: Mapping[str, Tensor], size: int, named: bool) -> Backbone:
    """Return the network that weights belong to.

    Args:
        layout: Of the file.
        about: What the file says of itself; gets notes on what it does not say.
        state: The encoder's weights in timm's names.
        size: Bytes of the file.
        named: The user named the architecture: nothing else is tried.

    Raises:
        UserError: The file names a network that timm does not have, or its weights share memory.
        Mismatch: The weights are not such a network's.
    """
    mismatch: Mismatch | None = None
    if about.architecture is not None and timm.is_model(about.architecture):
        try:
            return _named(about, state, size)
        except Mismatch as error:
            if named or layout.names_backbone:
                raise
            mismatch = error  # a modified ResNet or ViT: its shapes are used
    elif layout.names_backbone:
        raise UserError(f"its config names the backbone {str(about.architecture)[:60]!r}, which timm does not have")
    for roots in (RESNET_ROOTS, VIT_ROOTS):
        own = {name: value for name, value in state.items() if name.partition(".")[0] in roots}
        if roots[0] + ".weight" in own or "pos_embed" in own or "patch_embed.proj.weight" in own:
            _check_size(own, size)
            return _resnet(own, layout, about) if roots is RESNET_ROOTS else _vit(own, layout, about)
    raise mismatch or Mismatch(
        f"the weights are not those of a plain ResNet or ViT (first keys: {', '.join(n[:60] for n in list(state)[:3])}), "
        "and the file does not name another; give --architecture with timm's name of it"
    )


def _named(about: Hints, state: Mapping[str, Tensor], size: int) -> Backbone:
    """Return the network that the file or the user names, without tensors of other parts."""
    name, arguments, seed = str(about.architecture), about.arguments, about.seed

    def untrained() -> nn.Module:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            return create_backbone(name, **arguments).eval()

    expected = tensors_of(name, arguments)
    roots = {n.partition(".")[0] for n in expected}
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "fc"
    classifiers = tuple(f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier))
    own = {
        n: value
        for n, value in state.items()
        if n in expected or (n.partition(".")[0] in roots and not n.startswith(classifiers))
    }
    _check_size(own, size, tied=True)
    return Backbone(name, arguments, untrained, fit(untrained, own, name), set(own))


def tensors_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of timm's network, without memory.

    Raises:
        Mismatch: timm cannot build it.
    """
    try:
        with torch.device("meta"):
            return create_backbone(name, **arguments).state_dict()
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError, KeyError) as error:
        raise Mismatch(f"timm cannot build {name} as the file says: {' '.join(str(error).split())[:200]}") from error


def _resnet(state: Mapping[str, Tensor], layout: Layout, about: Hints) -> Backbone:
    found = resnet_from_state(state, layout.small_stem_padding)
    if isinstance(found.network.maxpool, nn.Identity):
        about.notes.append("taken to have stride 1 and no max-pool behind its 3x3 stem, which the file does not say")
    return found


def _vit(state: Mapping[str, Tensor], layout: Layout, about: Hints) -> Backbone:
    small = "pos_embed" in state and state["pos_embed"].shape[-1:] == (384,)
    heads = about.heads or (layout.vit_small_heads if small else None)
    if small and heads is None:
        about.notes.append(
            "taken to have 6 attention heads, as timm's vit_small, which the file does not say; MoCo v3's ViT-S has 12: "
            "--architecture vit_small_patch16_224 num_heads=12"
        )
    return vit_from_state(state, heads)


def _check_size(state: Mapping[str, Tensor], size: int, tied: bool = False) -> None:
    """Raise UserError for weights that share memory, which could make a network that is larger than the file.

    Tensors that are one and the same count once if ``tied``: layers of a known network may be.
    """
    own = {(v.data_ptr(), v.shape) if tied else name: v.nbytes for name, v in state.items()}
    if (total := sum(own.values())) > size:
        raise UserError(
            f"its weights claim {total} bytes in a file of {size}; expected separate weights for each layer"
        )


def resnet_from_state(state: Mapping[str, Tensor], small_stem_padding: int = 1) -> Backbone:
    """Build the timm ResNet of weights without classifier, in torchvision's (and timm's) names.

    Plain residual networks of any depth, width, cardinality and base width: a 7x7 stem, or the 3x3 stem for small
    images (stride 1, no max-pool), then four stages of basic or bottleneck blocks.

    Args:
        state: Weights without classifier.
        small_stem_padding: Of a 3x3 stem; the shapes do not determine it.

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
    return Backbone(name, {}, untrained, network, set(state))


def vit_from_state(state: Mapping[str, Tensor], heads: int | None = None) -> Backbone:
    """Build the timm ViT that a state dict in timm's names belongs to.

    Args:
        state: Weights without classifier.
        heads: Attention heads, which the shapes do not determine; None takes timm's number for this width.

    Raises:
        Mismatch: The weights are not a plain ViT's, or some are missing or left over.
    """
    kind, used = "a plain ViT", set(state)
    state = fold_class_position(state)
    depth = count_blocks(state, "blocks.")
    stem = state.get("patch_embed.proj.0.weight")  # v3's stack of convolutions
    projection = state.get("patch_embed.proj.weight", state.get("patch_embed.proj.12.weight"))
    position, hidden = state.get("pos_embed"), state.get("blocks.0.mlp.fc1.weight")
    if projection is None or position is None or hidden is None or not depth:
        raise Mismatch(
            f"the weights are not those of {kind}: Missing keys: one of patch_embed.proj.weight, pos_embed, blocks.0.mlp"
        )
    if projection.ndim != 4 or position.ndim != 3 or hidden.ndim != 2 or 0 in (*projection.shape, *position.shape):
        raise Mismatch(f"the weights are not those of {kind}: patch_embed.proj, pos_embed or mlp.fc1 has another shape")
    dim, channels, patch, other = projection.shape
    if stem is not None and stem.ndim == 4:
        channels, patch, other = stem.shape[1], 16, 16
    registers = _registers(state)
    grid, embeds_class = _grid(position.shape[1], ("cls_token" in state) + registers)
    if patch != other or not grid:
        raise Mismatch(f"{kind} has square patches and images; found {patch} x {other} and {position.shape[1]} places")
    size, usual_depth, usual_heads = SIZES.get(dim, ("", 0, dim // HEAD_WIDTH))
    heads = heads or usual_heads
    if not heads or dim % heads:
        raise Mismatch(
            f"shapes do not determine the attention heads of a ViT of width {dim}; give --architecture with timm's name"
        )
    name = f"vit_{size}_patch{patch}_224"
    arguments: dict[str, Any] = {}
    if not timm.is_model(name):
        name, usual_depth, usual_heads = f"vit_{size or 'base'}_patch16_224", 0, 0
        arguments |= {"embed_dim": dim, "patch_size": patch}
    cls_token, fc_norm = "cls_token" in state, "fc_norm.weight" in state
    differs: dict[str, tuple[bool, Any]] = {
        "conv_stem": (stem is not None, True),
        "depth": (depth != usual_depth, depth),
        "num_heads": (heads != usual_heads, heads),
        "mlp_ratio": (hidden.shape[0] != 4 * dim, hidden.shape[0] / dim),
        "img_size": (grid * patch != 224, grid * patch),
        "in_chans": (channels != 3, channels),
        "qkv_bias": ("blocks.0.attn.qkv.bias" not in state, False),
        "qk_norm": ("blocks.0.attn.q_norm.weight" in state, True),
        "init_values": ("blocks.0.ls1.gamma" in state, 1e-5),
        "pre_norm": ("norm_pre.weight" in state, True),
        "class_token": (not cls_token, False),
        "global_pool": (not cls_token or fc_norm, "avg"),
        "fc_norm": (not cls_token and not fc_norm, False),
        "no_embed_class": (not embeds_class and cls_token, True),
        "reg_tokens": (registers > 0, registers),
    }
    arguments |= {key: value for key, (is_so, value) in differs.items() if is_so}

    def untrained() -> nn.Module:
        return create_backbone(name, **arguments).eval()

    return Backbone(name, arguments, untrained, fit(untrained, state, kind), used)


def fold_class_position(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a ViT's weights with the class token's position added to it, if registers have no positions.

    DINOv2 adds places before it puts registers between class token and patches; timm has no such network, and computes
    the same from the sum.
    """
    position, token = state.get("pos_embed"), state.get("cls_token")
    if position is None or token is None or not _registers(state) or position.ndim != 3 or token.ndim != 3:
        return state
    places = position.shape[1] - 1
    if places < 1 or math.isqrt(places) ** 2 != places:
        return state
    return {**state, "cls_token": token + position[:, :1], "pos_embed": position[:, 1:]}


def _registers(state: Mapping[str, Tensor]) -> int:
    token = state.get("reg_token")
    return 0 if token is None or token.ndim != 3 else token.shape[1]


def _grid(places: int, extra: int) -> tuple[int, bool]:
    """Return the patches along a side (0: not square), and whether the extra tokens have position embeddings."""
    for own, count in ((True, places - extra), (False, places)):
        if count > 0 and math.isqrt(count) ** 2 == count:
            return math.isqrt(count), own
    return 0, False


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return how many blocks a network has by the names ``prefix`` + NUMBER + "...".

    Raises:
        Mismatch: More than MOST_BLOCKS, or some are missing.
    """
    numbers = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    count = len(numbers)
    if count > MOST_BLOCKS or numbers != {str(number) for number in range(count)}:
        raise Mismatch(f"the weights have {count} blocks {prefix}N, not all of 0 to {max(count, 1) - 1}, or too many")
    return count
