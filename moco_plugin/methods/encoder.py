"""Query and key encoders: a backbone with a projection head, and the copy that follows it slowly."""

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM_SCHEDULES = ("constant", "cosine")


class Encoder(nn.Module):
    """A backbone and its projection head; maps N x 3 x H x W images to N x C vectors.

    Args:
        backbone: Maps images to N x D features.
        head: Maps features to N x C vectors.
        normalized: Scale the vectors to unit length.

    Raises:
        ValueError: In forward, the backbone returns maps, tokens, a dict, or features of another width.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, normalized: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalized = normalized
        self.width = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != self.width:
            found = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise ValueError(f"the backbone returned {found}; expected N x feature_dim features, N x {self.width}")
        projected = self.head(features)
        return F.normalize(projected, dim=1) if self.normalized else cast(Tensor, projected)


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """Return a copy of ``encoder`` that takes no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


def momentum_at(momentum: float, schedule: str, progress: float) -> float:
    """Return m after a share of training: constant, or rising to 1 by half a cosine (v3, section 4).

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
    """Move the key encoder towards the query encoder: k = m k + (1 - m) q (v1, equation 2).

    Only parameters that are trained move: the key encoder has batch norm statistics of its own, as in the released
    code, and frozen parameters keep their copies. The result is rounded as the equation is written. lerp and
    fused multiply-add round differently, and v3's recorded run, started at a high learning rate, amplifies the
    difference a thousandfold within ten steps.
    """
    pairs = zip(encoder_q.parameters(), encoder_k.parameters(), strict=True)
    trained = [(q, k) for q, k in pairs if q.requires_grad]
    q: list[Tensor] = [pair[0] for pair in trained]
    k: list[Tensor] = [pair[1] for pair in trained]
    torch._foreach_mul_(k, m)
    torch._foreach_add_(k, torch._foreach_mul(q, 1.0 - m))


def check_arguments(momentum: float, schedule: str, temperature: float) -> None:
    """Raise ValueError unless the arguments that all versions share are in range."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is {momentum}; expected 0 to 1")
    if schedule not in MOMENTUM_SCHEDULES:
        raise ValueError(f"momentum_schedule is {schedule!r}; expected {' or '.join(MOMENTUM_SCHEDULES)}")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a value above 0")
