"""What a pre-training config may say, as dataclasses; and where config files lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from moco_plugin.errors import UsageError, nearest
from moco_plugin.schema import build_config, parse_overrides


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
    batched_views: bool = False
    """Make the views of a whole batch at once, on the training device (images of one size only)."""
    batch_size: int = 256
    """Images a step over all processes."""
    workers: int = -1
    """Loader processes on each training process; -1 takes the available cores, at most 16."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    crop_ratio: float = 0.875
    """Evaluation resizes the short side to image_size / crop_ratio, then crops the centre."""


@dataclass
class OptimizerConfig:
    """The optimizer, with the learning rate stated for a reference batch."""

    name: str = "sgd"
    """sgd (v1, v2), lars (v3's ResNets) or adamw (v3's ViTs)."""
    lr: float = 0.03
    """Learning rate for reference_batch_size images a step."""
    reference_batch_size: int = 256
    scale_lr: bool = True
    """Scale lr linearly by batch_size / reference_batch_size."""
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass
class ScheduleConfig:
    """How long to train, and the learning rate along the way."""

    epochs: int = 200
    steps: int | None = None
    """Train for so many steps, whatever the epochs; needs interval: step."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate rises from 0, before what `name` says; needs interval: step."""
    name: str = "cosine"
    """cosine (to 0), step (times gamma at each milestone) or constant."""
    milestones: list[float] = field(default_factory=list)
    """Where `step` drops: epochs, or shares of training, above 0 and below 1."""
    gamma: float = 0.1
    interval: str = "epoch"
    """When the learning rate moves: each epoch (as v1 and v2 do) or each step."""


@dataclass
class KNNConfig:
    """The kNN monitor, on when both sets have labels."""

    train: str | None = None
    """Labelled images whose features vote; same forms as data.root."""
    test: str | None = None
    k: int = 200
    temperature: float = 0.1
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


def configs_folder() -> Path:
    """Returns the folder of shipped configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def find_config(name: str | Path, kind: str) -> Path:
    """Finds a config file by path, or a shipped one by name.

    Args:
        name: A path, or what follows ``configs/KIND/`` in the path of a shipped config, with or without suffix.
        kind: Folder under ``configs/``: "pretrain" or "detectron2".

    Raises:
        UsageError: Nothing is there; the shipped names are listed.
    """
    shipped = configs_folder() / kind
    text = str(name)
    tail = text.split(f"configs/{kind}/")[-1]
    for path in (Path(text).expanduser(), shipped / tail, shipped / f"{tail}.yaml"):
        if path.is_file():
            return path
    names = sorted(
        str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml") if p.stem[0] not in "_B"
    )
    raise UsageError(f"no config {text!r}; shipped are {', '.join(names)}{nearest(tail, names)}")


def _recipe(overrides: Any) -> Path | None:
    """Returns the shipped file with the paper's recipe of the method that the overrides name, MoCo v2 by default."""
    method, backbone = overrides.get("method", "moco"), overrides.get("backbone")
    if method == "moco_v3":
        from moco_plugin.backbones import is_vit

        method = "moco_v3_vit" if is_vit(str(backbone)) else "moco_v3_resnet"
    path = configs_folder() / "pretrain" / f"{'moco_v2' if method == 'moco' else method}.yaml"
    return path if path.is_file() else None


def load_config(name: str | Path | None = None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Builds a pre-training config: defaults, then a YAML file, then ``key=value`` overrides.

    Args:
        name: Path of a YAML file or name of a shipped one; None for the recipe of the method.
        overrides: Such as ``["method=moco", "data.batch_size=512"]``.

    Raises:
        UsageError: An unknown key, a value of the wrong type, or no images named.
    """
    overriding = parse_overrides(overrides)
    file = _recipe(overriding) if name is None else find_config(name, "pretrain")
    return build_config(PretrainConfig, file, overriding)


def config_dict(config: PretrainConfig) -> dict[str, Any]:
    """Returns the config as plain nested dicts, lists, strings and numbers."""
    return OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[return-value]
