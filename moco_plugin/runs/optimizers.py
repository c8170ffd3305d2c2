"""The papers' optimizers: SGD for v1 and v2, LARS for v3's ResNets, AdamW for its ViTs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.runs.config import OptimizerConfig


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling as v3 has it: the trust ratio is |p| / |gradient + decay|.

    lightly's and timm's have |p| / (|gradient| + decay |p|), and do not reproduce the recorded v3 run.

    Args:
        params: Parameters.
        lr: Learning rate.
        momentum: Of the scaled updates.
        weight_decay: On parameters of two or more dimensions; the others get neither decay nor trust ratio.
        trust_coefficient: Scales the trust ratio.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust_coefficient: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "trust_coefficient": trust_coefficient})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; return the value of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            scaled = [p for p in params if p.ndim > 1]
            updates = {p: p.grad for p in params}
            if scaled:
                decayed = torch._foreach_add([p.grad for p in scaled], scaled, alpha=group["weight_decay"])
                p_norm, update_norm = (torch.stack(torch._foreach_norm(of)) for of in (scaled, decayed))
                ratio = group["trust_coefficient"] * p_norm / update_norm
                ratio = torch.where((p_norm > 0) & (update_norm > 0), ratio, 1.0)
                torch._foreach_mul_(decayed, ratio.unbind())
                updates |= dict(zip(scaled, decayed, strict=True))
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, list(updates.values()))
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
        return loss


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "lars": LARS, "adamw": torch.optim.AdamW}


def scaled_lr(config: OptimizerConfig, images: int, lr: float | None = None) -> float:
    """Return the learning rate for a step of so many images: linear in their number, unless ``scale_lr`` is off.

    Args:
        config: Of the optimizer.
        images: Of one optimizer step, over all processes.
        lr: For ``reference_batch_size`` images; None for the config's.
    """
    scale = images / config.reference_batch_size if config.scale_lr else 1.0
    return (config.lr if lr is None else lr) * scale


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Build the optimizer that ``config.name`` names.

    SGD and AdamW decay every parameter, as in the papers. AdamW has torch's betas and does not use ``config.momentum``.
    Parameters on CUDA use torch's fused versions.

    Raises:
        UsageError: Unknown name.
    """
    if config.name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise UsageError(
            f"unknown optimizer.name {config.name!r}; known are {known}{did_you_mean(config.name, OPTIMIZERS)}"
        )
    momentum = {} if config.name == "adamw" else {"momentum": config.momentum}
    arguments: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, **momentum}
    parameters = list(parameters)
    if config.name != "lars" and all(p.is_cuda for p in parameters):
        arguments["fused"] = True
    optimizer = OPTIMIZERS[config.name](parameters, **arguments)
    # 16-mixed: the scaler divides the gradients before the step, so that they can be clipped
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
