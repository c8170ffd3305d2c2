"""The metadata of checkpoint files: architecture, method, epoch and image normalization."""

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
V3_VITS = ("vit_small", "vit_base", "vit_conv_small", "vit_conv_base")  # names in the authors' code
LARGEST_IMAGE = 4096  # pixels; some networks' tables grow with the fourth power
LARGEST_ARGUMENT = 65536
LARGEST_DEPTH = 512
LONGEST_NAME = 60  # characters of a method
# Arguments of timm.create_model that the reader sets itself, or that change no features.
NOT_ARGUMENTS = frozenset("pretrained num_classes features_only scriptable exportable no_jit".split())
# The method in the text of an mmengine config, of which only the beginning is searched.
LONGEST_CONFIG = 200_000
MM_METHOD = re.compile(r"^model = dict\([^)]{0,4000}?\btype='(\w{1,40})'", re.DOTALL | re.MULTILINE)


@dataclass
class Claims:
    """Metadata of a file about its network; None where the file has none.

    Attributes:
        architecture: timm's name.
        arguments: Arguments of ``create_backbone``.
        heads: Attention heads of a ViT.
        seed: The seed of a run of this project.
        view: Preprocessing of images.
        epoch: Epochs trained.
        method: Name of the method.
        notes: Assumptions about missing metadata.
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
    """Return the metadata of a file.

    Args:
        file: The file.
        collect: Collects the metadata of its layout, if it has any.
        tensors: Its tensors by their full names.

    Raises:
        UserError: A value is impossible, or the network differs from the one that its names suggest.
    """
    claims = Claims(epoch=_epoch(file.content), method=_method(file.content))
    if collect is not None:
        collect(file, claims, tensors)
    if file.config:
        (_of_hugging_face if "model_type" in file.config else _of_timm_folder)(file.config, claims)
    if file.metadata:  # is more complete than a folder's config
        _of_converters(file.metadata, claims)
    return claims


def lookup(value: Any, *path: str) -> Any:
    """Follow keys of dicts and attributes of placeholders; return None if one is missing."""
    for name in path:
        if isinstance(value, Placeholder):
            value = value.attributes.get(name, value.mapping.get(name))
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def claimed_architecture(file: WeightFile) -> str | None:
    """Return the timm model that a folder, a converter, a pickled module or timm's train.py names, or None."""
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
    """Return a file's arguments of timm.create_model, without NOT_ARGUMENTS.

    Raises:
        Unfit: One makes timm read other files, is not a number, a text, or a list of these, or is too large.
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
        said = f"{type(error).__name__}: {reason(error)}"
        raise UserError(
            f"{file.path} has no config of a run of moco-pretrain ({said}); use the file it wrote"
        ) from error
    _set_view(claims, **view, value_range=data.get("value_range"))
    claims.arguments["pretrained"] = False


def of_lightly_train(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the model and the normalization that LightlyTrain saves."""
    _of_module(lookup(file.content, "lightly_train", "models", "model"), claims)
    pixels = lookup(file.content, "lightly_train", "normalize_args")
    _set_view(claims, mean=lookup(pixels, "mean"), std=lookup(pixels, "std"))


def of_solo_learn(file: WeightFile, claims: Claims, tensors: Mapping[str, Tensor]) -> None:
    """Collect the method from the args.json next to a file of solo-learn without it."""
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
    """Check stride and colour order, which only some files contain."""
    mean, std = (
        next((value.flatten() for name, value in tensors.items() if name.endswith(f"pixel_{statistic}")), None)
        for statistic in ("mean", "std")
    )
    known = file.metadata.get("stride_in_1x1") is False and file.metadata.get("input_format") == "RGB"
    bgr = mean is not None and len(mean) == 3 and float(mean[0]) < float(mean[2])
    unscaled = std is not None and len(std) > 0 and float(std.max()) <= 2
    of_msra = _text(file.content.get("__author__")) in ("Caffe2", "Detectron2 Model Zoo")
    if file.metadata.get("stride_in_1x1") is True:
        raise UserError(f"{file.path} has its strides in 1x1 convolutions, which timm's ResNet cannot compute")
    if not known and (bgr or unscaled or of_msra):
        raise UserError(
            f"{file.path} was trained from MSRA's ResNet (BGR images, or strides in 1x1 convolutions), which timm's "
            "ResNet cannot compute; use weights such as MoCo's or torchvision's"
        )
    if not known:
        claims.notes.append("taken to have its strides in 3x3 convolutions and RGB images, which the file does not say")
    _set_view(claims, scale=255, mean=mean, std=std)


def _of_module(module: Any, claims: Claims) -> None:
    """Collect the name of a pickled timm model; torchvision's are recognized by their shapes."""
    name, arguments = lookup(module, "pretrained_cfg", "architecture"), lookup(module, "_model_args")
    if _is_model(name):
        claims.architecture = name
        claims.arguments = safe_arguments(arguments if isinstance(arguments, dict) else {})


def _of_hugging_face(config: dict[str, Any], claims: Claims) -> None:
    """Collect the metadata of transformers' ViTs and ResNets; tensor names determine the rest."""
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
    size, crop, mean, std = (lookup(shown, key) for key in ("input_size", "crop_pct", "mean", "std"))
    side = size[-1] if isinstance(size, list) and size else None
    _set_view(claims, image_size=side, crop_ratio=crop, mean=mean, std=std)


def _of_converters(metadata: dict[str, Any], claims: Claims) -> None:
    """Collect the metadata of this project's converters."""
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
    """Return a value if it is text, else ""; printing others might never end."""
    return value if isinstance(value, str) else ""


def _set_view(claims: Claims, scale: float = 1, **values: Any) -> None:
    """Set the fields of the view that are not None; mean and std are divided by ``scale``.

    Raises:
        Unfit: One is impossible.
    """
    try:
        said = {key: value for key, value in values.items() if value is not None}
        said |= {key: [float(value) / scale for value in said[key]] for key in ("mean", "std") if key in said}
        claims.view = view = replace(claims.view, **said)
        view.image_size, view.crop_ratio = int(view.image_size), float(view.crop_ratio)
        view.value_range = bounds = view.value_range and [float(value) for value in view.value_range]
        possible = 0 < view.image_size <= LARGEST_IMAGE and 0 < view.crop_ratio <= 1 and len(view.mean) == len(view.std)
        possible &= all(-10 < mean < 10 for mean in view.mean) and all(0 < std < 10 for std in view.std)
        if bounds is not None:
            ordered = all(-1e300 < low < high < 1e300 for low, high in zip(bounds[::2], bounds[1::2], strict=True))
            possible &= ordered and len(bounds) in (2, 2 * view.channels)
        if not possible:
            raise ValueError(str(view))
    except (TypeError, ValueError) as error:
        raise Unfit(f"the file gives impossible properties of images: {reason(error)}") from error


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
