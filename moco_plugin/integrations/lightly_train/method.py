"""Our methods as LightlyTrain's ``Method``: the network's start, the step, the checkpoint, the optimizer."""

import copy
import math
import os
from typing import Any, ClassVar, Literal, cast

import albumentations
from lightly_train._methods.method import Method, TrainingStepResult
from lightly_train._methods.simclr.simclr_transform import SimCLRTransform, SimCLRTransformArgs
from lightly_train._optim.optimizer_args import OptimizerArgs
from lightly_train._optim.optimizer_type import OptimizerType
from lightly_train._optim.trainable_modules import TrainableModules
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck

from moco_plugin import backbones
from moco_plugin.data.order import seed_of
from moco_plugin.integrations.lightly_train.arguments import (
    OPTIMIZER_ARGS,
    MoCoArgs,
    auto_optimizer_args,
    is_trained,
    method_args,
    optimizer_args,
    recipe_of,
    recipes,
    transform_args,
)
from moco_plugin.methods import METHODS, build_method
from moco_plugin.methods.batch_norm import SyncBatchNorm
from moco_plugin.pretraining.config import PretrainConfig
from moco_plugin.pretraining.prepare import keys_of_batch, queue_warning
from moco_plugin.pretraining.run import check_batch
from moco_plugin.runs.config import ScheduleConfig
from moco_plugin.runs.schedules import lr_schedule, with_schedule


class MoCoTransform(SimCLRTransform):
    """The two views of a method, made by LightlyTrain's transforms.

    Args:
        transform_args: What ``transform_args_cls()`` returns.
    """

    method: ClassVar[str]

    def __init__(self, transform_args: Any) -> None:
        super().__init__(transform_args)
        if second := getattr(transform_args, "view_2", None):
            other = transform_args.model_copy(update=dict(second))
            self.transforms = [self.transforms[0], SimCLRTransform(other).transforms[0]]
        if METHODS.get(self.method).views == "moco_v1":  # v1 greys before the jitter, LightlyTrain after it
            view = self.transforms[0]  # which is both
            steps = list(view.transform.transforms)
            grey = [step for step in steps if isinstance(step, albumentations.ToGray)]
            jitter = [step for step in steps if isinstance(step, albumentations.ColorJitter)]
            if grey and jitter:
                steps.remove(grey[0])
                steps.insert(steps.index(jitter[0]), grey[0])
                view.transform = albumentations.Compose(steps)

    @classmethod
    def transform_args_cls(cls) -> type[SimCLRTransformArgs]:
        return transform_args(cls.method)


class Features(nn.Module):
    """LightlyTrain's embedding model as a backbone: N x C x H x W images to N x D features."""

    def __init__(self, embedding_model: nn.Module) -> None:
        super().__init__()
        self.embedding_model = embedding_model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.embedding_model(images)).flatten(start_dim=1)


def start_as_in_paper(model: nn.Module, recipe: PretrainConfig) -> None:
    """Give an untrained network the paper's start; do nothing to a trained one.

    Args:
        model: The network, as LightlyTrain made it.
        recipe: Of the method.
    """
    if is_trained(model):
        return
    arguments = recipe.backbone_args
    if arguments.get("zero_init_last"):  # timm's ResNets start so
        for block in model.modules():
            if isinstance(block, (BasicBlock, Bottleneck)):
                nn.init.zeros_((block.bn2 if isinstance(block, BasicBlock) else block.bn3).weight)
    else:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and layer.weight is not None and not layer.weight.any():
                nn.init.ones_(layer.weight)  # timm's last of a block
    if arguments.get("sincos_position"):
        cast(VisionTransformer, model).init_weights(arguments["weight_init"])
        backbones.freeze_patch_projection(model, "model", pretrained=False)
        backbones.fix_position(model, "model")


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norm layers of a network by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def with_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replace layers of a network by copies of ``layers``, by name, that hold the weights of those replaced."""
    for name, layer in layers.items():
        state = model.get_submodule(name).state_dict()
        layer = copy.deepcopy(layer).to(next((value.device for value in state.values()), None))
        layer.load_state_dict(state)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)


class MoCoMethod(Method):
    """One of our methods as a LightlyTrain method; subclasses name it.

    LightlyTrain saves and exports the network that it made, which becomes the query encoder's backbone.
    """

    method_name: ClassVar[str]

    def __init__(
        self,
        method_args: Any,
        optimizer_args: OptimizerArgs,
        embedding_model: Any,
        global_batch_size: int,
        num_input_channels: int,
    ) -> None:
        super().__init__(method_args, optimizer_args, embedding_model, global_batch_size, num_input_channels)
        self.method_args = method_args
        model = embedding_model.wrapped_model.get_model()
        if method_args.paper_start and isinstance(model, nn.Module):
            start_as_in_paper(model, recipe_of(self.method_name, embedding_model.wrapped_model))
        arguments = {name: getattr(method_args, name) for name in method_args.own}
        if method_args._chosen_queue:
            arguments["queue_size"] = max(arguments["queue_size"], keys_of_batch(global_batch_size, arguments))
        self.batch_norms = batch_norms(embedding_model)  # before the method puts its own in their place
        self.method = build_method(self.method_name, Features(embedding_model), embedding_model.embed_dim, **arguments)

    @property
    def embedding_model(self) -> Any:
        """LightlyTrain's network, with the method's layers; torch has it registered as the backbone alone."""
        return self.method.backbone.embedding_model

    @classmethod
    def method_args_cls(cls) -> type[MoCoArgs]:
        return method_args(cls.method_name)

    @classmethod
    def optimizer_args_cls(cls, optim_type: OptimizerType | Literal["auto"]) -> type[OptimizerArgs]:
        if optim_type == "auto":
            return auto_optimizer_args(cls.method_name)
        by_type = {args.type(): args for args in map(optimizer_args, recipes(cls.method_name))}
        return {**OPTIMIZER_ARGS, **by_type}.get(optim_type) or Method.optimizer_args_cls(optim_type)

    @classmethod
    def transform_cls(cls) -> type[MoCoTransform]:
        return type("MoCoTransform", (MoCoTransform,), {"method": cls.method_name})

    def setup(self, stage: str) -> None:
        """Leave batch norm over several processes to the method, and broadcast no buffers."""
        strategy: Any = self.trainer.strategy
        # LightlyTrain asks for SyncBN on GPUs, which would undo shuffled and split BN; Lightning has no public switch
        strategy._layer_sync = None
        if hasattr(strategy, "_ddp_kwargs"):  # queues are equal on all processes
            strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
        if getattr(self.method_args, "batch_norm", "") == "auto" and strategy.root_device.type != "cuda":
            for layer in self.method.modules():  # v3's auto looked at the machine, which may have a GPU
                if isinstance(layer, SyncBatchNorm):
                    layer.alone = True

    def on_train_start(self) -> None:
        """Check the batch size, which LightlyTrain may have changed; warn if the queue is larger than the set."""
        processes = self.trainer.world_size
        loader: Any = self.trainer.train_dataloader
        batch = getattr(loader, "batch_size", None)
        if batch is not None:
            check_batch(batch * processes, self.method, processes, "batch_size")
        self.method.even_batches = bool(getattr(loader, "drop_last", False))
        sentence = queue_warning(self.method, len(loader.dataset)) if hasattr(loader, "dataset") else ""
        if sentence and self.trainer.is_global_zero:
            print(sentence)

    def training_step_impl(self, batch: Any, batch_idx: int) -> TrainingStepResult:
        """Run one step of the method; the key encoder is updated once per optimizer step."""
        view_q, view_k = batch["views"]
        progress = min(1.0, self.trainer.global_step / self.trainer.estimated_stepping_batches)
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning keeps LightlyTrain's
        self.method.seed_step(seed_of(seed, self.trainer.current_epoch, batch_idx))
        loss, metrics = self.method(view_q, view_k, progress, update_key_encoder=first)
        return TrainingStepResult(loss=loss, log_dict=metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the network with its original layers, so that it can be read without moco_plugin."""
        model = copy.deepcopy(self.embedding_model)
        with_layers(model, self.batch_norms)
        wrapped = model.wrapped_model
        models = {"model": wrapped.get_model(), "wrapped_model": wrapped, "embedding_model": model}
        if "lightly_train" in checkpoint:
            checkpoint["lightly_train"]["models"] = models

    def on_fit_end(self) -> None:
        """Restore the network's original layers; LightlyTrain exports it next."""
        with_layers(self.embedding_model, self.batch_norms)

    def trainable_modules(self) -> TrainableModules:
        """Return the parts of the method that take a gradient."""
        parts = [part for part in self.method.children() if any(p.requires_grad for p in part.parameters())]
        return TrainableModules(modules=parts)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with weight decay on every parameter as in the papers, and the method's schedule."""
        scale = self.global_batch_size / self.method_args.reference_batch_size
        if self.method_args.lr_scale_method == "sqrt":
            scale = math.sqrt(scale)
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = self.optimizer_args.get_optimizer([{"name": "params", "params": parameters}], scale)
        epochs = max(1, self.trainer.max_epochs or 1)
        schedule = ScheduleConfig(epochs=epochs, **self.method_args.schedule.model_dump())
        total = max(1, int(self.trainer.estimated_stepping_batches))
        configured = with_schedule(optimizer, schedule, lr_schedule(schedule), total)
        return [optimizer], [configured["lr_scheduler"]]
