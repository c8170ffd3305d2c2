"""MoCo inside LightlyTrain: importing this registers the methods moco, moco_v1, moco_v2 and moco_v3 there.

The methods are those of ``moco_plugin.methods``; their arguments, and the defaults of arguments, optimizer,
schedule and views, are read off them, the recipes in configs/pretrain and ``data/views.py``.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args, get_type_hints

import torch
from omegaconf import OmegaConf
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck

from moco_plugin import backbones
from moco_plugin.config import PretrainConfig, ScheduleConfig, load_config, queue_for, queue_warning, recipe_for
from moco_plugin.data.views import view_arguments
from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.methods import METHODS, arguments_of, build_method, method_class
from moco_plugin.pretraining.run import check_batch
from moco_plugin.training.optimizers import LARS
from moco_plugin.training.schedules import lr_schedule

TESTED = "0.15 to 0.18"


def _changed(reason: object) -> UserError:
    return UserError(
        f"this LightlyTrain is not one that moco_plugin knows ({reason}); it was tested with {TESTED}: "
        "pip install 'lightly-train>=0.15,<0.19'"
    )


try:
    import albumentations
    import lightly_train
    from lightly_train._configs.config import PydanticConfig
    from lightly_train._methods import method_helpers
    from lightly_train._methods.method import Method, TrainingStepResult
    from lightly_train._methods.method_args import MethodArgs
    from lightly_train._methods.simclr.simclr_transform import SimCLRTransform, SimCLRTransformArgs
    from lightly_train._optim.adamw_args import AdamWArgs
    from lightly_train._optim.optimizer_args import OptimizerArgs
    from lightly_train._optim.optimizer_type import OptimizerType
    from lightly_train._optim.sgd_args import SGDArgs
    from lightly_train._optim.trainable_modules import TrainableModules
    from lightly_train._transforms.transform import SolarizeArgs
    from lightly_train.errors import LightlyTrainError
    from pydantic import Field, create_model, model_validator
except ImportError as error:
    if error.name in ("lightly_train", "albumentations"):
        raise UserError("LightlyTrain is not installed; pip install 'moco-plugin[lightly-train]'") from error
    raise _changed(error) from error

Config = TypeVar("Config", bound=PydanticConfig)


@functools.cache
def _recipe(name: str) -> PretrainConfig:
    return load_config(name, ["data.root=''"])


def recipes(method: str) -> list[PretrainConfig]:
    """Return a method's recipes."""
    recipe = method_class(method).recipe
    return [_recipe(name) for name in ([recipe] if isinstance(recipe, str) else recipe.values())]


def is_trained(model: nn.Module) -> bool:
    """Return whether a network has been trained: the biases of its norms start at 0."""
    return any(
        bool(layer.bias.any())
        for layer in model.modules()
        if isinstance(layer, (nn.LayerNorm, _BatchNorm)) and layer.bias is not None
    )


def recipe_of(method: str, wrapped_model: Any) -> PretrainConfig:
    """Return the recipe of a method for a network that LightlyTrain has wrapped."""
    model = wrapped_model.get_model()
    return _recipe(recipe_for(method_class(method), model, is_trained(model)))


def with_defaults(base: type[Config], **defaults: Any) -> type[Config]:
    """Returns a subclass of one of LightlyTrain's argument classes with other defaults.

    Args:
        base: The class.
        **defaults: By field; a dict holds those of a nested class.
    """
    fields: dict[str, Any] = {}
    for name, value in defaults.items():
        info = base.model_fields[name]
        if isinstance(value, dict):
            classes = (info.annotation, *get_args(info.annotation))
            nested = next(c for c in classes if isinstance(c, type) and issubclass(c, PydanticConfig))
            part = with_defaults(nested, **value)
            fields[name] = (part | None, Field(default_factory=part))
        else:
            kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            fields[name] = (kind, value)
    return create_model(base.__name__, __base__=base, **fields)


# --- arguments of the methods


class ScheduleArgs(PydanticConfig):
    """The learning rate along the way, as under ``schedule`` in configs/pretrain; epochs are LightlyTrain's own."""

    name: str
    warmup_epochs: float | Literal["auto"] = "auto"
    """"auto": the recipe's, or as large a share of fewer epochs."""
    milestones: list[float]
    gamma: float
    interval: str


class MoCoArgs(MethodArgs):
    """What the arguments of all versions share; the method's own are added by ``method_args``."""

    method: ClassVar[str]
    own: ClassVar[tuple[str, ...]]
    """The arguments that go to the method."""

    paper_start: bool = True
    """Start a network that is not trained yet as the paper does: gamma 1 in all batch norms (v1, v2), gamma 0 in the
    last one of each residual block (v3); for v3's plain ViTs Xavier's initialisation, a fixed sin-cos position
    embedding and a frozen patch projection."""
    schedule: ScheduleArgs

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        known = list(cls.model_fields)
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                raise UsageError(
                    f"unknown key method_args.{key}; {cls.method} takes {', '.join(known)}{did_you_mean(key, known)}"
                )
        return given

    def resolve_auto(self, scaling_info: Any, optimizer_args: OptimizerArgs, wrapped_model: Any) -> None:
        """Replaces each "auto" by the recipe's value for this network and this number of images and epochs."""
        recipe = recipe_of(self.method, wrapped_model)
        queue = queue_for(scaling_info.dataset_size) if "queue_size" in self.own else {}
        values = recipe.method_args | queue
        for name in self.own:
            if getattr(self, name) == "auto" and name != "batch_norm":  # whose "auto" is the method's own
                setattr(self, name, values[name])
        if self.schedule.warmup_epochs == "auto":
            share = scaling_info.epochs / recipe.schedule.epochs
            self.schedule.warmup_epochs = float(recipe.schedule.warmup_epochs * min(1, share))


@functools.cache
def method_args(method: str) -> type[MoCoArgs]:
    """Returns LightlyTrain's argument class for a method: the arguments of our class, defaults from its recipe."""
    cls = method_class(method)
    own = arguments_of(cls)
    types: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        types |= get_type_hints(vars(base).get("__init__", object.__init__))
    fields: dict[str, Any] = {}
    for name, value in own.items():
        defaults = {recipe.method_args.get(name, value) for recipe in recipes(method)}
        auto = len(defaults) > 1 or ("queue_size" in own and name in ("queue_size", "momentum"))
        fields[name] = (types[name] | Literal["auto"], "auto") if auto else (types[name], *defaults)
    schedule = recipes(method)[0].schedule
    given = {name: getattr(schedule, name) for name in ("name", "milestones", "gamma", "interval")}
    part = with_defaults(ScheduleArgs, **given)
    result = create_model("MoCoArgs", __base__=MoCoArgs, schedule=(part, Field(default_factory=part)), **fields)
    result.method, result.own = method, tuple(fields)
    result.default_epochs = schedule.epochs
    return result


# --- optimizers


class LARSArgs(OptimizerArgs):
    """LARS with v3's trust ratio (lightly's has another)."""

    lr: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 0.001

    @staticmethod
    def type() -> OptimizerType:
        return OptimizerType.LARS

    def get_optimizer(self, params: Any, lr_scale: float) -> torch.optim.Optimizer:
        return LARS(params, **{**self.model_dump(), "lr": self.lr * lr_scale})


OPTIMIZERS: dict[OptimizerType, type[OptimizerArgs]] = {
    OptimizerType.SGD: SGDArgs,
    OptimizerType.LARS: LARSArgs,
    OptimizerType.ADAMW: AdamWArgs,
}


def optimizer_args(recipe: PretrainConfig) -> type[OptimizerArgs]:
    """Returns LightlyTrain's argument class of a recipe's optimizer, with the recipe's values as defaults."""
    base = OPTIMIZERS[OptimizerType(recipe.optimizer.name)]
    names = [name for name in ("lr", "momentum", "weight_decay") if name in base.model_fields]
    return with_defaults(base, **{name: getattr(recipe.optimizer, name) for name in names})


class MoCoV3OptimizerArgs(OptimizerArgs):
    """v3's ``optim=auto``: LARS or AdamW, by the network; other arguments need an optimizer named."""

    lr: float | Literal["auto"] = "auto"
    weight_decay: float | Literal["auto"] = "auto"

    @staticmethod
    def type() -> OptimizerType:
        return OptimizerType.LARS

    def resolve_auto(self, wrapped_model: Any) -> None:
        """Turns this object, which LightlyTrain keeps, into the recipe's optimizer arguments."""
        given = {key: value for key, value in self.model_dump().items() if value != "auto"}
        chosen = optimizer_args(recipe_of("moco_v3", wrapped_model))(**given)
        self.__class__ = chosen.__class__  # type: ignore[assignment]
        self.__setstate__(chosen.__getstate__())


# --- views


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
        if method_class(self.method).views == "moco_v1":  # v1 greys before the jitter, LightlyTrain after it
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


def _blur(view: dict[str, Any]) -> dict[str, Any] | None:
    return {"prob": view["gaussian_blur"], "sigmas": view["sigmas"]} if view["gaussian_blur"] else None


@functools.cache
def transform_args(method: str) -> type[SimCLRTransformArgs]:
    """Returns LightlyTrain's argument class for the views of a method, with the paper's values as defaults.

    v3's views differ: ``view_2`` holds the blur and the solarization of the second.
    """
    first, second = view_arguments(method_class(method).views, 224)
    result = with_defaults(
        SimCLRTransformArgs,
        random_resize={"min_scale": first["min_scale"]},
        random_flip={"horizontal_prob": first["hf_prob"], "vertical_prob": first["vf_prob"]},
        color_jitter={
            "prob": first["cj_prob"],
            "strength": first["cj_strength"],
            "brightness": first["cj_bright"],
            "contrast": first["cj_contrast"],
            "saturation": first["cj_sat"],
            "hue": first["cj_hue"],
        },
        random_gray_scale=first["random_gray_scale"],
        gaussian_blur=_blur(first),
    )
    if first == second:
        return result
    solarize = with_defaults(SolarizeArgs, prob=second["solarization_prob"], threshold=0.5)
    blur = with_defaults(result, gaussian_blur=_blur(second)).model_fields["gaussian_blur"]
    fields: dict[str, Any] = {
        "gaussian_blur": (blur.annotation, blur),
        "solarize": (solarize | None, Field(default_factory=solarize)),
    }
    view_2 = create_model("View2Args", __base__=PydanticConfig, **fields)
    return create_model("MoCoV3TransformArgs", __base__=result, view_2=(view_2, Field(default_factory=view_2)))


# --- the methods


class Features(nn.Module):
    """LightlyTrain's embedding model as a backbone of ours: N x C x H x W images to N x D features."""

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
    """Returns the batch norm layers of a network by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def with_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replaces layers of a network by copies of ``layers``, by name, that hold the weights of those replaced."""
    for name, layer in layers.items():
        layer = copy.deepcopy(layer)
        layer.load_state_dict(model.get_submodule(name).state_dict())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)


class MoCoMethod(Method):
    """A method of ours as one of LightlyTrain's; subclasses name it.

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
        self.embedding_model = [embedding_model]  # in a list: torch is to know it as the backbone alone
        self.batch_norms = batch_norms(embedding_model)  # before the method puts its own in their place
        self.method = build_method(self.method_name, Features(embedding_model), embedding_model.embed_dim, **arguments)

    @classmethod
    def method_args_cls(cls) -> type[MoCoArgs]:
        return method_args(cls.method_name)

    @classmethod
    def optimizer_args_cls(cls, optim_type: OptimizerType | Literal["auto"]) -> type[OptimizerArgs]:
        found = [optimizer_args(recipe) for recipe in recipes(cls.method_name)]
        by_type = {arguments.type(): arguments for arguments in found}
        if optim_type == "auto":
            return found[0] if len(found) == 1 else MoCoV3OptimizerArgs
        return {**OPTIMIZERS, **by_type}.get(optim_type) or Method.optimizer_args_cls(optim_type)

    @classmethod
    def transform_cls(cls) -> type[MoCoTransform]:
        return type("MoCoTransform", (MoCoTransform,), {"method": cls.method_name})

    def setup(self, stage: str) -> None:
        """Leaves batch norm over several processes to the method, and sends no buffers between them."""
        strategy: Any = self.trainer.strategy
        # LightlyTrain asks for SyncBN on GPUs, which would undo shuffled and split BN; Lightning has no public switch
        strategy._layer_sync = None
        if hasattr(strategy, "_ddp_kwargs"):  # queues are equal on all processes
            strategy._ddp_kwargs.setdefault("broadcast_buffers", False)

    def on_train_start(self) -> None:
        """Checks the batch, of whose size LightlyTrain has the last word, and warns of a queue larger than the set."""
        processes = self.trainer.world_size
        loader: Any = self.trainer.train_dataloader
        batch = getattr(loader, "batch_size", None)
        if batch is not None:
            check_batch(batch * processes, self.method, processes, "batch_size")
        sentence = queue_warning(self.method, len(loader.dataset)) if hasattr(loader, "dataset") else ""
        if sentence and self.trainer.is_global_zero:
            print(sentence)

    def training_step_impl(self, batch: Any, batch_idx: int) -> TrainingStepResult:
        """One step of the method; the key encoder moves once per optimizer step."""
        view_q, view_k = batch["views"]
        progress = min(1.0, self.trainer.global_step / self.trainer.estimated_stepping_batches)
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        loss, metrics = self.method(view_q, view_k, progress, update_key_encoder=first)
        return TrainingStepResult(loss=loss, log_dict=metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the network into the checkpoint with the layers it came with, to be read without moco_plugin."""
        model = copy.deepcopy(self.embedding_model[0])
        with_layers(model, self.batch_norms)
        wrapped = model.wrapped_model
        models = {"model": wrapped.get_model(), "wrapped_model": wrapped, "embedding_model": model}
        if "lightly_train" in checkpoint:
            checkpoint["lightly_train"]["models"] = models

    def on_fit_end(self) -> None:
        """Gives the network back as it came; LightlyTrain exports it next."""
        with_layers(self.embedding_model[0], self.batch_norms)

    def trainable_modules(self) -> TrainableModules:
        """Return the parts of the method that take a gradient."""
        parts = [part for part in self.method.children() if any(p.requires_grad for p in part.parameters())]
        return TrainableModules(modules=parts)

    def configure_optimizers(self) -> Any:
        """The optimizer, with weight decay on every parameter as in the papers, and the method's schedule."""
        scale = self.global_batch_size / self.method_args.reference_batch_size
        if self.method_args.lr_scale_method == "sqrt":
            scale = math.sqrt(scale)
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = self.optimizer_args.get_optimizer([{"name": "params", "params": parameters}], scale)
        epochs = max(1, self.trainer.max_epochs or 1)
        arguments = ScheduleConfig(epochs=epochs, **self.method_args.schedule.model_dump())
        by_step = arguments.interval == "step"
        total = max(1, int(self.trainer.estimated_stepping_batches)) if by_step else epochs
        factor = lr_schedule(arguments)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: factor(min(done / total, 1.0)))
        return [optimizer], [{"scheduler": schedule, "interval": arguments.interval}]


@functools.cache
def lightly_train_method(name: str) -> type[MoCoMethod]:
    """Return LightlyTrain's class of one of METHODS."""
    return type("MoCoMethod", (MoCoMethod,), {"method_name": name, "__doc__": f"{method_class(name).title}."})


def register() -> None:
    """Adds METHODS to the one table that LightlyTrain looks methods up in; a second call changes nothing.

    Raises:
        UserError: LightlyTrain has no such table any more.
    """
    known: Callable[[], dict[str, type[Method]]] | None = getattr(method_helpers, "_method_name_to_cls", None)
    if known is not None and "moco" not in known():
        ours = {name: lightly_train_method(name) for name in METHODS.names()}
        method_helpers._method_name_to_cls = lambda: {**known(), **ours}
    if not set(METHODS.names()) <= set(lightly_train.list_methods()):
        raise _changed("it does not look methods up in _method_name_to_cls")
    if not hasattr(OptimizerArgs, "resolve_auto"):
        raise _changed("its optimizer arguments have no resolve_auto")


def run(arguments: Sequence[str]) -> int:
    """Runs LightlyTrain's own command line; returns the exit code.

    Args:
        arguments: Such as ``["pretrain", "out=run", "data=photos", "model=timm/resnet50", "method=moco"]``.

    Raises:
        UsageError: An argument that is no key=value.
    """
    from lightly_train._cli import cli

    try:
        config = OmegaConf.from_cli(list(arguments))
    except Exception as error:  # of OmegaConf, YAML and its grammar
        raise UsageError(f"{' '.join(arguments)}: {' '.join(str(error).split())}") from error
    try:
        cli(config)
    except (UserError, LightlyTrainError, ValueError, OSError) as error:
        # LightlyTrain has said what is wrong
        return error.exit_code if isinstance(error, UserError) else 2
    return 0


register()
