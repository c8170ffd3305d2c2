"""The networks of weights: by timm's name, or by the shapes of the weights of a plain ResNet or ViT."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone, widen_stem
from moco_plugin.checkpoints.fill import Mismatch, Unfit, fill
from moco_plugin.checkpoints.layouts import PLAIN, Layout
from moco_plugin.checkpoints.metadata import Claims
from moco_plugin.errors import reason

MOST_BLOCKS = 512  # in one network; ResNet-152 has 50
NAMES: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
# timm's networks of the same shapes with other pooling
TWINS = {"resnet18": "resnetblur18", "resnet50": "resnetaa50 or resnetblur50"}
# timm's sizes: width to name, depth and heads
SIZES = {
    192: ("tiny", 12, 3),
    384: ("small", 12, 6),
    768: ("base", 12, 12),
    1024: ("large", 24, 16),
    1280: ("huge", 32, 16),
}
V3_HEADS, V3_WIDTHS = 12, (192, 384)  # of ViT-S in MoCo v3's code, and of ViT-Ti in solo-learn's; timm's have 3 and 6
HEAD_WIDTH = 64  # channels of an attention head, in timm's models but the largest
RESNET_ROOTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
VIT_ROOTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm", "fc_norm")


@dataclass
class Backbone:
    """A network with its weights and its construction.

    Attributes:
        architecture: timm's name, or one such as "resnet 1-2-3-1, 3x3 stem" that describes the difference.
        arguments: Arguments of ``create_backbone`` by which it differs from timm's.
        untrained: Builds it with random weights, in eval mode.
        network: The network with the weights loaded, in eval mode.
        used: Names of its weights.
    """

    architecture: str
    arguments: dict[str, Any]
    untrained: Callable[[], nn.Module]
    network: nn.Module
    used: set[str]


def find_backbone(layout: Layout, claims: Claims, state: Mapping[str, Tensor], size: int, named: bool) -> Backbone:
    """Return the network of weights.

    Args:
        layout: The layout of the file.
        claims: The file's metadata; notes on missing metadata are added.
        state: The encoder's weights in timm's names.
        size: Bytes of the file.
        named: The user named the architecture: nothing else is tried.

    Raises:
        Unfit: timm has no network of the file's name, weights share memory, or do not determine the heads.
        Mismatch: The weights are not those of such a network.
    """
    keys = ", ".join(name[:60] for name in list(state)[:3])
    mismatch = Mismatch(f"the weights are not those of a plain ResNet or ViT (first keys: {keys})")
    if claims.architecture is not None and timm.is_model(claims.architecture):
        try:
            return _named(claims, state, size)
        except Mismatch as error:
            if named or layout.names_backbone:
                raise
            mismatch = error  # a modified ResNet or ViT is recognized by its shapes
    elif layout.names_backbone:
        raise Unfit(f"its config names the backbone {str(claims.architecture)[:60]!r}, which timm does not have")
    for roots, build in ((RESNET_ROOTS, _resnet), (VIT_ROOTS, _vit)):
        own = {name: value for name, value in state.items() if name.partition(".")[0] in roots}
        if roots[0] + ".weight" in own or "pos_embed" in own or "patch_embed.proj.weight" in own:
            _check_size(own, size)
            try:
                return build(own, layout, claims)
            except Mismatch as error:
                mismatch = error
                break
    raise Mismatch(f"{mismatch}; for another network, give --architecture with its name in timm") from mismatch


def _named(claims: Claims, state: Mapping[str, Tensor], size: int) -> Backbone:
    """Return the network that the file or the user names, without tensors of other parts, such as classifiers."""
    name, arguments, seed = str(claims.architecture), claims.arguments, claims.seed

    def untrained() -> nn.Module:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            return create_backbone(name, **arguments).eval()

    expected = tensors_of(name, arguments)
    roots = {n.partition(".")[0] for n in expected}
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "fc"
    classifiers = tuple(f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier))
    others = {n for n in state if n.partition(".")[0] not in roots or n.startswith(classifiers)}
    own = {n: value for n, value in state.items() if n in expected or n not in others}
    _check_size(own, size, tied=True)
    return Backbone(name, arguments, untrained, fill(untrained, own, name), set(own))


def tensors_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of timm's network, without memory.

    Raises:
        Mismatch: timm cannot build it.
    """
    try:
        with torch.device("meta"):
            return create_backbone(name, **arguments).state_dict()
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError, KeyError) as error:
        raise Mismatch(f"timm cannot build {name} with the file's arguments: {reason(error)}") from error


def _resnet(state: Mapping[str, Tensor], layout: Layout, claims: Claims) -> Backbone:
    backbone = resnet_from_state(state, layout.small_stem_padding)
    if isinstance(backbone.network.maxpool, nn.Identity):
        claims.notes.append("taken to have stride 1 and no max-pool behind its 3x3 stem, which the file does not say")
    elif layout.framework == "timm" and backbone.architecture in TWINS:
        twin = f"{TWINS[backbone.architecture]} has the same shapes: --architecture decides"
        claims.notes.append(f"taken to be {backbone.architecture}; {twin}")
    return backbone


def _vit(state: Mapping[str, Tensor], layout: Layout, claims: Claims) -> Backbone:
    heads = claims.heads
    width = state["pos_embed"].shape[-1] if "pos_embed" in state and state["pos_embed"].ndim else 0
    if heads is None and width in V3_WIDTHS:
        of_v3 = str(claims.method).replace("_", "").lower() == "mocov3"  # as in solo-learn and the authors' files
        small = width == V3_WIDTHS[-1]
        heads = layout.vit_small_heads if small else None
        if of_v3 and (small or layout.name == "solo-learn"):
            heads = V3_HEADS
        if heads is None and small:
            claims.notes.append(
                "taken to have 6 attention heads, as timm's vit_small, which the file does not say; MoCo v3's ViT-S has "
                "12: --architecture vit_small_patch16_224 num_heads=12"
            )
    backbone = vit_from_state(state, heads)
    name = backbone.architecture
    quick = name.replace("_clip_", "_clip_quickgelu_")
    if name != quick:
        claims.notes.append(f"taken to be CLIP's with GELU; {quick} has the same shapes: --architecture decides")
    elif (layout is PLAIN or layout.name == "Hugging Face") and claims.heads is None:
        norm: Any = next(m for m in backbone.network.modules() if isinstance(m, nn.LayerNorm))
        claims.notes.append(
            f"taken to have GELU and a layer norm epsilon of {norm.eps:g}, as timm's {name}, which the file does not say: "
            "--architecture decides"
        )
    return backbone


def _check_size(state: Mapping[str, Tensor], size: int, tied: bool = False) -> None:
    """Raise Unfit for weights that share memory, with which a network could become larger than the file.

    If ``tied``, equal tensors count once, since layers of a known network may share them.
    """
    own = {(v.data_ptr(), v.shape) if tied else name: v.nbytes for name, v in state.items()}
    if (total := sum(own.values())) > size:
        raise Unfit(f"its weights claim {total} bytes in a file of {size}; expected separate weights for each layer")


def resnet_from_state(state: Mapping[str, Tensor], small_stem_padding: int = 1) -> Backbone:
    """Build the timm ResNet of weights without a classifier, in torchvision's (and timm's) names.

    It may have any depth, width, cardinality and base width, and a 7x7 stem, or a 3x3 stem for small images (stride 1, no
    max-pool).

    Args:
        state: The weights.
        small_stem_padding: Padding of a 3x3 stem, which the shapes do not determine.

    Raises:
        Mismatch: The weights are not those of such a network.
    """
    bottleneck = "layer1.0.conv3.weight" in state
    last = f"conv{3 if bottleneck else 2}.weight"
    names = ("conv1.weight", "layer1.0.conv2.weight", *(f"layer{stage}.0.{last}" for stage in (1, 2, 3, 4)))
    stem, middle, *ends = (_filters(state, name) for name in names)
    blocks = tuple(count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    channels = tuple(shape[0] // (4 if bottleneck else 1) for shape in ends if shape)
    width, per_group = middle[:2] or (1, 1)
    plain = 0 not in blocks and stem[2:] in ((7, 7), (3, 3)) and middle and len(channels) == 4 and all(channels)
    if not plain or width % per_group:
        raise Mismatch(
            f"the weights are not those of a plain ResNet (first keys: {', '.join(k[:80] for k in list(state)[:3])}); "
            "expected conv1 (7x7 or 3x3), bn1, layer1 to layer4, with widths that fit together"
        )
    cardinality = width // per_group if bottleneck else 1
    base_width = 64 * width // (cardinality * channels[0]) if bottleneck else 64
    stem_width, colours, side = stem[:3]

    arguments: dict[str, Any] = {"layers": blocks, "channels": channels}
    arguments |= {"cardinality": cardinality, "base_width": base_width, "in_chans": colours}

    def untrained() -> nn.Module:
        network: Any = create_backbone("resnet50" if bottleneck else "resnet18", **arguments)
        if stem_width != 64:
            widen_stem(network, stem_width)
        if side == 3:
            network.conv1 = nn.Conv2d(colours, stem_width, 3, padding=small_stem_padding, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        return cast(nn.Module, network.eval())

    network = fill(untrained, state, "a plain ResNet")
    name = NAMES.get((bottleneck, blocks), f"resnet {'-'.join(map(str, blocks))}")
    if cardinality > 1:
        name = f"{name.replace('resnet', 'resnext')}_{cardinality}x{base_width}d"
    elif base_width != 64:
        name = f"wide_{name}, base width {base_width}"
    if channels[0] != 64:
        name += f", channels {'-'.join(map(str, channels))}"
    if side == 3:
        name += ", 3x3 stem"
    return Backbone(name, {}, untrained, network, set(state))


def vit_from_state(state: Mapping[str, Tensor], heads: int | None = None) -> Backbone:
    """Build the timm ViT of weights without a classifier, in timm's names.

    Args:
        state: The weights.
        heads: Attention heads, which the shapes do not determine; None takes timm's number for this width.

    Raises:
        Mismatch: The weights are not those of a plain ViT.
        Unfit: timm has no number of heads for this width.
    """
    kind, given = "a plain ViT", state
    state = fold_class_position(given)
    depth = count_blocks(state, "blocks.")
    stem = _filters(state, "patch_embed.proj.0.weight")  # v3's stack of convolutions
    projection = _filters(state, "patch_embed.proj.weight") or _filters(state, "patch_embed.proj.12.weight")
    position, hidden = (
        tuple(state[name].shape) if name in state else () for name in ("pos_embed", "blocks.0.mlp.fc1.weight")
    )
    if not projection or not depth or len(position) != 3 or len(hidden) != 2 or 0 in position:
        needed = "patch_embed.proj.weight, pos_embed, blocks.0.mlp.fc1.weight"
        raise Mismatch(f"the weights are not those of {kind}: Missing keys: one of {needed}, or one has another shape")
    dim, channels, patch, other = projection
    if stem:
        channels, patch, other = stem[1], 16, 16
    registers = _registers(state)
    extra = ("cls_token" in state) + registers
    grid, embeds_class = _side(position[1] - extra) if state is given else 0, True
    if not grid:  # the extra tokens have no position embeddings
        grid, embeds_class = _side(position[1]), False
    if patch != other or not grid:
        raise Mismatch(f"{kind} has square patches and images; found {patch} x {other} and {position[1]} positions")
    size, usual_depth, usual_heads = SIZES.get(dim, ("", 0, dim // HEAD_WIDTH))
    heads = heads or usual_heads
    if not heads or dim % heads:
        raise Unfit(
            f"shapes do not determine the attention heads of a ViT of width {dim}; give --architecture with timm's name"
        )
    name = f"vit_{size}_patch{patch}_224"
    is_clip = "norm_pre.weight" in state and timm.is_model(clip := name.replace("_224", "_clip_224"))
    name = clip if is_clip else name  # whose norms have another epsilon
    arguments: dict[str, Any] = {}
    if not timm.is_model(name):
        name, usual_depth, usual_heads = f"vit_{size or 'base'}_patch16_224", 0, 0
        arguments |= {"embed_dim": dim, "patch_size": patch}
    cls_token, fc_norm = "cls_token" in state, "fc_norm.weight" in state
    differs: dict[str, tuple[bool, Any]] = {
        "conv_stem": (bool(stem), True),
        "depth": (depth != usual_depth, depth),
        "num_heads": (heads != usual_heads, heads),
        "mlp_ratio": (hidden[0] != 4 * dim, hidden[0] / dim),
        "img_size": (grid * patch != 224, grid * patch),
        "in_chans": (channels != 3, channels),
        "qkv_bias": ("blocks.0.attn.qkv.bias" not in state, False),
        "qk_norm": ("blocks.0.attn.q_norm.weight" in state, True),
        "init_values": ("blocks.0.ls1.gamma" in state, 1e-5),
        "pre_norm": ("norm_pre.weight" in state and not is_clip, True),
        "class_token": (not cls_token, False),
        "global_pool": (not cls_token or fc_norm, "avg"),
        "fc_norm": (not cls_token and not fc_norm, False),
        "no_embed_class": (not embeds_class and cls_token, True),
        "reg_tokens": (registers > 0, registers),
    }
    arguments |= {key: value for key, (is_so, value) in differs.items() if is_so}

    def untrained() -> nn.Module:
        return create_backbone(name, **arguments).eval()

    return Backbone(name, arguments, untrained, fill(untrained, state, kind), set(given))


def _filters(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the shape of a convolution's weights; empty if there are none."""
    weights = state.get(name)
    return tuple(weights.shape) if weights is not None and weights.ndim == 4 and weights.numel() else ()


def fold_class_position(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a ViT's weights with the class token's position added to it, if registers have no positions.

    DINOv2 adds positions before it inserts registers; timm has no such network, but computes the same from the sum.
    """
    position, token = state.get("pos_embed"), state.get("cls_token")
    if position is None or token is None or not _registers(state) or position.ndim != 3 or token.ndim != 3:
        return state
    if not _side(position.shape[1] - 1):
        return state
    return {**state, "cls_token": token + position[:, :1], "pos_embed": position[:, 1:]}


def _registers(state: Mapping[str, Tensor]) -> int:
    token = state.get("reg_token")
    return 0 if token is None or token.ndim != 3 else token.shape[1]


def _side(patches: int) -> int:
    """Return the square root of a number of patches, or 0 if it is not an integer."""
    side = math.isqrt(max(patches, 0))
    return side if side**2 == patches else 0


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return the number of blocks with names ``prefix`` + INDEX + "...".

    Raises:
        Mismatch: More than MOST_BLOCKS, or some are missing.
    """
    indices = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    count = len(indices)
    if count > MOST_BLOCKS or indices != {str(index) for index in range(count)}:
        raise Mismatch(f"the weights have {count} blocks {prefix}N, not all of 0 to {max(count, 1) - 1}, or too many")
    return count
