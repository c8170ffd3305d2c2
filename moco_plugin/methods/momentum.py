"""The key encoder: a copy of the query encoder that follows it slowly."""

from __future__ import annotations

import copy

import torch
from torch import nn


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """Returns a copy of ``encoder`` that takes no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def update_momentum(encoder_q: nn.Module, encoder_k: nn.Module, m: float) -> None:
    """Moves the key encoder towards the query encoder: k = m k + (1 - m) q (v1, equation 2).

    Parameters only: the key encoder's batch norm statistics are its own, as in the released code.
    """
    torch._foreach_lerp_(list(encoder_k.parameters()), list(encoder_q.parameters()), 1.0 - m)
