"""The last moment of a uint8 image: to float, mean and standard deviation taken out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns (images / 255 - mean) / std in float32.

    Args:
        images: N x 3 x H x W, uint8.
        mean: Per channel, of images in 0 to 1.
        std: Per channel, above 0.
    """
    shift = images.new_tensor(mean, dtype=torch.float32)[:, None, None]
    scale = images.new_tensor(std, dtype=torch.float32)[:, None, None]
    return (images.to(torch.float32) / 255 - shift) / scale
