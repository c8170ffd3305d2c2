"""Samples of checkpoints of other self-supervised methods, in the names of the authors' code."""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone
from moco_plugin.methods.moco import MoCo
from tests.helpers.networks import (
    Sample,
    head,
    narrow_resnet,
    other,
    prefixed,
    save,
    seen,
    tiny_vit,
    torchvision_resnet,
)

HUGGING_FACE_NAMES = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
}
State = dict[str, Tensor]


def sample(
    layout: str,
    query: nn.Module,
    prefix: str,
    key_prefix: str | None = None,
    heads: str = "",
    *,
    architecture: str = "resnet",
    extra: State | None = None,
    under: str = "state_dict",
    names: Callable[[State], State] = dict,
    unused: tuple[str, ...] = (),
    legacy: bool = False,
    **content: Any,
) -> Sample:
    """A file with one state dict ``under`` a key: encoders below prefixes, in the layout's ``names``, and heads."""
    key = None if key_prefix is None else other(query)
    state = prefixed(prefix, names(query.state_dict()))
    if key is not None:
        state |= prefixed(str(key_prefix), names(key.state_dict()))
    for name in heads.split():
        state |= head(name, 32)
    state |= extra or {}
    return Sample(save({**content, under: state}, legacy), layout, query, key, architecture, unused)


def queue() -> State:
    return {"queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1)}


def byol() -> Sample:
    query = narrow_resnet()
    key = other(query)
    content = {
        "online_encoder": {**prefixed("net.", query.state_dict()), **head("projector.0.", 32)},
        "target_encoder": {**prefixed("net.", key.state_dict()), **head("projector.0.", 32)},
        "online_predictor": head("0.", 16),
    }
    return Sample(save(content), "BYOL", query, key)


def mae() -> Sample:
    extra = {"mask_token": torch.zeros(1, 1, 16), "decoder_pos_embed": torch.zeros(1, 17, 16)}
    heads, name = "decoder_embed. decoder_blocks.0.norm1.", "vit_tiny_patch16_224"
    return sample("MAE", tiny_vit(), "", None, heads, extra=extra, under="model", architecture=name)


def dino() -> Sample:
    query = tiny_vit("vit_small_patch16_224")
    key = other(query)
    content: dict[str, Any] = {
        "student": {**prefixed("module.backbone.", query.state_dict()), **head("module.head.mlp.0.", 384)},
        "teacher": {**prefixed("backbone.", key.state_dict()), **head("head.mlp.0.", 384)},
        "epoch": 100,
        "dino_loss": {"center": torch.zeros(1, 16)},
    }
    return Sample(save(content), "DINO", query, key, "vit_small_patch16_224")


def official_v3(query: nn.Module, architecture: str, head: str = "head", extra: State | None = None) -> Sample:
    heads = f"module.base_encoder.{head}. module.momentum_encoder.{head}. module.predictor."
    prefixes = ("module.base_encoder.", "module.momentum_encoder.")
    return sample("official MoCo v3", query, *prefixes, heads, architecture=architecture, extra=extra, epoch=300)


def v3_conv() -> Sample:
    """The authors' vit_conv_small: a stack of convolutions in place of the patch projection, 12 heads."""
    name = "vit_small_patch16_224"
    return official_v3(seen(create_backbone(name, conv_stem=True, depth=2, num_heads=12, img_size=64)), name)


def v3_linear() -> Sample:
    """What the authors' main_lincls.py saves of ViT-S: nothing but ``arch`` and ``best_acc1`` tell that it is v3's."""
    name = "vit_small_patch16_224"
    content = {"epoch": 90, "arch": "vit_small", "best_acc1": torch.tensor(73.2), "optimizer": {}}
    return sample("timm", tiny_vit(name, num_heads=12), "module.", None, "module.head.", architecture=name, **content)


def solo_learn_v3() -> Sample:
    """solo-learn's MoCo v3: its ViT-S has 12 heads, as the authors'."""
    content = {"pytorch-lightning_version": "2.0.0", "hyper_parameters": {"method": "mocov3"}}
    return solo_learn_vit("vit_small_patch16_224", **content)


def solo_learn_vit(name: str, **content: Any) -> Sample:
    heads, query = "projector.0. momentum_projector.0. predictor.0.", tiny_vit(name, num_heads=12)
    return sample("solo-learn", query, "backbone.", "momentum_backbone.", heads, architecture=name, epoch=9, **content)


def solo_learn_v3_old() -> Sample:
    """An older file, whose method is in the args.json beside it; solo-learn's ViT-Ti has 12 heads too."""
    found = solo_learn_vit("vit_tiny_patch16_224")

    def write(path: Path) -> None:
        found.write(path)
        path.with_name("args.json").write_text(json.dumps({"method": "mocov3", "backbone": {"name": "vit_tiny"}}))

    return replace(found, write=write)


def own_state_dict() -> Sample:
    """What torch.save(model.state_dict()) makes of a method in a loop of one's own."""
    query: Any = narrow_resnet()
    model = MoCo(query, feature_dim=query.num_features, dim=8, queue_size=16)
    model.encoder_k = other(model.encoder_k)
    key: Any = model.encoder_k
    return Sample(save(model.state_dict()), "moco_plugin", query, key.backbone)


class DINOv2(nn.Module):
    """DINOv2's order of things: positions first, then registers between class token and patches."""

    def __init__(self, registers: int = 4) -> None:
        super().__init__()
        vit: Any = tiny_vit("vit_tiny_patch16_224", init_values=1e-5)
        for block in vit.blocks:
            block.ls1.gamma.data.fill_(0.7)
            block.ls2.gamma.data.fill_(0.4)
        self.vit = vit
        self.registers = nn.Parameter(torch.randn(1, registers, vit.embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        vit = self.vit
        patches = vit.patch_embed(images)
        tokens = torch.cat([vit.cls_token.expand(len(images), -1, -1), patches], dim=1) + vit.pos_embed
        tokens = torch.cat([tokens[:, :1], self.registers.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)
        found: Tensor = vit.norm(vit.blocks(tokens))[:, 0]
        return found


def dinov2_registers() -> Sample:
    model = DINOv2().eval()
    state = {name.replace("blocks.", "blocks.0."): value for name, value in model.vit.state_dict().items()}
    state |= {"register_tokens": model.registers.detach(), "mask_token": torch.zeros(1, 192)}
    return Sample(save(state), "timm", model, architecture="vit_tiny_patch16_224")


def model_and_ema() -> Sample:
    query = narrow_resnet()
    key = other(query)
    content = {"model": query.state_dict(), "model_ema": key.state_dict(), "epoch": 4}
    return Sample(save(content), "timm", query, key)


def hugging_face_state(vit: nn.Module, names: dict[str, str], query: str, layer: str = "encoder.layer.") -> State:
    """A ViT's weights in transformers' names, in which queries, keys and values are apart."""
    state: State = {}
    for name, value in vit.state_dict().items():
        name = re.sub(r"^norm\.", "layernorm.", re.sub(r"^blocks\.", layer, name))
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                full = query.format({"q": "query", "k": "key", "v": "value"}[part] if "attention." in query else part)
                state[name.replace("attn.qkv", f"attention.{full}")] = piece.clone()
        else:
            state[name] = value
    return state


def hugging_face_vit() -> Sample:
    """The folder that transformers' save_pretrained writes, in two shards."""
    model = tiny_vit("vit_tiny_patch16_224")
    state = prefixed("vit.", hugging_face_state(model, HUGGING_FACE_NAMES, "attention.{}")) | head("classifier.", 192)

    def write(path: Path) -> None:
        path.mkdir()
        names = sorted(state)
        shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in shards.items():
            safetensors.torch.save_file({name: state[name].contiguous() for name in held}, path / file)
        file_of = {name: file for file, held in shards.items() for name in held}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
        (path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 3}))

    return Sample(write, "Hugging Face", model, architecture="vit_tiny_patch16_224")


def hugging_face_dinov2(version: int) -> Sample:
    """transformers' Dinov2WithRegistersModel, in the names of its files and in those of its version 5."""
    model = DINOv2().eval()
    kept = ("patch_embed.proj", "cls_token", "pos_embed", "attn.proj")
    names = {name: HUGGING_FACE_NAMES[name] for name in kept} | {".ls1.gamma": ".layer_scale1.lambda1"}
    names |= {".ls2.gamma": ".layer_scale2.lambda1"} | ({"attn.proj": "attention.o_proj"} if version == 5 else {})
    state = hugging_face_state(model.vit, names, "{}_proj" if version == 5 else "attention.{}")
    state |= {"embeddings.register_tokens": model.registers.detach(), "embeddings.mask_token": torch.zeros(1, 192)}
    return Sample(save(state), "Hugging Face", model, architecture="vit_tiny_patch16_224")


def hugging_face_resnet() -> Sample:
    model = torchvision_resnet()
    state: State = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^(conv|bn)1\.", r"embedder.embedder.\1.", name)
        name = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name)
        name = re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".layer.{int(m[2]) - 1}.{m[1]}.", name)
        for ours, theirs in {"downsample.0": "shortcut.conv", "downsample.1": "shortcut.bn"}.items():
            name = name.replace(ours, theirs)
        state[f"resnet.{name.replace('.conv.', '.convolution.').replace('.bn.', '.normalization.')}"] = value
    return Sample(save(state | head("classifier.1.", 512)), "Hugging Face", model)


# ResNets of methods: the layout, the key of the state dict, the prefixes of the two encoders, heads, and other tensors.
RESNETS = """
DenseCL; state_dict; encoder_q.0.; encoder_k.0.; encoder_q.1.mlp.0. encoder_q.1.mlp2.0. encoder_k.1.mlp.0.; queue queue2
PixPro; model; module.encoder.; module.encoder_k.; module.projector.l. module.projector_k.l. module.value_transform.;
Barlow Twins; model; module.backbone.; ; module.projector.0.; module.bn.running_mean
VICReg; model; module.backbone.; ; module.projector.0.;
VICRegL; model; module.backbone.; ; module.maps_projector.0. module.projector.0.;
SwAV; state_dict; module.; ; module.projection_head.0.; module.prototypes.weight
SimSiam; state_dict; module.encoder.; ; module.encoder.fc.0. module.predictor.0.;
"""


def of_row(row: str) -> Sample:
    layout, under, query, key, heads, names = (part.strip() for part in row.split(";"))
    extra = {name: torch.randn(8, 16) for name in names.split()}
    return sample(layout, narrow_resnet(), query, key or None, heads, extra=extra, under=under, epoch=99)


METHOD_SAMPLES: dict[str, Callable[[], Sample]] = {
    **{
        row.partition(";")[0].lower().replace(" ", "_"): functools.partial(of_row, row)
        for row in RESNETS.strip().splitlines()
    },
    "byol": byol,
    "mae": mae,
    "dino": dino,
    "v3_conv": v3_conv,
    "v3_linear": v3_linear,
    "solo_learn_v3": solo_learn_v3,
    "solo_learn_v3_old": solo_learn_v3_old,
    "own_state_dict": own_state_dict,
    "dinov2_registers": dinov2_registers,
    "model_and_ema": model_and_ema,
    "hugging_face_vit": hugging_face_vit,
    "hugging_face_dinov2": lambda: hugging_face_dinov2(4),
    "hugging_face_dinov2_v5": lambda: hugging_face_dinov2(5),
    "hugging_face_resnet": hugging_face_resnet,
}
