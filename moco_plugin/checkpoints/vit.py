"""A plain vision transformer's shape, derived from the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from moco_plugin.backbones import create_backbone
from moco_plugin.checkpoints.networks import Mismatch, count_blocks, fit

# timm's sizes: width to name, depth and heads
SIZES = {
    192: ("tiny", 12, 3),
    384: ("small", 12, 6),
    768: ("base", 12, 12),
    1024: ("large", 24, 16),
    1280: ("huge", 32, 16),
}
ROOTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm", "fc_norm")
HEAD_WIDTH = 64  # channels of an attention head, in timm's models but the largest


def vit_from_state(
    state: Mapping[str, Tensor], heads: int | None = None
) -> tuple[str, dict[str, Any], Callable[[], VisionTransformer], VisionTransformer]:
    """Build the timm ViT that a state dict in timm's names belongs to.

    Args:
        state: Weights without classifier.
        heads: Attention heads, which the shapes do not tell; None takes timm's number for this width.

    Returns:
        timm's name of the nearest model; the arguments of timm.create_model by which this one differs; a function
        that builds it with random weights; and the network with the weights loaded; both in eval mode.

    Raises:
        Mismatch: The weights are not a plain ViT's, or some are missing or left over.
    """
    kind = "a plain ViT"
    depth = count_blocks(state, "blocks.")
    stem = state.get("patch_embed.proj.0.weight")  # v3's stack of convolutions
    projection, position = (
        state.get("patch_embed.proj.weight", state.get("patch_embed.proj.12.weight")),
        state.get("pos_embed"),
    )
    hidden = state.get("blocks.0.mlp.fc1.weight")
    if projection is None or position is None or hidden is None or not depth:
        raise Mismatch(
            f"the weights are not those of {kind}: Missing keys: one of patch_embed.proj.weight, pos_embed, blocks.0.mlp"
        )
    if projection.ndim != 4 or position.ndim != 3 or hidden.ndim != 2 or 0 in (*projection.shape, *position.shape):
        raise Mismatch(f"the weights are not those of {kind}: patch_embed.proj, pos_embed or mlp.fc1 has another shape")
    dim, channels, patch, other = projection.shape
    if stem is not None and stem.ndim == 4:
        channels, patch, other = stem.shape[1], 16, 16
    grid, embeds_class = _grid(position.shape[1], state)
    if patch != other or not grid:
        raise Mismatch(f"{kind} has square patches and images; found {patch} x {other} and {position.shape[1]} places")
    size, usual_depth, usual_heads = SIZES.get(dim, ("", 0, dim // HEAD_WIDTH))
    heads = heads or usual_heads
    if not heads or dim % heads:
        raise Mismatch(
            f"shapes do not tell the attention heads of a ViT of width {dim}; give --architecture with timm's name of it"
        )
    name = f"vit_{size}_patch{patch}_224"
    arguments: dict[str, Any] = {}
    if not timm.is_model(name):
        name, usual_depth, usual_heads = f"vit_{size or 'base'}_patch16_224", 0, 0
        arguments |= {"embed_dim": dim, "patch_size": patch}
    arguments |= {"conv_stem": True} if stem is not None else {}
    arguments |= {"depth": depth} if depth != usual_depth else {}
    arguments |= {"num_heads": heads} if heads != usual_heads else {}
    arguments |= {"mlp_ratio": hidden.shape[0] / dim} if hidden.shape[0] != 4 * dim else {}
    arguments |= {"img_size": grid * patch} if grid * patch != 224 else {}
    arguments |= {"in_chans": channels} if channels != 3 else {}
    arguments |= {"qkv_bias": False} if "blocks.0.attn.qkv.bias" not in state else {}
    arguments |= {"qk_norm": True} if "blocks.0.attn.q_norm.weight" in state else {}
    arguments |= {"init_values": 1e-5} if "blocks.0.ls1.gamma" in state else {}
    arguments |= {"pre_norm": True} if "norm_pre.weight" in state else {}
    arguments |= {"class_token": False} if "cls_token" not in state else {}
    arguments |= {"global_pool": "avg"} if "cls_token" not in state or "fc_norm.weight" in state else {}
    arguments |= {"fc_norm": False} if "cls_token" not in state and "fc_norm.weight" not in state else {}
    arguments |= {"no_embed_class": True} if not embeds_class and "cls_token" in state else {}
    arguments |= {"reg_tokens": state["reg_token"].shape[1]} if _is_register(state) else {}

    def untrained() -> VisionTransformer:
        network = create_backbone(name, **arguments)
        assert isinstance(network, VisionTransformer)
        return network.eval()

    return name, arguments, untrained, fit(untrained, state, kind)


def fold_class_position(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a ViT's weights in which the class token has its place added, if registers have none.

    DINOv2 adds places before it puts registers between class token and patches; timm has no such network, and computes
    the same from the sum.
    """
    position, token = state.get("pos_embed"), state.get("cls_token")
    if position is None or token is None or not _is_register(state) or position.ndim != 3 or token.ndim != 3:
        return state
    places = position.shape[1] - 1
    if places < 1 or math.isqrt(places) ** 2 != places:
        return state
    return {**state, "cls_token": token + position[:, :1], "pos_embed": position[:, 1:]}


def _is_register(state: Mapping[str, Tensor]) -> bool:
    return "reg_token" in state and state["reg_token"].ndim == 3


def _grid(places: int, state: Mapping[str, Tensor]) -> tuple[int, bool]:
    """Return the patches along a side (0: not square), and whether the extra tokens have places of their own."""
    extra = ("cls_token" in state) + (state["reg_token"].shape[1] if _is_register(state) else 0)
    for own, count in ((True, places - extra), (False, places)):
        if count > 0 and math.isqrt(count) ** 2 == count:
            return math.isqrt(count), own
    return 0, False
