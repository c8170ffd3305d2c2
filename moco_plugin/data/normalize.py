"""Size, crop and normalization of the images that a network sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_plugin.methods.distributed import send


@dataclass
class View:
    """Preprocessing of images for a frozen network: side in pixels, share kept by the centre crop, mean and std.

    ``value_range`` is that of images of more than 8 bits; see ``decode``.
    """

    image_size: int
    crop_ratio: float
    mean: list[float]
    std: list[float]
    value_range: list[float] | None = None

    @property
    def channels(self) -> int:
        """Of the images."""
        return len(self.mean)


def normalize(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Return (images / 255 - mean) / std in float32.

    Args:
        images: N x C x H x W, uint8.
        mean: Mean of each channel, for values from 0 to 1; a tensor (C) on the images' device avoids a copy.
        std: Standard deviation of each channel, above 0, as ``mean``.
    """
    shift, scale = (
        values.to(torch.float32) if isinstance(values, Tensor) else send(torch.tensor(values).float(), images.device)
        for values in (mean, std)
    )
    return (images.to(torch.float32) / 255 - shift[:, None, None]) / scale[:, None, None]
