"""Projection heads, from features of the backbone to the space of the contrast."""

from torch import nn


def mlp_head(in_dim: int, dim: int) -> nn.Module:
    """Return the head of v2: linear, ReLU, linear; the hidden layer is as wide as the features."""
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(), nn.Linear(in_dim, dim))


def batch_norm_mlp(layers: int, in_dim: int, hidden_dim: int, dim: int, last_norm: bool = True) -> nn.Module:
    """Return a projector or predictor of v3: linear layers without bias, each followed by batch norm, ReLU between.

    Args:
        layers: Linear layers, at least 1.
        in_dim: Width of the input.
        hidden_dim: Width between the layers.
        dim: Width of the output.
        last_norm: Batch norm, without affine parameters, on the output.
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
        in_dim = hidden_dim
    modules.append(nn.Linear(in_dim, dim, bias=False))
    if last_norm:
        modules.append(nn.BatchNorm1d(dim, affine=False))
    return nn.Sequential(*modules)
