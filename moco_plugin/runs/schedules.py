"""Learning rate schedules, from fvcore's."""

from bisect import bisect_right
from typing import Any

import torch
from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler, LinearParamScheduler

from moco_plugin.errors import UsageError
from moco_plugin.runs.config import ScheduleConfig


def lr_schedule(schedule: ScheduleConfig) -> Any:
    """Return the factor on the learning rate as a function of the share of training done, 0 to 1.

    Raises:
        UsageError: Unknown schedule, milestones out of order, or a warm-up as long as all of training.
    """
    if schedule.steps is not None and (schedule.steps < 1 or schedule.interval != "step"):
        raise UsageError(
            f"schedule.steps is {schedule.steps} and schedule.interval {schedule.interval}; expected 1 step or more, "
            "and interval=step"
        )
    main = _main_schedule(schedule)
    if not schedule.warmup_epochs:
        return main
    if not 0 < schedule.warmup_epochs < schedule.epochs or schedule.interval != "step" or schedule.steps:
        raise UsageError(
            f"schedule.warmup_epochs is {schedule.warmup_epochs}; expected fewer than the {schedule.epochs} epochs, "
            "schedule.interval=step, and no schedule.steps"
        )
    warmup = schedule.warmup_epochs / schedule.epochs
    parts: list[Any] = [LinearParamScheduler(0.0, 1.0), main]
    # a cosine spans what the warm-up leaves; milestones are epochs of the whole training
    scaling = ["rescaled", "rescaled" if schedule.name == "cosine" else "fixed"]
    return CompositeParamScheduler(parts, lengths=[warmup, 1 - warmup], interval_scaling=scaling)


def _main_schedule(schedule: ScheduleConfig) -> Any:
    if schedule.name == "cosine":
        return CosineParamScheduler(1.0, 0.0)
    if schedule.name == "constant":
        return lambda done: 1.0
    if schedule.name == "step":
        shares = [m if m < 1 else m / schedule.epochs for m in schedule.milestones]
        if shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise UsageError(
                f"schedule.milestones are {schedule.milestones}; expected rising epochs between 0 and "
                f"{schedule.epochs}, or shares of training between 0 and 1"
            )
        return lambda done: schedule.gamma ** bisect_right(shares, done + 1e-9)
    raise UsageError(f"unknown schedule.name {schedule.name!r}; known are cosine, step, constant")


def with_schedule(
    optimizer: torch.optim.Optimizer, schedule: ScheduleConfig, factor: Any, total_steps: int
) -> dict[str, Any]:
    """Return the value of ``configure_optimizers``: the optimizer, and its schedule by epoch or step.

    Args:
        optimizer: With the learning rate at the start.
        schedule: Says the interval and the epochs.
        factor: The value of ``lr_schedule``.
        total_steps: Optimizer steps of the whole training.

    Raises:
        UsageError: Unknown interval.
    """
    if schedule.interval not in ("epoch", "step"):
        raise UsageError(f"schedule.interval is {schedule.interval!r}; expected epoch or step")
    total = schedule.epochs if schedule.interval == "epoch" else total_steps
    by_interval = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: factor(min(done / total, 1.0)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_interval, "interval": schedule.interval}}
