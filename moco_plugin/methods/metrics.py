"""Metrics of a batch: accuracy of finding the positive key, and the spread of the features."""

from typing import cast

import torch
from torch import Tensor


@torch.no_grad()
def batch_metrics(positions: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """Return the metrics that all versions log.

    Args:
        positions: Position of the positive among all keys by similarity, 0 is best; any shape.
        queries: N x C, of unit length.

    Returns:
        ``top1`` and ``top5`` in percent, and ``feature_std``.
    """
    return {
        "top1": (positions < 1).float().mean() * 100,
        "top5": (positions < 5).float().mean() * 100,
        "feature_std": feature_std(queries),
    }


def feature_std(features: Tensor) -> Tensor:
    """Return the standard deviation of N x C unit vectors over the batch times sqrt(C): 1 spread, 0 collapsed."""
    return cast(Tensor, features.detach().float().std(dim=0).mean() * features.shape[1] ** 0.5)
