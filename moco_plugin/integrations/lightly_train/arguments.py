"""LightlyTrain's argument classes for our methods, optimizers and views, with the recipes' values as defaults."""

import functools
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import torch
from lightly_train._configs.config import PydanticConfig
from lightly_train._methods.method_args import MethodArgs
from lightly_train._methods.simclr.simclr_transform import SimCLRTransformArgs
from lightly_train._optim.adamw_args import AdamWArgs
from lightly_train._optim.optimizer_args import OptimizerArgs
from lightly_train._optim.optimizer_type import OptimizerType
from lightly_train._optim.sgd_args import SGDArgs
from lightly_train._transforms.transform import SolarizeArgs
from pydantic import Field, PrivateAttr, create_model, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco_plugin.data.views import view_arguments
from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.methods import METHODS, arguments_of
from moco_plugin.pretraining.config import PretrainConfig, load_config
from moco_plugin.pretraining.prepare import queue_for, recipe_for
from moco_plugin.runs.optimizers import LARS

ArgsClass = TypeVar("ArgsClass", bound=PydanticConfig)


@functools.cache
def _recipe(name: str) -> PretrainConfig:
    return load_config(name, ["data.root=''"])


def recipes(method: str) -> list[PretrainConfig]:
    """Return a method's recipes."""
    recipe = METHODS.get(method).recipe
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
    return _recipe(recipe_for(METHODS.get(method), model, is_trained(model)))


def with_defaults(base: type[ArgsClass], **defaults: Any) -> type[ArgsClass]:
    """Return a subclass of one of LightlyTrain's argument classes with other defaults.

    Args:
        base: The class.
        **defaults: By field; a dict has those of a nested class.
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


class ScheduleArgs(PydanticConfig):
    """The learning rate along the way, as under ``schedule`` in configs/pretrain; epochs are LightlyTrain's own."""

    name: str
    warmup_epochs: float | Literal["auto"] = "auto"
    """"auto": the recipe's, or as large a share of fewer epochs."""
    milestones: list[float]
    gamma: float
    interval: str


class MoCoArgs(MethodArgs):
    """The arguments that all versions share; ``method_args`` adds the method's own."""

    method: ClassVar[str]
    own: ClassVar[tuple[str, ...]]
    """The arguments that go to the method."""

    paper_start: bool = True
    """Start a network that is not trained yet as the paper does: gamma 1 in all batch norms (v1, v2), gamma 0 in the
    last one of each residual block (v3); for v3's plain ViTs Xavier's initialisation, a fixed sin-cos position
    embedding and a frozen patch projection."""
    schedule: ScheduleArgs
    _chosen_queue: bool = PrivateAttr(False)  # the method raises it to the keys of a batch

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
        """Replace each "auto" by the recipe's value for this network and this number of images and epochs."""
        recipe = recipe_of(self.method, wrapped_model)
        queue = queue_for(scaling_info.dataset_size, 1, recipe.method_args) if "queue_size" in self.own else {}
        self._chosen_queue = bool(queue) and getattr(self, "queue_size", None) == "auto"
        values = recipe.method_args | queue
        for name in self.own:
            if getattr(self, name) == "auto" and name != "batch_norm":  # whose "auto" is the method's own
                setattr(self, name, values[name])
        if self.schedule.warmup_epochs == "auto":
            share = scaling_info.epochs / recipe.schedule.epochs
            self.schedule.warmup_epochs = float(recipe.schedule.warmup_epochs * min(1, share))


@functools.cache
def method_args(method: str) -> type[MoCoArgs]:
    """Return LightlyTrain's argument class for a method: the arguments of our class, defaults from its recipe."""
    cls = METHODS.get(method)
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


OPTIMIZER_ARGS: dict[OptimizerType, type[OptimizerArgs]] = {
    OptimizerType.SGD: SGDArgs,
    OptimizerType.LARS: LARSArgs,
    OptimizerType.ADAMW: AdamWArgs,
}


def optimizer_args(recipe: PretrainConfig) -> type[OptimizerArgs]:
    """Return LightlyTrain's argument class of a recipe's optimizer, with the recipe's values as defaults."""
    base = OPTIMIZER_ARGS[OptimizerType(recipe.optimizer.name)]
    names = [name for name in ("lr", "momentum", "weight_decay") if name in base.model_fields]
    return with_defaults(base, **{name: getattr(recipe.optimizer, name) for name in names})


class AutoOptimizerArgs(OptimizerArgs):
    """``optim=auto`` of a method whose recipes differ, by the network; other arguments need an optimizer named."""

    method: ClassVar[str]
    lr: float | Literal["auto"] = "auto"
    weight_decay: float | Literal["auto"] = "auto"

    @staticmethod
    def type() -> OptimizerType:
        return OptimizerType.LARS

    def resolve_auto(self, wrapped_model: Any) -> None:
        """Turn this object into the recipe's optimizer arguments.

        ``train_helpers.get_optimizer_args`` calls ``args.resolve_auto(...)`` and then returns ``args`` itself, whose
        type and values the command logs: another object cannot take its place.
        """
        given = {key: value for key, value in self.model_dump().items() if value != "auto"}
        chosen = optimizer_args(recipe_of(self.method, wrapped_model))(**given)
        self.__class__ = chosen.__class__  # type: ignore[assignment]
        self.__setstate__(chosen.__getstate__())


def auto_optimizer_args(method: str) -> type[OptimizerArgs]:
    """Return LightlyTrain's argument class for ``optim=auto``: that of the only recipe, or one that asks the network."""
    by_recipe = [optimizer_args(recipe) for recipe in recipes(method)]
    if len(by_recipe) == 1:
        return by_recipe[0]
    return type("AutoOptimizerArgs", (AutoOptimizerArgs,), {"method": method, "__module__": __name__})


def _blur(view: dict[str, Any]) -> dict[str, Any] | None:
    return {"prob": view["gaussian_blur"], "sigmas": view["sigmas"]} if view["gaussian_blur"] else None


@functools.cache
def transform_args(method: str) -> type[SimCLRTransformArgs]:
    """Return LightlyTrain's argument class for the views of a method, with the paper's values as defaults.

    v3's views differ: ``view_2`` has the blur and the solarization of the second.
    """
    first, second = view_arguments(METHODS.get(method).views, 224)
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
    return create_model("TwoViewsTransformArgs", __base__=result, view_2=(view_2, Field(default_factory=view_2)))
