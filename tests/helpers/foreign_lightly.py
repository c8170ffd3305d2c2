"""Samples of checkpoints of lightly and LightlyTrain."""

import copy
import datetime
import logging
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
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
from torch import nn

from moco_plugin.methods.moco import MoCo
from tests.helpers.networks import Sample, narrow_resnet, other, prefixed, seen, tiny_vit, torchvision_resnet


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


def module_of(**parts: nn.Module) -> Any:
    module = pl.LightningModule()
    for name, part in parts.items():
        setattr(module, name, part)
    return module.eval()


def by_trainer(module: pl.LightningModule) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        quiet = dict.fromkeys("logger enable_checkpointing enable_progress_bar enable_model_summary".split(), False)
        trainer = pl.Trainer(accelerator="cpu", **quiet)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)

    return write


def lightly_sequential() -> Sample:
    module = LightlyMoCo(torchvision_resnet())
    return Sample(by_trainer(module), "lightly", module.backbone, module.backbone_momentum)


def lightly_benchmark() -> Sample:
    """As in lightly's ImageNet benchmark of MoCo v2: ``backbone`` is the momentum encoder."""
    key = torchvision_resnet()
    query, heads = other(key), [MoCoProjectionHead(512, 16, 8) for _ in range(2)]
    parts = {"backbone": key, "projection_head": heads[0], "query_backbone": query, "query_projection_head": heads[1]}
    return Sample(by_trainer(module_of(**parts, online_classifier=nn.Linear(512, 10))), "lightly", query, key)


def lightly_generator() -> Sample:
    """lightly's own ResNet for small images."""
    resnet = seen(ResNetGenerator("resnet-9", width=0.125))
    backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    relu = nn.Sequential(*list(resnet.children())[:2], nn.ReLU(), *backbone[2:])  # lightly's forward has it in between
    module = module_of(backbone=backbone, projection_head=MoCoProjectionHead(64, 16, 8))
    return Sample(by_trainer(module), "lightly", relu, architecture="resnet 1-1-1-1, channels 8")


def lightly_masked() -> Sample:
    """As in lightly's MAE example."""
    module = module_of(backbone=MaskedVisionTransformerTIMM(tiny_vit()), projection_head=nn.Linear(192, 8))
    return Sample(by_trainer(module), "lightly", module.backbone.vit, architecture="vit_tiny")


@contextmanager
def quiet() -> Iterator[None]:
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
        widths = dict.fromkeys(("hidden_dim", "bottleneck_dim", "output_dim"), 8)
        temperatures = {"teacher_temp": 0.04, "warmup_teacher_temp": 0.04, "momentum_start": 0.99}
        decay = {"weight_decay_start": 0.1, "weight_decay_end": 0.1, "student_freeze_last_layer_steps": 1}
        args = DINOArgs(**{**widths, **temperatures, **decay})
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
    encoder = key.backbone.embedding_model.wrapped_model.get_model()
    return Sample(write, "LightlyTrain", sample.query, encoder, "resnet18")


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


def lightly_train_export(format: ModelFormat) -> Sample:
    model = narrow_resnet()
    with quiet():
        wrapped = package_helpers.get_wrapped_model(model, num_input_channels=3)
        package = package_helpers.get_package_from_model(wrapped, include_custom=True, fallback_custom=True)

    def write(path: Path) -> None:
        with quiet():
            export_model(model=wrapped, format=format, out=path, package=package, log_example=False)

    return Sample(write, "torchvision", model)


LIGHTLY_SAMPLES: dict[str, Callable[[], Sample]] = {
    "lightly_sequential": lightly_sequential,
    "lightly_benchmark": lightly_benchmark,
    "lightly_generator": lightly_generator,
    "lightly_masked": lightly_masked,
    "lightly_train_timm": lightly_train_timm,
    "lightly_train_moco": lightly_train_moco,
    "lightly_train_convnext": lightly_train_convnext,
    "lightly_train_torchvision": lightly_train_torchvision,
    "lightly_train_export": lambda: lightly_train_export(ModelFormat.PACKAGE_DEFAULT),
    "lightly_train_whole": lambda: lightly_train_export(ModelFormat.TORCH_MODEL),
}
