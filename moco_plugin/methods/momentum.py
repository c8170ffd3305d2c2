"""The key encoder: a copy of the query encoder that follows it slowly."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

MOMENTUM_SCHEDULES = ("constant", "cosine")


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """Returns a copy of ``encoder`` that takes no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


def momentum_at(momentum: float, schedule: str, progress: float) -> float:
    """Returns m after a share of training: as it was, or rising to 1 by half a cosine (v3, section 4).

    Args:
        momentum: m at the start, 0 to 1.
        schedule: One of MOMENTUM_SCHEDULES.
        progress: Share of training done, 0 to 1.
    """
    if schedule == "constant":
        return momentum
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def update_momentum(encoder_q: nn.Module, encoder_k: nn.Module, m: float) -> None:
    """Moves the key encoder towards the query encoder: k = m k + (1 - m) q (v1, equation 2).

    Trained parameters only: the key encoder's batch norm statistics are its own, as in the released code, and
    what is frozen in the query encoder stays as it was copied. Rounded as
    the equation is written (lerp, or a fused product and sum, round otherwise, which v3's recorded run,
    started at a high learning rate, amplifies a thousandfold within ten steps).
    """
    pairs = zip(encoder_q.parameters(), encoder_k.parameters(), strict=True)
    trained = [(q, k) for q, k in pairs if q.requires_grad]
    q: list[Tensor] = [pair[0] for pair in trained]
    k: list[Tensor] = [pair[1] for pair in trained]
    torch._foreach_mul_(k, m)
    torch._foreach_add_(k, torch._foreach_mul(q, 1.0 - m))


def check_momentum(momentum: float, schedule: str, temperature: float) -> None:
    """Raises ValueError unless the arguments that all versions share are in range."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is {momentum}; expected 0 to 1")
    if schedule not in MOMENTUM_SCHEDULES:
        raise ValueError(f"momentum_schedule is {schedule!r}; expected {' or '.join(MOMENTUM_SCHEDULES)}")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a value above 0")
