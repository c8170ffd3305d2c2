"""The metadata of checkpoint files: architecture, method, epoch and image normalization."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from torch import Tensor

from moco_plugin.backbones import LOADING
from moco_plugin.checkpoints.fill import Unfit
from moco_plugin.data.normalize import View
from moco_plugin.errors import UserError, reason
from moco_plugin.weight_files.load import WeightFile, read_config
from moco_plugin.weight_files.unpickle import Placeholder

IMAGENET_VIEW = View(image_size=224, crop_ratio=0.875, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
V3_VITS = ("vit_small", "vit_base", "vit_conv_small", "vit_conv_base")  # what the authors' code calls them
LARGEST_IMAGE = 4096  # pixels; some networks' tables grow with the fourth power
LARGEST_ARGUMENT = 65536
LARGEST_DEPTH = 512
LONGEST_NAME = 60  # characters of a method
# Arguments of timm.create_model that the reader sets itself, or that change no features.
NOT_ARGUMENTS = frozenset("pretrained num_classes features_only scriptable exportable no_jit".split())
# Where an mmengine config, which is text, names the method; only its beginning is searched.
LONGEST_CONFIG = 200_000
MM_METHOD = re.compile(r"^model = dict\([^)]{0,4000}?\btype='(\w{1,40})'", re.DOTALL | re.MULTILINE)


@dataclass
class Claims:
    """A file's own statements about its network.

    Attributes:
        architecture: timm's name, or None.
        arguments: Of moco_plugin.backbones.create_backbone, for ``architecture``.
        heads: A ViT's attention heads, where the file says.
        seed: The run's seed, where it is one of ours.
        view: How images are shown to the backbone.
        epoch: Epochs trained.
        method: Its name.
        notes: Assumptions about what the file does not say.
    """

    architecture: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    heads: int | None = None
    seed: int | None = None
    view: View = field(default_factory=lambda: replace(IMAGENET_VIEW))
    epoch: int | None = None
    method: str | None = None
    notes: list[str] = field(default_factory=list)


Collector = Callable[[WeightFile, Claims, Mapping[str, Tensor]], None]


def collect_claims(file: WeightFile, collect: Collector | None, tensors: Mapping[str, Tensor]) -> Claims:
    """Collect what a file says about itself.

    Args:
        file: The file.
        collect: Collects what only files of its layout say; None: they say nothing.
        tensors: Its tensors by their full names.

    Raises:
        UserError: It says something impossible, or is of a network that computes something else than its names say.
    """
    claims = Claims(epoch=_epoch(file.content), method=_method(file.content))
    if collect is not None:
        collect(file, claims, tensors)
    if "model_type" in file.config:
        _of_hugging_face(file.config, claims)
    elif file.config:
        _of_timm_folder(file.config, claims)
    if file.metadata:  # says more than a folder's config
        _of_converters(file.metadata, claims)
    return claims


def lookup(value: Any, *path: str) -> Any:
    """Follow keys of dicts and attributes of placeholders; None where there is no such thing."""
    for name in path:
        if isinstance(value, Placeholder):
            value = value.attributes.get(name, value.mapping.get(name))
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def claimed_architecture(file: WeightFile) -> str | None:
    """Return the timm model that a folder, a converter, a pickled module or timm's train.py names in a file."""
    named = (
        file.config.get("architecture"),
        file.metadata.get("timm_name"),
        lookup(file.content, "module", "pretrained_cfg", "architecture"),
        lookup(file.content, "arch"),
        lookup(file.content, "args", "model"),
    )
    return next((name for name in named if _is_model(name)), None)


def _is_model(name: Any) -> bool:
    return isinstance(name, str) and timm.is_model(name)


def safe_arguments(arguments: Any) -> dict[str, Any]:
    """Return arguments of timm.create_model that a file gives, without NOT_ARGUMENTS.

    Raises:
        Unfit: One makes timm read other files, is not a number, a text, or a list of these, or is so large that building
            would not end.
    """
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise Unfit("the file gives arguments of the network that are not a dict of names")
    if refused := sorted(LOADING & arguments.keys()):
        raise Unfit(f"the file gives the network's argument {refused[0]}, which makes timm read other files")
    for key, value in arguments.items():
        is_depth = key in ("depth", "depths", "layers")
        largest = LARGEST_IMAGE if "size" in key else LARGEST_DEPTH if is_depth else LARGEST_ARGUMENT
        said = f"the file gives the network's argument {key[:40]} as"
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(part, (int, float, str, bool, type(None))):
                raise Unfit(f"{said} a {type(part).__name__}")
            if isinstance(part, (int, float)) and not abs(part) <= largest:
                raise Unfit(f"{said} {part:g}; expected at most {largest}")
    return {key: value for key, value in arguments.items() if key not in NOT_ARGUMENTS}


def of_ours(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the config of a run of moco-pretrain."""
    config = lookup(file.content, "hyper_parameters", "config")
    try:
        data = config["data"]
        claims.architecture, claims.method = _text(config["backbone"]), _text(config["method"])
        claims.seed = int(config["seed"])
        claims.arguments = safe_arguments({**config["backbone_args"], "image_size": data["image_size"]})
        view = {key: data[key] for key in ("image_size", "crop_ratio", "mean", "std")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file.path} does not hold the config of its run ({type(error).__name__}: {reason(error)}); expected what "
            "moco-pretrain writes"
        ) from error
    _set_view(claims, **view, value_range=data.get("value_range"))
    claims.arguments["pretrained"] = False


def of_lightly_train(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the model and the normalization that LightlyTrain saves."""
    _of_module(lookup(file.content, "lightly_train", "models", "model"), claims)
    pixels = lookup(file.content, "lightly_train", "normalize_args")
    _set_view(claims, mean=lookup(pixels, "mean"), std=lookup(pixels, "std"))


def of_solo_learn(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the method from the args.json that solo-learn writes beside its files, where they do not say it."""
    beside = file.path.with_name("args.json")
    if claims.method is None and beside.is_file():
        claims.method = _text(read_config(beside).get("method"))[:LONGEST_NAME] or None


def of_mmpretrain(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the normalization of MMPreTrain's data preprocessor."""
    mean, std = (tensors.get(f"state_dict.data_preprocessor.{name}") for name in ("mean", "std"))
    _set_view(claims, scale=255, mean=mean, std=std)


def of_released_moco(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Set the method: v3 by the encoder's name, v2 or v1 by the projection head."""
    if any("base_encoder." in name for name in tensors):
        claims.method = "moco_v3"
    else:
        claims.method = "moco_v2" if any(name.endswith("encoder_q.fc.2.weight") for name in tensors) else "moco_v1"


def of_timm(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the architecture that timm's train.py or a pickled module names, unless a converter or folder does."""
    if file.metadata or file.config:
        return
    if "best_acc1" in file.content and _text(file.content.get("arch")) in V3_VITS:  # the authors' linear classifier
        claims.method = "moco_v3"
        return
    claims.architecture = claimed_architecture(file)
    _of_module(file.content.get("module"), claims)


def of_detectron2(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Check stride and colour order, which no tensor shows; only some files contradict MoCo's."""
    mean, std = (
        next((value.flatten() for name, value in tensors.items() if name.endswith(f"pixel_{statistic}")), None)
        for statistic in ("mean", "std")
    )
    told = file.metadata.get("stride_in_1x1") is False and file.metadata.get("input_format") == "RGB"
    bgr = mean is not None and len(mean) == 3 and float(mean[0]) < float(mean[2])
    unscaled = std is not None and len(std) > 0 and float(std.max()) <= 2
    of_msra = _text(file.content.get("__author__")) in ("Caffe2", "Detectron2 Model Zoo")
    if file.metadata.get("stride_in_1x1") is True:
        raise UserError(f"{file.path} has its strides in 1x1 convolutions, which timm's ResNet cannot compute")
    if not told and (bgr or unscaled or of_msra):
        raise UserError(
            f"{file.path} was trained from MSRA's ResNet (BGR images, or strides in 1x1 convolutions), which timm's "
            "ResNet cannot compute; expected weights of MoCo's or torchvision's kind"
        )
    if not told:
        claims.notes.append("taken to have its strides in 3x3 convolutions and RGB images, which the file does not say")
    _set_view(claims, scale=255, mean=mean, std=std)


def _of_module(module: Any, claims: Claims) -> None:
    """Collect the name of a pickled timm model; torchvision's are recognized by their shapes."""
    name, arguments = lookup(module, "pretrained_cfg", "architecture"), lookup(module, "_model_args")
    if _is_model(name):
        claims.architecture = name
        claims.arguments = safe_arguments(arguments if isinstance(arguments, dict) else {})


def _of_hugging_face(config: dict[str, Any], claims: Claims) -> None:
    """Collect what transformers' ViTs and ResNets say of themselves; the names of their tensors say the rest."""
    activation, epsilon = config.get("hidden_act", "gelu"), config.get("layer_norm_eps")
    claims.heads = _heads(config.get("num_attention_heads"))
    if activation not in ("gelu", "relu"):
        raise Unfit(f"config.json names the activation {str(activation)[:20]!r}; expected gelu, or relu for a ResNet")
    if isinstance(epsilon, float) and epsilon != 1e-6:
        claims.notes.append(f"computed with timm's layer norm epsilon 1e-06; the file's is {epsilon:g}")


def _of_timm_folder(config: dict[str, Any], claims: Claims) -> None:
    name = config.get("architecture")
    if not _is_model(name):
        raise Unfit(f"config.json names the architecture {str(name)[:60]!r}, which timm does not have")
    claims.architecture, claims.arguments = name, safe_arguments(config.get("model_args", {}))
    shown = config.get("pretrained_cfg", config)
    size, *others = (lookup(shown, key) for key in ("input_size", "crop_pct", "mean", "std"))
    side = size[-1] if isinstance(size, list) and size else None
    _set_view(claims, image_size=side, **dict(zip(("crop_ratio", "mean", "std"), others, strict=True)))


def _of_converters(metadata: dict[str, Any], claims: Claims) -> None:
    """Collect the metadata that this project's converters wrote."""
    name, method, epoch = (metadata.get(key) for key in ("timm_name", "method", "epoch"))
    if _is_model(name):
        claims.architecture, claims.arguments = name, safe_arguments(metadata.get("timm_arguments", {}))
    claims.heads = _heads(lookup(metadata, "torchvision_arguments", "num_heads"))
    keys = ("image_size", "crop_ratio", "value_range", "pixel_mean", "pixel_std")
    _set_view(claims, scale=255, **{key.removeprefix("pixel_"): metadata.get(key) for key in keys})
    if isinstance(method, str) and method:
        claims.method = method[:LONGEST_NAME]
    if isinstance(epoch, int) and epoch >= 0:
        claims.epoch = epoch


def _heads(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value <= LARGEST_IMAGE else None


def _text(value: Any) -> str:
    """Return a value of a file if it is text; others may be nested so deeply that printing them takes forever."""
    return value if isinstance(value, str) else ""


def _set_view(claims: Claims, scale: float = 1, **values: Any) -> None:
    """Set the fields of the view that a file says, which are not None; mean and std are of pixels up to ``scale``."""
    said = {key: value for key, value in values.items() if value is not None}
    try:
        for key in ("mean", "std"):
            if key in said:
                said[key] = [float(value) / scale for value in said[key]]
        claims.view = _checked(replace(claims.view, **said))
    except (TypeError, ValueError) as error:
        raise Unfit(f"the file does not say how images are shown: {reason(error)}") from error


def _checked(view: View) -> View:
    """Return a view with numbers of the right types, or raise ValueError for impossible ones."""
    view.image_size, view.crop_ratio = int(view.image_size), float(view.crop_ratio)
    if view.value_range is not None:
        view.value_range = bounds = [float(value) for value in view.value_range]
        if len(bounds) not in (2, 2 * view.channels):
            raise ValueError(f"a range of {len(bounds)} values")
        for low, high in zip(bounds[::2], bounds[1::2], strict=True):
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"a range of values from {low:g} to {high:g}")
    if not 0 < view.image_size <= LARGEST_IMAGE or not 0 < view.crop_ratio <= 1:
        raise ValueError(f"images of {view.image_size} pixels, a centre crop of {view.crop_ratio:g}")
    ordinary = all(-10 < mean < 10 for mean in view.mean) and all(0 < std < 10 for std in view.std)
    if len(view.mean) != len(view.std) or not ordinary:
        raise ValueError("mean and std are not those of pixels")
    return view


def _epoch(content: Mapping[str, Any]) -> int | None:
    """Return the epochs trained: Lightning counts from 0, the released code and mmengine from 1."""
    for path in (("epoch",), ("meta", "epoch"), ("classy_state_dict", "train_phase_idx")):
        value = lookup(content, *path)
        if isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 1 << 31:
            counts_from_0 = "pytorch-lightning_version" in content or path[0] == "classy_state_dict"
            return value + 1 if counts_from_0 else value
    return None


def _method(content: Mapping[str, Any]) -> str | None:
    for path in (("hyper_parameters", "method"), ("args", "method")):
        value = lookup(content, *path)
        if isinstance(value, str):
            return value[:LONGEST_NAME]
    config = lookup(content, "meta", "cfg") or lookup(content, "meta", "config")
    match = MM_METHOD.search(config[:LONGEST_CONFIG]) if isinstance(config, str) else None
    return match[1] if match else None
