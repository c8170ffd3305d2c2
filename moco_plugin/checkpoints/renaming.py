"""Names of a ResNet's and a ViT's tensors: timm's, and those of nn.Sequential, detectron2, MMPreTrain, torchvision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

Rename = Callable[[str], str]
# timm's names of a ViT's tensors and torchvision's; a ResNet's are the same in both
VIT_NAMES = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.": "conv_proj.",
    "norm.": "encoder.ln.",
}
VIT_BLOCK_NAMES = {
    "norm1.": "ln_1.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}


def _replace(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rename:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in pairs]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename


_DETECTRON2 = _replace(
    (r"^res([2-5])\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\bconv(\d)\.norm\.", r"bn\1."),
    (r"\bshortcut\.norm\.", "downsample.1."),
    (r"\bshortcut\.(?=weight|bias)", "downsample.0."),
    (r"^stem\.", ""),
)
# transformers' ResNets; its ViTs have queries, keys and values apart and are put together by ``merged``
_HUGGING_FACE_RESNET = _replace(
    (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    (r"^(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
_HUGGING_FACE_VIT = _replace(
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.qkv\.", ".attn.qkv."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
)
_QUERY = re.compile(r"(.*\.attention\.attention\.)query\.(weight|bias)$")


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which transformers' queries, keys and values are one tensor, ``qkv``, as in timm."""
    found = dict(state)
    for name in state:
        if match := _QUERY.match(name):
            parts = [f"{match[1]}{part}.{match[2]}" for part in ("query", "key", "value")]
            if all(part in found for part in parts):
                found[f"{match[1]}qkv.{match[2]}"] = torch.cat([found.pop(part) for part in parts])
    return found


_SHORTCUT = _replace((r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample."))  # lightly's own ResNet
_MMPRETRAIN_VIT = _replace(
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^(?:ln1|norm1)\.", "norm."),
    (r"^layers\.(\d+)\.(?:ln|norm)([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.attn\.gamma1\.weight$", r"blocks.\1.ls1.gamma"),
    (r"^layers\.(\d+)\.ffn\.gamma2\.weight$", r"blocks.\1.ls2.gamma"),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
)


def _torchvision_vit(name: str) -> str:
    block = re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", name)
    if block:
        rest = name[block.end() :].replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")
        for ours, theirs in VIT_BLOCK_NAMES.items():
            if rest.startswith(theirs):
                return f"blocks.{block[1]}.{ours}{rest.removeprefix(theirs)}"
    for ours, theirs in VIT_NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _sequential(first_stage: int) -> Rename:
    """For nn.Sequential(*resnet.children()): 0 is the stem's convolution, 1 its norm, then the stages."""
    names = {"0": "conv1", "1": "bn1", **{str(first_stage + stage): f"layer{stage + 1}" for stage in range(4)}}

    def rename(name: str) -> str:
        number, dot, rest = name.partition(".")
        return _SHORTCUT(f"{names.get(number, number)}{dot}{rest}")

    return rename


_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
# By a name that only this way of naming has.
FOREIGN: tuple[tuple[str, Rename], ...] = (
    ("res2.0.conv1.weight", _DETECTRON2),
    ("layer1.0.shortcut.0.weight", _SHORTCUT),
    ("layer2.0.shortcut.0.weight", _SHORTCUT),
    ("patch_embed.projection.weight", _MMPRETRAIN_VIT),
    ("encoder.pos_embedding", _torchvision_vit),
    ("embeddings.patch_embeddings.projection.weight", _HUGGING_FACE_VIT),
    ("embedder.embedder.convolution.weight", _HUGGING_FACE_RESNET),
    ("resnet.embedder.embedder.convolution.weight", _HUGGING_FACE_RESNET),
    *((f"{number}.0.conv1.weight", _sequential(number)) for number in (2, 3, 4)),
)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return timm's name for each name of an encoder's state dict; its own where it is not foreign."""
    if "cls_token" in state and any(
        _CHUNK.match(name) for name in state
    ):  # DINOv2's blocks in chunks, each padded with identities
        return {name: _CHUNK.sub(r"blocks.\1.", name).replace("register_tokens", "reg_token") for name in state}
    prefix = "vit." if any(name.startswith("vit.") for name in state) else ""  # lightly's MaskedVisionTransformerTIMM
    for mark, rename in FOREIGN:
        if prefix + mark in state:
            return {name: rename(name.removeprefix(prefix)) for name in state}
    return {name: name.removeprefix(prefix).replace("register_tokens", "reg_token") for name in state}


def detectron2_name(name: str) -> str:
    """Return detectron2's name of a ResNet tensor, e.g. layer1.0.downsample.1.bias to res2.0.shortcut.norm.bias."""
    if name.startswith("layer"):
        name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    else:
        name = f"stem.{name}"
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


# of a ResNet without squeeze-and-excitation, deep stem and the like, under torchvision's (and timm's) names
PLAIN_RESNET = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+")


def is_plain_resnet(names: Iterable[str]) -> bool:
    """Tell whether all tensors have a twin in detectron2's own ResNet."""
    return all(PLAIN_RESNET.fullmatch(name) for name in names)
