"""Projection heads, from the backbone's features to the space of the contrast."""

from __future__ import annotations

from torch import nn


def linear_head(in_dim: int, dim: int) -> nn.Module:
    """v1's head: one linear layer, ``in_dim`` to ``dim``."""
    return nn.Linear(in_dim, dim)


def mlp_head(in_dim: int, dim: int, hidden_dim: int | None = None) -> nn.Module:
    """v2's head: linear, ReLU, linear; the hidden layer is as wide as the features unless said otherwise."""
    hidden_dim = hidden_dim or in_dim
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
