"""Small checkpoints in every layout: from the frameworks' own code where it installs, else with their documented names."""

from __future__ import annotations

import argparse
import copy
import datetime
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import timm
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from lightly_train._checkpoint import Checkpoint, CheckpointLightlyTrain, CheckpointLightlyTrainModels
from lightly_train._commands.common_helpers import ModelFormat, export_model
from lightly_train._methods.dino.dino import DINO, DINOArgs
from lightly_train._methods.simclr.simclr import SimCLR, SimCLRArgs, SimCLRSGDArgs
from lightly_train._models import package_helpers
from lightly_train._models.embedding_model import EmbeddingModel
from lightly_train._transforms.transform import NormalizeArgs
from omegaconf import OmegaConf
from torch import Tensor, nn

from moco_plugin.checkpoints.renaming import detectron2_name
from moco_plugin.checkpoints.zoo_pickle import save_zoo_pickle
from moco_plugin.methods.moco import MoCo

NARROW = {"channels": (8, 16, 24, 32), "layers": (1, 1, 1, 1), "zero_init_last": False}
TINY_VIT = {"depth": 2, "img_size": 64}


@dataclass
class Sample:
    """A file, and what reading it must give.

    Attributes:
        write: Writes the file (or folder) to a path.
        layout: Its layout's name.
        query: Maps images to the features of the encoder that is trained.
        key: The same for the momentum encoder; None if there is none.
        architecture: How the name of the backbone begins.
        unused: Names that must be listed.
    """

    write: Callable[[Path], None]
    layout: str
    query: nn.Module
    key: nn.Module | None = None
    architecture: str = "resnet"
    unused: tuple[str, ...] = ()


def seen(model: nn.Module) -> nn.Module:
    """A network whose batch norms have seen images, in eval mode."""
    for name, value in model.state_dict().items():
        if "running_mean" in name:
            value.normal_(std=0.1)
        elif "running_var" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


def other(model: nn.Module) -> nn.Module:
    """A copy with other weights, as a key encoder has."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    return model


def narrow_resnet(name: str = "resnet18", **arguments: Any) -> nn.Module:
    return seen(timm.create_model(name, num_classes=0, **{**NARROW, **arguments}))


def tiny_vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    return seen(timm.create_model(name, num_classes=0, **{**arguments, **TINY_VIT}))


def torchvision_resnet(block: str = "BasicBlock", layers: tuple[int, ...] = (1, 1, 1, 1), **arguments: Any) -> Any:
    kind: Any = getattr(torchvision.models.resnet, block)
    model = torchvision.models.ResNet(kind, list(layers), **arguments)
    model.fc = nn.Identity()  # type: ignore[assignment]
    return seen(model)


def torchvision_vit() -> Any:
    model = torchvision.models.VisionTransformer(64, 16, 2, 3, 192, 768)
    model.heads = nn.Identity()  # type: ignore[assignment]
    nn.init.normal_(model.conv_proj.bias)
    return model.eval()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def save(content: Any, legacy: bool = False) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def head(prefix: str, width: int) -> dict[str, Tensor]:
    return {f"{prefix}0.weight": torch.randn(16, width), f"{prefix}2.weight": torch.randn(8, 16)}


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


class LightlyMoCo(pl.LightningModule):
    """As in lightly's MoCo example: nn.Sequential over torchvision's children, momentum copies, a memory bank."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters({"path": pathlib.PurePosixPath("a/b"), "when": datetime.date(2024, 1, 1)})
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())
        self.projection_head = MoCoProjectionHead(512, 16, 8)
        self.backbone_momentum = other(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        self.criterion = NTXentLoss(memory_bank_size=(32, 8))


class LightlyBenchmark(pl.LightningModule):
    """As in lightly's ImageNet benchmark of MoCo v2: ``backbone`` is the momentum encoder."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters({"batch_size_per_device": 8})
        self.backbone = resnet
        self.projection_head = MoCoProjectionHead(512, 16, 8)
        self.query_backbone = other(self.backbone)
        self.query_projection_head = MoCoProjectionHead(512, 16, 8)
        self.online_classifier = nn.Linear(512, 10)


class LightlyMasked(pl.LightningModule):
    """As in lightly's MAE example."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(tiny_vit())  # type: ignore[arg-type]
        self.projection_head = nn.Linear(192, 8)


def by_trainer(module: pl.LightningModule) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            barebones=False,
        )
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)

    return write


def lightly_sequential() -> Sample:
    module = LightlyMoCo(torchvision_resnet())
    return Sample(by_trainer(module), "lightly", module.backbone, module.backbone_momentum)


def lightly_benchmark() -> Sample:
    module = LightlyBenchmark(torchvision_resnet())
    return Sample(by_trainer(module), "lightly", module.query_backbone, module.backbone)


def lightly_generator() -> Sample:
    """lightly's own ResNet for small images."""
    resnet = seen(ResNetGenerator("resnet-9", width=0.125))
    module = pl.LightningModule()
    backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.projection_head = MoCoProjectionHead(64, 16, 8)
    relu = nn.Sequential(*list(resnet.children())[:2], nn.ReLU(), *backbone[2:])  # lightly's forward has it in between
    module.backbone = backbone
    return Sample(by_trainer(module), "lightly", relu, architecture="resnet 1-1-1-1, channels 8")


def lightly_masked() -> Sample:
    module = LightlyMasked().eval()
    return Sample(by_trainer(module), "lightly", module.backbone.vit, architecture="vit_tiny")  # type: ignore[arg-type]


# --- LightlyTrain


@contextmanager
def quiet() -> Iterator[None]:
    import logging

    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def lightly_train(model: nn.Module, architecture: str, key: bool = False) -> Sample:
    """A checkpoint as LightlyTrain's callback saves it: state dict and, pickled whole, the models."""
    with quiet():
        wrapped = package_helpers.get_wrapped_model(model, num_input_channels=3)
    embedding = EmbeddingModel(wrapped)
    method: Any
    if key:
        args = DINOArgs(
            hidden_dim=8,
            bottleneck_dim=8,
            output_dim=8,
            teacher_temp=0.04,
            warmup_teacher_temp=0.04,
            momentum_start=0.99,
            weight_decay_start=0.1,
            weight_decay_end=0.1,
            student_freeze_last_layer_steps=1,
        )
        method = DINO(args, SimCLRSGDArgs(), embedding, 8, 3)
        method.student_embedding_model = other(method.student_embedding_model)
        query, teacher = (method.student_embedding_model.wrapped_model.get_model(), embedding.wrapped_model.get_model())
    else:
        method = SimCLR(SimCLRArgs(hidden_dim=8, output_dim=8), SimCLRSGDArgs(), embedding, 8, 3)
        query, teacher = wrapped.get_model(), None
    models = CheckpointLightlyTrainModels(model=wrapped.get_model(), wrapped_model=wrapped, embedding_model=embedding)
    info = CheckpointLightlyTrain.from_now(models=models, normalize_args=NormalizeArgs())
    return Sample(Checkpoint(method.state_dict(), info).save, "LightlyTrain", query, teacher, architecture)


def lightly_train_timm() -> Sample:
    return lightly_train(narrow_resnet(), "resnet18", key=True)


def lightly_train_moco() -> Sample:
    """As ``moco_plugin.integrations.lightly_train`` names its tensors."""
    sample = lightly_train(narrow_resnet(), "resnet18")
    embedding: Any = EmbeddingModel(package_helpers.get_wrapped_model(sample.query, num_input_channels=3))
    features = nn.ModuleDict({"embedding_model": embedding})
    method = MoCo(features, 32, queue_size=16, batch_norm="plain")
    method.encoder_k = other(method.encoder_k)

    def write(path: Path) -> None:
        sample.write(path)
        content = torch.load(path, weights_only=False)
        content["state_dict"] = prefixed("method.", method.state_dict())
        torch.save(content, path)

    key: Any = method.encoder_k
    return Sample(
        write, "LightlyTrain", sample.query, key.backbone.embedding_model.wrapped_model.get_model(), "resnet18"
    )


def lightly_train_convnext() -> Sample:
    """Shapes do not tell this one; its pickled module does."""
    model = timm.create_model("convnext_atto", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    return lightly_train(model.eval(), "convnext_atto")


def lightly_train_torchvision() -> Sample:
    model = seen(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]))
    sample = lightly_train(model, "resnet 1-1-1-1")
    sample.query = copy.deepcopy(model)
    sample.query.fc = nn.Identity()
    return sample


def lightly_train_export(format: ModelFormat, model: nn.Module, layout: str) -> Sample:
    with quiet():
        wrapped = package_helpers.get_wrapped_model(model, num_input_channels=3)
        package = package_helpers.get_package_from_model(wrapped, include_custom=True, fallback_custom=True)

    def write(path: Path) -> None:
        with quiet():
            export_model(model=wrapped, format=format, out=path, package=package, log_example=False)

    return Sample(write, layout, model)


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
    """What timm's train.py saves, EMA and arguments included; the network is one whose shapes do not tell it."""
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
        model.reset_classifier(0)  # type: ignore[operator]
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
}


def features(model: nn.Module) -> Tensor:
    """What a network gives for two fixed images of 64 x 64 (224 x 224 where it insists)."""
    side = getattr(getattr(model, "patch_embed", None), "img_size", (64, 64))[0]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images).flatten(1)
