"""The metadata of checkpoint files: architecture, method, epoch and image normalization."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from torch import Tensor

from moco_plugin.checkpoints.load import File
from moco_plugin.checkpoints.unpickle import lookup
from moco_plugin.data.normalize import View
from moco_plugin.errors import UserError

IMAGENET_VIEW = View(image_size=224, crop_ratio=0.875, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
V3_VITS = ("vit_small", "vit_base", "vit_conv_small", "vit_conv_base")  # what the authors' code calls them
VIT_SMALL_HEADS_OF_V3 = 12
LARGEST_IMAGE = 4096  # pixels; some networks' tables grow with the fourth power
LARGEST_ARGUMENT = 65536
# Arguments of timm.create_model that fetch or load something, or that the reader sets itself.
NOT_ARGUMENTS = frozenset(
    (
        "pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir num_classes features_only "
        "scriptable exportable no_jit"
    ).split()
)


@dataclass
class Hints:
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


def hints(file: File, about: Callable[[File, Hints, Mapping[str, Tensor]], None], names: Mapping[str, Tensor]) -> Hints:
    """Collect what a file says about itself.

    Args:
        file: The file.
        about: Collects what only files of its layout say.
        names: Its tensors by their full names.

    Raises:
        UserError: It says something impossible, or is of a network that computes something else than its names say.
    """
    found = Hints(epoch=_epoch(file.content), method=_method(file.content))
    about(file, found, names)
    if "model_type" in file.config:
        _of_hugging_face(file.config, found)
    elif file.config:
        _of_timm_folder(file.config, found)
    if file.metadata:  # says more than a folder's config
        _of_converters(file.metadata, found)
    return found


def claimed_architecture(file: File) -> str | None:
    """Return the timm model that a folder, a converter, a pickled module or timm's train.py names in a file."""
    for value in (
        file.config.get("architecture"),
        file.metadata.get("timm_name"),
        lookup(file.content.get("module"), "pretrained_cfg", "architecture"),
        lookup(file.content, "arch"),
        lookup(file.content, "args", "model"),
    ):
        if isinstance(value, str) and timm.is_model(value):
            return value
    return None


def safe_arguments(path: Any, arguments: Any, names: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Return arguments of timm.create_model that a file gives, without those that load something.

    Raises:
        UserError: One is not a number, a text, or a list of these, or so large that building would not end.
    """
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise UserError(f"{path} gives arguments of the network that are not a dict of names")
    for key, value in arguments.items():
        largest = LARGEST_IMAGE if "size" in key else 512 if key in ("depth", "depths", "layers") else LARGEST_ARGUMENT
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(part, (int, float, str, bool, type(None))):
                raise UserError(f"{path} gives the network's argument {key[:40]} as a {type(part).__name__}")
            if isinstance(part, (int, float)) and not abs(part) <= largest:
                raise UserError(
                    f"{path} gives the network's argument {key[:40]} as {part:g}; expected at most {largest}"
                )
    return {key: value for key, value in arguments.items() if key not in NOT_ARGUMENTS}


def nothing(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Collect nothing: files of the layout say nothing about themselves."""


def of_ours(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Collect the config of a run of moco-pretrain."""
    config = lookup(file.content, "hyper_parameters", "config")
    try:
        data = config["data"]
        found.architecture, found.seed, found.method = (
            _text(config["backbone"]),
            int(config["seed"]),
            _text(config["method"]),
        )
        found.arguments = safe_arguments(file.path, {**config["backbone_args"], "image_size": data["image_size"]})
        found.view = _view(data["image_size"], data["crop_ratio"], data["mean"], data["std"], data.get("value_range"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file.path} does not hold the config of its run ({type(error).__name__}: {error}); expected what "
            "moco-pretrain writes".replace("\n", " ")
        ) from error
    found.arguments["pretrained"] = False


def of_lightly_train(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Collect the model and the normalization that LightlyTrain saves."""
    _of_module(lookup(file.content, "lightly_train", "models", "model"), found)
    pixels = lookup(file.content, "lightly_train", "normalize_args")
    _set_pixels(found, lookup(pixels, "mean"), lookup(pixels, "std"), scale=1.0)


def of_mmpretrain(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Collect the normalization of MMPreTrain's data preprocessor."""
    mean, std = (names.get(f"state_dict.data_preprocessor.{name}") for name in ("mean", "std"))
    _set_pixels(found, mean, std)


def of_official_moco(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Set the method: v2 or v1, by the projection head."""
    found.method = "moco_v2" if any(name.endswith("encoder_q.fc.2.weight") for name in names) else "moco_v1"


def of_official_moco_v3(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Set the method."""
    found.method = "moco_v3"


def of_solo_learn(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Set 12 heads for MoCo v3's ViT-S, as in solo-learn and the authors' code."""
    if str(_text(found.method)).replace("_", "").lower() == "mocov3":
        found.heads = VIT_SMALL_HEADS_OF_V3 if _width(names) == 384 else None


def _width(names: Mapping[str, Tensor]) -> int | None:
    """Return the width of a ViT."""
    return next((value.shape[-1] for name, value in names.items() if name.endswith("cls_token") and value.ndim), None)


def of_timm(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Collect the architecture that timm's train.py or a pickled module names, unless a converter or folder does."""
    if file.metadata or file.config:
        return
    if "best_acc1" in file.content and _text(file.content.get("arch")) in V3_VITS:  # the authors' linear classifier
        found.method = "moco_v3"
        found.heads = VIT_SMALL_HEADS_OF_V3 if _width(names) == 384 else None
        return
    found.architecture = claimed_architecture(file)
    _of_module(file.content.get("module"), found)


def _of_module(module: Any, found: Hints) -> None:
    """Collect the name of a pickled timm model; torchvision's are recognized by their shapes."""
    name = lookup(module, "pretrained_cfg", "architecture")
    if isinstance(name, str) and timm.is_model(name):
        arguments = lookup(module, "_model_args")
        found.architecture = name
        found.arguments = safe_arguments("the file", arguments if isinstance(arguments, dict) else {})


def _of_hugging_face(config: dict[str, Any], found: Hints) -> None:
    """Collect what transformers' ViTs and ResNets say of themselves; the names of their tensors say the rest."""
    heads, act = config.get("num_attention_heads"), config.get("hidden_act", "gelu")
    found.heads = heads if isinstance(heads, int) and 0 < heads <= LARGEST_IMAGE else None
    if act not in ("gelu", "relu"):
        raise UserError(f"config.json names the activation {str(act)[:20]!r}; expected gelu, or relu for a ResNet")
    epsilon = config.get("layer_norm_eps")
    if isinstance(epsilon, float) and epsilon != 1e-6:
        found.notes.append(f"computed with timm's layer norm epsilon 1e-06; the file's is {epsilon:g}")


def _of_timm_folder(config: dict[str, Any], found: Hints) -> None:
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        raise UserError(f"config.json names the architecture {str(name)[:60]!r}, which timm does not have")
    found.architecture = name
    found.arguments = safe_arguments("config.json", config.get("model_args", {}))
    about = config.get("pretrained_cfg", config)
    size = lookup(about, "input_size")
    try:
        side = size[-1] if isinstance(size, list) else IMAGENET_VIEW.image_size
        mean, std = about.get("mean", IMAGENET_VIEW.mean), about.get("std", IMAGENET_VIEW.std)
        found.view = _view(side, about.get("crop_pct", IMAGENET_VIEW.crop_ratio), mean, std)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"config.json does not say how images are shown: {error}") from error


def _of_converters(metadata: dict[str, Any], found: Hints) -> None:
    """Collect the metadata that this project's converters wrote (conversion.py)."""
    name = metadata.get("timm_name")
    if isinstance(name, str) and timm.is_model(name):
        found.architecture = name
        found.arguments = safe_arguments("the file", metadata.get("timm_arguments", {}))
    heads = lookup(metadata, "torchvision_arguments", "num_heads")
    found.heads = heads if isinstance(heads, int) and 0 < heads <= LARGEST_IMAGE else None
    if isinstance(metadata.get("image_size"), int) and isinstance(metadata.get("crop_ratio"), (int, float)):
        found.view.image_size, found.view.crop_ratio = metadata["image_size"], metadata["crop_ratio"]
    _set_pixels(found, metadata.get("pixel_mean"), metadata.get("pixel_std"), value_range=metadata.get("value_range"))
    if isinstance(metadata.get("method"), str) and metadata["method"]:
        found.method = metadata["method"][:60]
    if isinstance(metadata.get("epoch"), int) and metadata["epoch"] >= 0:
        found.epoch = metadata["epoch"]


def of_detectron2(file: File, found: Hints, names: Mapping[str, Tensor]) -> None:
    """Check stride and colour order, which no tensor shows; only some files contradict MoCo's."""
    std = next((value for name, value in names.items() if name.endswith("pixel_std")), None)
    mean = next((value for name, value in names.items() if name.endswith("pixel_mean")), None)
    told = file.metadata.get("stride_in_1x1") is False and file.metadata.get("input_format") == "RGB"
    author = _text(file.content.get("__author__", ""))
    bgr = mean is not None and mean.numel() == 3 and float(mean.flatten()[0]) < float(mean.flatten()[2])
    unscaled = std is not None and std.numel() > 0 and float(std.max()) <= 2
    if file.metadata.get("stride_in_1x1") is True:
        raise UserError(f"{file.path} has its strides in 1x1 convolutions, which timm's ResNet cannot compute")
    if not told and (bgr or unscaled or author in ("Caffe2", "Detectron2 Model Zoo")):
        raise UserError(
            f"{file.path} was trained from MSRA's ResNet (BGR images, or strides in 1x1 convolutions), which timm's "
            "ResNet cannot compute; expected weights of MoCo's or torchvision's kind"
        )
    if not told:
        found.notes.append("taken to have its strides in 3x3 convolutions and RGB images, which the file does not say")
    if mean is not None and std is not None:
        _set_pixels(found, mean.flatten(), std.flatten())


def _text(value: Any) -> str:
    """Return a value of a file if it is text; others may be nested so deeply that printing them takes forever."""
    return value if isinstance(value, str) else ""


def _set_pixels(found: Hints, mean: Any, std: Any, scale: float = 255.0, value_range: Any = None) -> None:
    """Set mean and std of pixel values from 0 to ``scale``, where they are given."""
    if mean is None or std is None:
        return
    try:
        means, stds = ([float(value) / scale for value in values] for values in (mean, std))
        found.view = _view(found.view.image_size, found.view.crop_ratio, means, stds, value_range)
    except (TypeError, ValueError) as error:
        raise UserError(f"the file does not say how images are shown: {error}") from error


def _view(image_size: Any, crop_ratio: Any, mean: Any, std: Any, value_range: Any = None) -> View:
    view = View(int(image_size), float(crop_ratio), [float(v) for v in mean], [float(v) for v in std])
    if value_range is not None:
        bounds = [float(value) for value in value_range]
        if len(bounds) not in (2, 2 * view.channels):
            raise ValueError(f"a range of {len(bounds)} values")
        for low, high in zip(bounds[::2], bounds[1::2], strict=True):
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"a range of values from {low:g} to {high:g}")
        view.value_range = bounds
    if not 0 < view.image_size <= LARGEST_IMAGE or not 0 < view.crop_ratio <= 1:
        raise ValueError(f"images of {view.image_size} pixels, a centre crop of {view.crop_ratio:g}")
    if (
        len(view.mean) != len(view.std)
        or not all(-10 < m < 10 for m in view.mean)
        or not all(0 < s < 10 for s in view.std)
    ):
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
            return value[:60]
    config = lookup(content, "meta", "cfg") or lookup(content, "meta", "config")
    if isinstance(config, str):
        match = re.search(
            r"^model = dict\([^)]{0,4000}?\btype='(\w{1,40})'", config[:200_000], re.DOTALL | re.MULTILINE
        )
        return match[1] if match else None
    return None
