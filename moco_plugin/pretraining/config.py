"""The pre-training config: its schema, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from moco_plugin.errors import UsageError
from moco_plugin.runs.config import OptimizerConfig, ScheduleConfig
from moco_plugin.schema import build_config, find_config, parse_overrides, positive

TRAINER = ("accelerator", "devices", "num_nodes", "precision", "strategy", "max_time", "accumulate_grad_batches")
"""Arguments of the Trainer that ``open_keys`` suggests."""


@dataclass
class DataConfig:
    """The images and the views that are made of them."""

    root: str = MISSING
    """Folder of images (nested or flat), .txt list, tar shards (paths or URLs) or an idx images file; `[start:stop]`
    at its end takes a part."""
    image_size: int = positive(224)
    """Side of a view in pixels."""
    views: str = "auto"
    """Augmentation: moco_v1, moco_v2, moco_v3, or auto for the method's own."""
    view_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of lightly's transform that differ from the paper's."""
    batch_size: int = positive(256)
    """Images per step over all processes."""
    workers: int = -1
    """Loader processes on each training process; -1 takes the available cores, at most 16."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Of each channel, of values from 0 to 1; measured where backbone_args.in_chans is not 3, unless given."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Standard deviation of each channel, as `mean`."""
    crop_ratio: float = positive(0.875)
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
    """Labelled images that are classified; same forms as data.root."""
    k: int | None = positive(None)
    """Neighbours that vote; null: 200, or half of a class's images if that is less."""
    temperature: float = positive(0.1)
    """Each neighbour's vote has the weight exp(similarity / temperature)."""
    features: str = "backbone"
    """What is compared: the backbone's features, or the outputs of the query encoder, head included ("encoder")."""
    every: int = positive(1)
    """Epochs between two measurements."""


@dataclass
class PretrainConfig:
    """Everything a pre-training run is made of."""

    method: str = "moco"
    """moco (v2), moco_v1, moco_v2, moco_v3, or a method that another package registers."""
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
    tf32: bool = False
    """Use TF32 for float32 matrix products on GPUs; convolutions always use it."""
    save_every: int = positive(1000)
    """Steps between two checkpoints within an epoch; each epoch ends with one."""
    timeout: float = positive(1800.0)
    """Seconds that processes wait for each other before the run fails."""
    seed: int = 0
    """Random seed of weights, the order of the images, views and the permutation of the keys."""
    out: str = "runs/pretrain"
    """Folder for checkpoints, logs and the config as it ran."""
    channels_last: bool = True
    """Memory layout of images and convolutions; same numbers to round-off, faster on most devices."""


def open_keys() -> list[str]:
    """Return the full keys of what methods take, and of the Trainer's arguments that people ask for."""
    from moco_plugin.methods import METHODS, arguments_of

    arguments = dict.fromkeys(name for method in METHODS.names() for name in arguments_of(METHODS.get(method)))
    return [*(f"method_args.{name}" for name in arguments), *(f"trainer.{name}" for name in TRAINER)]


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Build a pre-training config: defaults, then a YAML file, then ``key=value`` overrides.

    Args:
        name: Path of a YAML file or name of a shipped one.
        overrides: Such as ``["method=moco", "data.batch_size=512"]``.

    Raises:
        UsageError: An unknown key, a value of the wrong type, or no images named.
    """
    return merge_config(name, parse_overrides(overrides, PretrainConfig))


def merge_config(name: str | Path, overrides: Any) -> PretrainConfig:
    """Build a config as ``load_config`` does, from the value of ``parse_overrides``."""
    config = build_config(PretrainConfig, find_config(name, "pretrain"), overrides, open_keys)
    if config.schedule.steps and OmegaConf.select(overrides, "schedule.interval") is None:
        config.schedule.interval = "step"
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
