"""Small checkpoints in every layout: from the frameworks' own code where it installs, else with their documented names."""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from lightly_train._commands.common_helpers import ModelFormat
from omegaconf import OmegaConf
from torch import Tensor, nn

from moco_plugin.transfer.to_detectron2 import detectron2_name, save_zoo_pickle
from tests.helpers.foreign_lightly import (
    lightly_benchmark,
    lightly_generator,
    lightly_masked,
    lightly_sequential,
    lightly_train_convnext,
    lightly_train_export,
    lightly_train_moco,
    lightly_train_timm,
    lightly_train_torchvision,
)
from tests.helpers.foreign_methods import METHOD_SAMPLES
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
    torchvision_vit,
)

# --- the released code


def official_v2() -> Sample:
    query = narrow_resnet("resnet50")
    key = other(query)
    state = {
        **prefixed("module.encoder_q.", {**query.state_dict(), **head("fc.", 128)}),
        **prefixed("module.encoder_k.", {**key.state_dict(), **head("fc.", 128)}),
        "module.queue": torch.randn(8, 32),
        "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
    }
    optimizer = torch.optim.SGD(query.parameters(), 0.1, momentum=0.9)
    content = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer.state_dict()}
    return Sample(save(content, legacy=True), "official MoCo v1/v2", query, key)


def official_v3_resnet() -> Sample:
    query = torchvision_resnet("Bottleneck", width_per_group=16)
    key = other(query)
    heads = {"fc.0.weight": torch.randn(16, 2048), "fc.1.running_mean": torch.randn(16)}
    state = {
        **prefixed("module.base_encoder.", {**query.state_dict(), **heads}),
        **prefixed("module.momentum_encoder.", {**key.state_dict(), **heads}),
        **head("module.predictor.", 16),
    }
    return Sample(save({"epoch": 100, "state_dict": state}), "official MoCo v3", query, key, "wide_resnet")


def official_v3_vit(dim: int = 384) -> Sample:
    name = "vit_small_patch16_224" if dim == 384 else "vit_base_patch16_224"
    query = tiny_vit(name, num_heads=12)
    key = other(query)
    state = {
        **prefixed("module.base_encoder.", {**query.state_dict(), **head("head.", dim)}),
        **prefixed("module.momentum_encoder.", {**key.state_dict(), **head("head.", dim)}),
        **head("module.predictor.", 16),
    }
    return Sample(save({"epoch": 300, "state_dict": state}), "official MoCo v3", query, key, name)


# --- lightly


# --- LightlyTrain


# --- solo-learn, MMSelfSup, MMPreTrain, VISSL: their documented names


def solo_learn() -> Sample:
    """A run on CIFAR: a 3x3 stem with padding 2 and no max-pool; hyperparameters are an omegaconf object."""
    query: Any = narrow_resnet()
    query.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
    query.maxpool = nn.Identity()
    key = other(query)
    state = {
        **prefixed("backbone.", query.state_dict()),
        **prefixed("momentum_backbone.", key.state_dict()),
        **head("projector.", 32),
        **head("momentum_projector.", 32),
        "queue": torch.randn(2, 8, 16),
        "queue_ptr": torch.zeros(1),
        "classifier.weight": torch.randn(10, 32),
    }
    content = {
        "epoch": 9,
        "global_step": 100,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "hyper_parameters": OmegaConf.create({"method": "mocov2plus", "backbone": {"name": "resnet18"}}),
    }
    return Sample(save(content), "solo-learn", query, key)


def solo_learn_old() -> Sample:
    query = narrow_resnet()
    state = {**prefixed("encoder.", query.state_dict()), **head("projector.", 32), "mystery.weight": torch.zeros(2)}
    content = {"state_dict": state, "hyper_parameters": argparse.Namespace(method="simclr")}
    return Sample(save(content), "solo-learn", query, unused=("state_dict.mystery.weight",))


def mmselfsup() -> Sample:
    query = narrow_resnet()
    key = other(query)
    state = {
        **prefixed("backbone.", query.state_dict()),
        **prefixed("encoder_q.0.", query.state_dict()),
        **prefixed("encoder_k.0.", key.state_dict()),
        **head("encoder_q.1.mlp.", 32),
        **head("encoder_k.1.mlp.", 32),
        **head("neck.mlp.", 32),
        "queue": torch.randn(8, 16),
        "queue_ptr": torch.zeros(1),
    }
    meta = {"epoch": 200, "config": "model = dict(\n    type='MOCO',\n    queue_len=65536)"}
    return Sample(save({"meta": meta, "state_dict": state, "optimizer": {}}), "MMSelfSup/MMPreTrain", query, key)


def mm_vit_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def rename(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "blocks":
            inner = {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
            rest = ".".join(parts[2:])
            for ours, theirs in inner.items():
                rest = rest.replace(ours, theirs)
            return f"layers.{parts[1]}.{rest}"
        return name.replace("patch_embed.proj", "patch_embed.projection").replace("norm.", "ln1.")

    return {rename(name): value for name, value in state.items()}


def mmpretrain_v3() -> Sample:
    """MMPreTrain's MoCo v3; its ViT-S has 12 heads, as the paper's."""
    query = tiny_vit("vit_small_patch16_224", num_heads=12)
    key = other(query)
    state = {
        **prefixed("backbone.", mm_vit_names(query.state_dict())),
        **head("neck.", 384),
        **head("head.predictor.", 16),
        **prefixed("momentum_encoder.module.0.", mm_vit_names(key.state_dict())),
        **head("momentum_encoder.module.1.", 384),
        "momentum_encoder.steps": torch.zeros(1),
        "data_preprocessor.mean": torch.tensor([127.5, 127.5, 127.5]).view(3, 1, 1),
        "data_preprocessor.std": torch.tensor([127.5, 127.5, 127.5]).view(3, 1, 1),
    }
    return Sample(save({"meta": {"epoch": 300}, "state_dict": state}), "MMSelfSup/MMPreTrain", query, key, "vit_small")


def vissl() -> Sample:
    query = narrow_resnet("resnet50")
    key = other(query)
    content = {
        "phase_idx": 199,
        "iteration": 5,
        "loss": 0.1,
        "classy_state_dict": {
            "train_phase_idx": 199,
            "base_model": {
                "model": {
                    "trunk": prefixed("_feature_blocks.", query.state_dict()),
                    "heads": {"0.clf.0.weight": torch.randn(8, 128)},
                }
            },
            "loss": {"queue": torch.randn(8, 16), **prefixed("moco_encoder.trunk._feature_blocks.", key.state_dict())},
            "optimizer": {"state": {0: torch.zeros(3)}},
        },
    }
    return Sample(save(content, legacy=True), "VISSL", query, key)


# --- plain state dicts


def torchvision_plain() -> Sample:
    model = torchvision_resnet("Bottleneck", groups=4, width_per_group=4)
    state = {**prefixed("module.", model.state_dict()), "module.fc.weight": torch.randn(3, 2048)}
    return Sample(save({"state_dict": state, "epoch": 3}), "torchvision", model, architecture="resnext")


def torchvision_vision_transformer() -> Sample:
    model = torchvision_vit()
    return Sample(save(model.state_dict()), "torchvision", model, architecture="vit_tiny_patch16_224")


def timm_train() -> Sample:
    """What timm's train.py saves, EMA and arguments included; its shapes do not determine the network."""
    query = seen(timm.create_model("mobilenetv3_small_050", num_classes=10))
    key = other(query)
    content = {
        "epoch": 3,
        "arch": "mobilenetv3_small_050",
        "state_dict": query.state_dict(),
        "optimizer": {"state": {}},
        "args": argparse.Namespace(model="mobilenetv3_small_050"),
        "state_dict_ema": key.state_dict(),
    }
    models = copy.deepcopy(query), copy.deepcopy(key)
    for model in models:
        model.reset_classifier(0)
    return Sample(save(content), "timm", *models, "mobilenetv3_small_050")


def timm_safetensors() -> Sample:
    model = tiny_vit("vit_tiny_patch16_224", class_token=False, global_pool="avg")

    def write(path: Path) -> None:
        safetensors.torch.save_file(dict(model.state_dict()), path, {"format": "pt"})

    return Sample(write, "timm", model, architecture="vit_tiny_patch16_224")


def timm_folder() -> Sample:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, depths=(1, 1), embed_dim=12, num_heads=(1, 2)
    )
    bare = copy.deepcopy(model).eval()
    bare.reset_classifier(0)

    def write(path: Path) -> None:
        timm.models.save_for_hf(model, path, safe_serialization=True)

    return Sample(write, "timm", bare, architecture="swin_tiny")


def detectron2_pickle() -> Sample:
    model = narrow_resnet("resnet50")
    arrays = {detectron2_name(n): v.numpy() for n, v in {**model.state_dict(), **head("fc.", 128)}.items()}
    metadata = {"stride_in_1x1": False, "input_format": "RGB", "method": "moco_v2", "epoch": 7}
    return Sample(lambda path: save_zoo_pickle(path, arrays, metadata), "detectron2", model)


SAMPLES: dict[str, Callable[[], Sample]] = {
    "official_v2": official_v2,
    "official_v3_resnet": official_v3_resnet,
    "official_v3_vit_small": official_v3_vit,
    "lightly_sequential": lightly_sequential,
    "lightly_benchmark": lightly_benchmark,
    "lightly_generator": lightly_generator,
    "lightly_masked": lightly_masked,
    "lightly_train_timm": lightly_train_timm,
    "lightly_train_moco": lightly_train_moco,
    "lightly_train_convnext": lightly_train_convnext,
    "lightly_train_torchvision": lightly_train_torchvision,
    "lightly_train_export": lambda: lightly_train_export(ModelFormat.PACKAGE_DEFAULT, narrow_resnet(), "torchvision"),
    "lightly_train_whole": lambda: lightly_train_export(ModelFormat.TORCH_MODEL, narrow_resnet(), "torchvision"),
    "solo_learn": solo_learn,
    "solo_learn_old": solo_learn_old,
    "mmselfsup": mmselfsup,
    "mmpretrain_v3": mmpretrain_v3,
    "vissl": vissl,
    "torchvision_plain": torchvision_plain,
    "torchvision_vit": torchvision_vision_transformer,
    "timm_train": timm_train,
    "timm_safetensors": timm_safetensors,
    "timm_folder": timm_folder,
    "detectron2_pickle": detectron2_pickle,
    **METHOD_SAMPLES,
}
