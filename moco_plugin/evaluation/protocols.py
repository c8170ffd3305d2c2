"""The schema of a protocol's YAML file, files under configs/evaluate, and key=value overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.runs.config import OptimizerConfig, ScheduleConfig
from moco_plugin.schema import build_config, find_config, parse_overrides, positive


@dataclass
class ClassificationData:
    """The classifier's images."""

    image_size: int | None = positive(None)
    """Side of a view in pixels; null for that of pre-training."""
    min_scale: float = 0.08
    """Smallest share of an image's area that a training crop may have."""
    crop_ratio: float = positive(0.875)
    """Testing resizes the short side to image_size / crop_ratio, then crops the centre."""
    batch_size: int = positive(256)
    """Images per step over all processes; the last batch of an epoch may be smaller."""
    workers: int = -1
    """Loader processes on each training process; -1 takes the available cores, at most 16."""
    label_share: float = 1.0
    """Share of the training images whose labels are used, the same of each class, drawn by the seed."""


@dataclass
class ClassificationConfig:
    """The training of a classifier on a backbone."""

    frozen: bool = True
    """Train only the linear classifier, on a backbone in eval mode; false trains all."""
    data: ClassificationData = field(default_factory=ClassificationData)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    untrained_lr: float | None = None
    """What optimizer.lr is when the backbone starts from random weights; null for the same."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further arguments of Lightning's Trainer: devices, num_nodes, precision, check_val_every_n_epoch, ..."""
    save_every: int = positive(1000)
    """Steps between two checkpoints within an epoch; each epoch ends with one."""
    timeout: float = positive(1800.0)
    """Seconds that processes wait for each other before the run fails."""
    seed: int = 0
    """Random seed of the classifier's weights, the order of the images, crops and label_share."""


def load_protocol(task: str, name: str, overrides: Sequence[str] = ()) -> ClassificationConfig:
    """Build the settings of a protocol.

    Args:
        task: "linear" or "finetune".
        name: A file under ``configs/evaluate/TASK``, or the path of another.
        overrides: Such as ``["optimizer.lr=3", "trainer.devices=2"]``.

    Raises:
        UsageError: No such protocol, an unknown key or a value of the wrong type.
    """
    file = find_config(name, f"evaluate/{task}")
    return build_config(ClassificationConfig, file, parse_overrides(overrides, ClassificationConfig))


def linear_protocol(checkpoint: Checkpoint) -> str:
    """Return the name of the linear protocol that the paper of a checkpoint's method has."""
    if checkpoint.method != "moco_v3":
        return "moco_v1"
    return "moco_v3_vit" if isinstance(checkpoint.backbone, VisionTransformer) else "moco_v3_resnet"
