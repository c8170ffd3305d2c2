"""The configs of an optimizer and a schedule."""

from dataclasses import dataclass, field

from moco_plugin.schema import positive


@dataclass
class OptimizerConfig:
    """The optimizer, with the learning rate stated for a reference batch."""

    name: str = "sgd"
    """sgd (v1, v2), lars (v3's ResNets) or adamw (v3's ViTs)."""
    lr: float = 0.03
    """Learning rate for reference_batch_size images per step."""
    reference_batch_size: int = positive(256)
    """Images per step that lr refers to."""
    scale_lr: bool = True
    """Scale lr linearly by batch_size / reference_batch_size."""
    momentum: float = 0.9
    """Momentum of sgd and lars, 0 to 1."""
    weight_decay: float = 1e-4
    """Weight decay of all optimizers."""


@dataclass
class ScheduleConfig:
    """How long to train, and the learning rate along the way."""

    epochs: int = positive(200)
    """Passes over the images; ignored if steps is set."""
    steps: int | None = positive(None)
    """Train for this many steps, regardless of epochs; sets interval to step."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate rises from 0, before what `name` says; needs interval: step."""
    name: str = "cosine"
    """cosine (to 0), step (times gamma at each milestone) or constant."""
    milestones: list[float] = field(default_factory=list)
    """Where `step` drops: epochs, or shares of training, above 0 and below 1."""
    gamma: float = 0.1
    """Factor of the learning rate at each milestone of `step`."""
    interval: str = "epoch"
    """When the learning rate moves: each epoch (as v1 and v2 do) or each step."""
