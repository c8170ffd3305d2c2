"""Samples of checkpoints of other self-supervised methods, in the names of the authors' code."""

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone
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

KINDS = {"conv": "convolution", "bn": "normalization"}  # transformers' names in ResNets


def densecl() -> Sample:
    query = narrow_resnet()
    key = other(query)
    state = {
        **prefixed("encoder_q.0.", query.state_dict()),
        **prefixed("encoder_k.0.", key.state_dict()),
        **head("encoder_q.1.mlp.0.", 32),
        **head("encoder_q.1.mlp2.0.", 32),
        **head("encoder_k.1.mlp.0.", 32),
        "queue": torch.randn(8, 16),
        "queue2": torch.randn(8, 16),
        "queue2_ptr": torch.zeros(1),
    }
    return Sample(save({"meta": {"epoch": 200}, "state_dict": state}), "DenseCL", query, key)


def pixpro() -> Sample:
    query = narrow_resnet()
    key = other(query)
    state = {
        **prefixed("module.encoder.", query.state_dict()),
        **prefixed("module.encoder_k.", key.state_dict()),
        **head("module.projector.linear1.", 32),
        **head("module.projector_k.linear1.", 32),
        **head("module.value_transform.", 16),
    }
    return Sample(save({"epoch": 100, "model": state}), "PixPro", query, key)


def byol() -> Sample:
    query = narrow_resnet()
    key = other(query)
    content = {
        "online_encoder": {**prefixed("net.", query.state_dict()), **head("projector.0.", 32)},
        "target_encoder": {**prefixed("net.", key.state_dict()), **head("projector.0.", 32)},
        "online_predictor": head("0.", 16),
    }
    return Sample(save(content), "BYOL", query, key)


def barlow_twins() -> Sample:
    model = narrow_resnet()
    state = {**prefixed("module.backbone.", model.state_dict()), **head("module.projector.0.", 32)}
    state |= {"module.bn.running_mean": torch.randn(16), "module.bn.running_var": torch.ones(16)}
    return Sample(save({"epoch": 5, "model": state}), "Barlow Twins", model)


def vicreg() -> Sample:
    model = narrow_resnet()
    state = {**prefixed("module.backbone.", model.state_dict()), **head("module.projector.0.", 32)}
    return Sample(save({"epoch": 5, "model": state}), "VICReg", model)


def vicregl() -> Sample:
    model = narrow_resnet()
    state = {
        **prefixed("module.backbone.", model.state_dict()),
        **head("module.maps_projector.0.", 32),
        **head("module.projector.0.", 32),
    }
    return Sample(save({"epoch": 5, "model": state}), "VICRegL", model)


def swav() -> Sample:
    model = narrow_resnet()
    state = {
        **prefixed("module.", model.state_dict()),
        **head("module.projection_head.0.", 32),
        "module.prototypes.weight": torch.randn(30, 16),
    }
    return Sample(save({"epoch": 5, "state_dict": state}), "SwAV", model)


def simsiam() -> Sample:
    model = narrow_resnet()
    state = {
        **prefixed("module.encoder.", {**model.state_dict(), **head("fc.0.", 32)}),
        **head("module.predictor.0.", 32),
    }
    return Sample(save({"epoch": 99, "arch": "resnet18", "state_dict": state}), "SimSiam", model)


def mae() -> Sample:
    model = tiny_vit()
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 1, 16), "decoder_pos_embed": torch.zeros(1, 17, 16)}
    state |= {**head("decoder_embed.", 192), **head("decoder_blocks.0.norm1.", 16)}
    return Sample(save({"model": state, "epoch": 3}), "MAE", model, architecture="vit_tiny_patch16_224")


def dino() -> Sample:
    query = tiny_vit("vit_small_patch16_224")
    key = other(query)
    content = {
        "student": {**prefixed("module.backbone.", query.state_dict()), **head("module.head.mlp.0.", 384)},
        "teacher": {**prefixed("backbone.", key.state_dict()), **head("head.mlp.0.", 384)},
        "epoch": 100,
        "dino_loss": {"center": torch.zeros(1, 16)},
    }
    return Sample(save(content), "DINO", query, key, "vit_small_patch16_224")


def v3_conv(dim: int = 384) -> Sample:
    """The authors' vit_conv_small: a stack of convolutions in place of the patch projection, 12 heads."""
    name = "vit_small_patch16_224"
    query = seen(create_backbone(name, conv_stem=True, depth=2, num_heads=12, img_size=64))
    key = other(query)
    state = {
        **prefixed("module.base_encoder.", {**query.state_dict(), **head("head.", dim)}),
        **prefixed("module.momentum_encoder.", {**key.state_dict(), **head("head.", dim)}),
        **head("module.predictor.", 16),
    }
    return Sample(save({"epoch": 300, "state_dict": state}), "official MoCo v3", query, key, name)


def v3_linear() -> Sample:
    """What the authors' main_lincls.py saves of ViT-S: nothing but ``arch`` and ``best_acc1`` tell that it is v3's."""
    model = tiny_vit("vit_small_patch16_224", num_heads=12)
    state = prefixed("module.", {**model.state_dict(), **head("head.", 384)})
    content = {"epoch": 90, "arch": "vit_small", "best_acc1": torch.tensor(73.2), "state_dict": state, "optimizer": {}}
    return Sample(save(content), "timm", model, architecture="vit_small_patch16_224")


def solo_learn_v3() -> Sample:
    """solo-learn's MoCo v3: its ViT-S has 12 heads, as the authors'."""
    query = tiny_vit("vit_small_patch16_224", num_heads=12)
    key = other(query)
    state = {
        **prefixed("backbone.", query.state_dict()),
        **prefixed("momentum_backbone.", key.state_dict()),
        **head("projector.0.", 384),
        **head("momentum_projector.0.", 384),
        **head("predictor.0.", 16),
    }
    content = {
        "epoch": 9,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "hyper_parameters": {"method": "mocov3", "backbone": {"name": "vit_small"}},
    }
    return Sample(save(content), "solo-learn", query, key, "vit_small_patch16_224")


class DINOv2(nn.Module):
    """DINOv2's order of things: places first, then registers between class token and patches."""

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


def hugging_face_vit() -> Sample:
    """The folder that transformers' save_pretrained writes, in two shards."""
    model = tiny_vit("vit_tiny_patch16_224")
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^blocks\.(\d+)\.", r"encoder.layer.\1.", name)
        for ours, theirs in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
        ):
            name = name.replace(ours, theirs)
        name = re.sub(r"^norm\.", "layernorm.", name)
        if "attn.qkv" in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"vit.{name.replace('attn.qkv', f'attention.attention.{part}')}"] = piece.clone()
        else:
            state[f"vit.{name}"] = value
    state |= head("classifier.", 192)

    def write(path: Path) -> None:
        path.mkdir()
        names = sorted(state)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in parts.items():
            safetensors.torch.save_file({name: state[name].contiguous() for name in held}, path / file)
        places = {name: file for file, held in parts.items() for name in held}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        (path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 3}))

    return Sample(write, "Hugging Face", model, architecture="vit_tiny_patch16_224")


def hugging_face_resnet() -> Sample:
    model = torchvision_resnet()
    state = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^(conv1|bn1)\.", lambda m: f"embedder.embedder.{KINDS[m[1][:-1]]}.", name)
        name = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name)
        name = re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".layer.{int(m[2]) - 1}.{KINDS[m[1]]}.", name)
        name = name.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
        state[f"resnet.{name}"] = value
    state |= head("classifier.1.", 512)
    return Sample(save(state), "Hugging Face", model)


METHOD_SAMPLES = {
    function.__name__: function
    for function in (
        densecl,
        pixpro,
        byol,
        barlow_twins,
        vicreg,
        vicregl,
        swav,
        simsiam,
        mae,
        dino,
        v3_conv,
        v3_linear,
        solo_learn_v3,
        dinov2_registers,
        model_and_ema,
        hugging_face_vit,
        hugging_face_resnet,
    )
}
