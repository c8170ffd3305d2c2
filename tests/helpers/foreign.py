"""Small checkpoints in every layout: from the frameworks' own code where it installs, else with their documented names."""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from moco_plugin.transfer.to_detectron2 import detectron2_name, save_zoo_pickle
from tests.helpers.foreign_lightly import LIGHTLY_SAMPLES
from tests.helpers.foreign_methods import METHOD_SAMPLES, official_v3, queue, sample
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


def official_v2() -> Sample:
    query = narrow_resnet("resnet50")
    optimizer = torch.optim.SGD(query.parameters(), 0.1, momentum=0.9).state_dict()
    prefixes = ("module.encoder_q.", "module.encoder_k.")
    heads = "module.encoder_q.fc. module.encoder_k.fc."
    content = {"epoch": 200, "arch": "resnet50", "extra": prefixed("module.", queue()), "optimizer": optimizer}
    return sample("official MoCo v1/v2", query, *prefixes, heads, legacy=True, **content)


def official_v3_resnet() -> Sample:
    query = torchvision_resnet("Bottleneck", width_per_group=16)
    return official_v3(query, "wide_resnet", "fc", {"module.base_encoder.fc.1.running_mean": torch.randn(16)})


def official_v3_vit() -> Sample:
    return official_v3(tiny_vit("vit_small_patch16_224", num_heads=12), "vit_small_patch16_224")


def solo_learn() -> Sample:
    """A run on CIFAR: a 3x3 stem with padding 2 and no max-pool; hyperparameters are an omegaconf object."""
    query: Any = narrow_resnet()
    query.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
    query.maxpool = nn.Identity()
    about = OmegaConf.create({"method": "mocov2plus", "backbone": {"name": "resnet18"}})
    content = {"epoch": 9, "pytorch-lightning_version": "2.0.0", "hyper_parameters": about, "extra": queue()}
    heads = "projector. momentum_projector. classifier."
    return sample("solo-learn", query, "backbone.", "momentum_backbone.", heads, **content)


def solo_learn_old() -> Sample:
    name, about = "mystery.weight", argparse.Namespace(method="simclr")
    content = {"extra": {name: torch.zeros(2)}, "unused": (f"state_dict.{name}",), "hyper_parameters": about}
    return sample("solo-learn", narrow_resnet(), "encoder.", None, "projector.", **content)


def mmselfsup() -> Sample:
    query = narrow_resnet()
    meta = {"epoch": 200, "config": "model = dict(\n    type='MOCO',\n    queue_len=65536)"}
    heads = "encoder_q.1.mlp. encoder_k.1.mlp. neck.mlp."
    extra = {**prefixed("encoder_q.0.", query.state_dict()), **queue()}
    return sample("MMSelfSup/MMPreTrain", query, "backbone.", "encoder_k.0.", heads, extra=extra, meta=meta)


MM_VIT_NAMES = (
    "blocks layers norm. ln1. norm ln mlp.fc1 ffn.layers.0.0 mlp.fc2 ffn.layers.1 embed.proj embed.projection"
)


def mm_vit_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = MM_VIT_NAMES.split()
    for ours, theirs in zip(parts[::2], parts[1::2], strict=True):
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state


def mmpretrain_v3() -> Sample:
    """MMPreTrain's MoCo v3; its ViT-S has 12 heads, as the paper's."""
    query = tiny_vit("vit_small_patch16_224", num_heads=12)
    grey = torch.full((3, 1, 1), 127.5)
    extra = {"data_preprocessor.mean": grey, "data_preprocessor.std": grey, "momentum_encoder.steps": torch.zeros(1)}
    heads, about = "neck. head.predictor. momentum_encoder.module.1.", {"extra": extra, "meta": {"epoch": 300}}
    prefixes, names = ("backbone.", "momentum_encoder.module.0."), {"architecture": "vit_small", "names": mm_vit_names}
    return sample("MMSelfSup/MMPreTrain", query, *prefixes, heads, **names, **about)


def vissl() -> Sample:
    query = narrow_resnet("resnet50")
    key = other(query)
    trunk = prefixed("_feature_blocks.", query.state_dict())
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.randn(8, 128)}}
    loss = {**queue(), **prefixed("moco_encoder.trunk._feature_blocks.", key.state_dict())}
    content = {"train_phase_idx": 199, "base_model": {"model": model}, "loss": loss, "optimizer": {"state": {}}}
    return Sample(save({"iteration": 5, "classy_state_dict": content}, legacy=True), "VISSL", query, key)


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
    about = {"epoch": 3, "arch": "mobilenetv3_small_050", "args": argparse.Namespace(model="mobilenetv3_small_050")}
    content = {**about, "state_dict": query.state_dict(), "state_dict_ema": key.state_dict()}
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
    size = {"depths": (1, 1), "embed_dim": 12, "num_heads": (1, 2)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **size)
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
    **LIGHTLY_SAMPLES,
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
