"""The pre-training config, and which recipe fits a method, a network and a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from moco_plugin.errors import UsageError
from moco_plugin.runs.config import OptimizerConfig, ScheduleConfig
from moco_plugin.schema import POSITIVE, build_config, configs_folder, find_config, parse_overrides

if TYPE_CHECKING:
    from torch import nn

    from moco_plugin.methods import Method

SMALL_SET = 100_000
"""Images below which ``queue_for`` takes a shorter queue and a smaller momentum."""

TRAINER = ("accelerator", "devices", "num_nodes", "precision", "strategy", "max_time", "accumulate_grad_batches")
"""Arguments of the Trainer that ``open_keys`` suggests."""


@dataclass
class DataConfig:
    """The images and the views that are made of them."""

    root: str = MISSING
    """Folder of images (nested or flat), .txt list, tar shards (paths or URLs) or an idx images file; `[start:stop]`
    at its end takes a part."""
    image_size: int = 224
    """Side of a view in pixels."""
    views: str = "auto"
    """Augmentation: moco_v1, moco_v2, moco_v3, or auto for the method's own."""
    view_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of lightly's transform that differ from the paper's."""
    batch_size: int = 256
    """Images per step over all processes."""
    workers: int = -1
    """Loader processes on each training process; -1 takes the available cores, at most 16."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Of each channel, of values from 0 to 1; measured where backbone_args.in_chans is not 3, unless given."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    crop_ratio: float = 0.875
    """Evaluation resizes the short side to image_size / crop_ratio, then crops the centre."""
    value_range: list[float] | None = None
    """Of images of more than 8 bits, the values that become black and white, or two values per channel; null: by bit
    depth, 0 to 1 for floats."""


@dataclass
class ViewsConfig:
    """How views are made; what they are is in ``data``."""

    engine: str = "fast"
    """fast (OpenCV, in loader processes), reference (Pillow, as the released code does) or device (loader processes
    decode, crop and resize; the training device does the rest)."""
    jpeg_scaling: bool = False
    """Let the JPEG decoder halve images as long as every crop stays as large as its view; for large photos."""


@dataclass
class KNNConfig:
    """The kNN monitor, on when both sets have labels."""

    train: str | None = None
    """Labelled images whose features vote; same forms as data.root."""
    test: str | None = None
    k: int | None = None
    """Neighbours that vote; null: 200, or half of a class's images if that is less."""
    temperature: float = 0.1
    features: str = "backbone"
    """What is compared: the backbone's features, or the outputs of the query encoder, head included ("encoder")."""
    every: int = 1
    """Epochs between two measurements."""


@dataclass
class PretrainConfig:
    """Everything a pre-training run is made of."""

    method: str = "moco"
    method_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the method's class."""
    backbone: str = "resnet50"
    """Any timm model name."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of moco_plugin.backbones.create_backbone; what it does not know goes to timm.create_model."""
    weights: str | None = None
    """Checkpoint whose backbone training starts from."""
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    knn: KNNConfig = field(default_factory=KNNConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further arguments of Lightning's Trainer: devices, num_nodes, precision, max_time, ..."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    save_every: int = 1000
    """Steps between two checkpoints within an epoch; each epoch ends with one."""
    timeout: float = 1800.0
    """Seconds that processes wait for each other before the run fails; longer than a kNN measurement takes."""
    seed: int = 0
    out: str = "runs/pretrain"
    """Folder for checkpoints, logs and the config as it ran."""
    channels_last: bool = True
    """Memory layout of images and convolutions; same numbers to round-off, faster on most devices."""


def default_recipe(overrides: Sequence[str]) -> str | None:
    """Return the name of the shipped recipe for the method and backbone in the overrides; MoCo v2's by default.

    Args:
        overrides: As for ``load_config``.

    Returns:
        A name under ``configs/pretrain``, or None for a method that has no recipe.
    """
    from moco_plugin.methods import method_class

    given = parse_overrides(overrides)
    method = method_class(str(given.get("method", "moco")))
    recipes = [method.recipe] if isinstance(method.recipe, str) else list(method.recipe.values())
    if len(recipes) > 1:
        arguments = given.get("backbone_args")
        trained = OmegaConf.is_dict(arguments) and bool(arguments.get("pretrained"))
        recipes = [_recipe_by_backbone(method, str(given.get("backbone", "resnet50")), trained)]
    return next((name for name in recipes if (configs_folder() / "pretrain" / f"{name}.yaml").is_file()), None)


def _recipe_by_backbone(method: type[Method], backbone: str, trained: bool) -> str:
    import timm
    import torch

    if not timm.is_model(backbone):
        backbone = "resnet50"  # create_backbone refuses the unknown one
    with torch.device("meta"):
        network = timm.create_model(backbone, num_classes=0)
    recipe = recipe_for(method, network, trained)
    # the paper's ViT-S has 12 heads where timm's has 6
    small = recipe == "moco_v3_vit" and backbone.partition(".")[0] == "vit_small_patch16_224"
    return "moco_v3_vit_small" if small else recipe


def recipe_for(method: type[Method], network: nn.Module, trained: bool) -> str:
    """Return the name of a method's recipe for a network.

    Args:
        method: The method's class; its ``recipe`` is a name, or a name by the kind of the network.
        network: Any network; its weights are not read.
        trained: Whether it starts from trained weights, whose position embedding and patches are kept as they are.
    """
    from moco_plugin.backbones import is_plain_vit
    from moco_plugin.methods.batch_norm import has_batch_norm

    if isinstance(method.recipe, str):
        return method.recipe
    if has_batch_norm(network):
        return method.recipe["batch_norm"]
    return method.recipe["plain_vit" if is_plain_vit(network) and not trained else "layer_norm"]


def describe_recipe(name: str, config: PretrainConfig) -> str:
    """Return one line with a recipe's name and the settings in which the recipes of one method differ."""
    optimizer = config.optimizer
    arguments = [f"{key}={value}" for key, value in config.backbone_args.items() if value]
    return (
        f"recipe {name}: {optimizer.name}, learning rate {optimizer.lr:g} for {optimizer.reference_batch_size} images, "
        f"T {config.method_args['temperature']}, {config.schedule.epochs} epochs"
        + (f"; backbone_args: {', '.join(arguments)}" if arguments else "")
    )


def queue_for(images: int) -> dict[str, Any]:
    """Return ``queue_size`` and ``momentum`` for a set of so many images.

    From ``SMALL_SET`` images on they are the papers'; below, those of the authors' CIFAR-10 demo (50,000 images).
    """
    recipe = load_config("moco_v2" if images >= SMALL_SET else "moco_cifar10_resnet18", ["data.root=''"])
    return {name: recipe.method_args[name] for name in ("queue_size", "momentum")}


def queue_warning(method: Any, images: int) -> str:
    """Return a sentence if the queue of a method holds more keys than there are images, else an empty string."""
    queue_size = method.queue_size or 0
    if queue_size <= images:
        return ""
    advice = queue_for(images)
    smaller = (
        f"for fewer than {SMALL_SET:,} images, method_args.queue_size={advice['queue_size']} "
        f"method_args.momentum={advice['momentum']} are the values of the authors' CIFAR-10 demo"
        if advice["queue_size"] < queue_size
        else "choose a smaller method_args.queue_size"
    )
    return (
        f"warning: the queue holds {queue_size} keys and there are {images} images, so that older keys of an image are "
        f"among its negatives; {smaller}"
    )


def open_keys() -> list[str]:
    """Return the full keys of what methods take, and of the Trainer's arguments that people ask for."""
    from moco_plugin.methods import METHODS, arguments_of, method_class

    arguments = dict.fromkeys(name for method in METHODS.names() for name in arguments_of(method_class(method)))
    return [*(f"method_args.{name}" for name in arguments), *(f"trainer.{name}" for name in TRAINER)]


def load_config(name: str | Path | None = None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Build a pre-training config: defaults, then a YAML file, then ``key=value`` overrides.

    Args:
        name: Path of a YAML file or name of a shipped one; None for ``default_recipe(overrides)``.
        overrides: Such as ``["method=moco", "data.batch_size=512"]``.

    Raises:
        UsageError: An unknown key, a value of the wrong type, or no images named.
    """
    recipe = default_recipe(overrides) if name is None else name
    file = None if recipe is None else find_config(recipe, "pretrain")
    config = build_config(PretrainConfig, file, parse_overrides(overrides), open_keys, POSITIVE)
    value_range = config.data.value_range
    channels = image_channels(config)
    if value_range is not None and (
        len(value_range) not in (2, 2 * channels)
        or any(low >= high for low, high in zip(value_range[::2], value_range[1::2], strict=True))
    ):
        raise UsageError(
            f"data.value_range is {list(value_range)}; expected two numbers, the smaller first, or two for each channel"
        )
    sizes = {len(config.data.mean), len(config.data.std)}
    if sizes not in ({channels}, {3}):  # the default's three are replaced by measured values
        raise UsageError(
            f"data.mean has {len(config.data.mean)} numbers and data.std {len(config.data.std)}; expected {channels}, "
            "one per channel"
        )
    return config


def image_channels(config: PretrainConfig) -> int:
    """Return the channels of a run's images: ``backbone_args.in_chans``, 3 unless given."""
    channels = config.backbone_args.get("in_chans", 3)
    if not isinstance(channels, int) or channels < 1:
        raise UsageError(f"backbone_args.in_chans is {channels!r}; expected the number of the images' channels")
    return channels


def config_dict(config: PretrainConfig) -> dict[str, Any]:
    """Return the config as plain nested dicts, lists, strings and numbers."""
    return OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[return-value]
