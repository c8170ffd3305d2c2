"""Augmentations for semantic segmentation that detectron2 lacks."""

from typing import Any

import detectron2.data.transforms as T
import numpy as np
from fvcore.transforms.transform import PadTransform
from PIL import Image

from moco_plugin.errors import UsageError

GREY = 128  # the padding of detectron2's FixedSizeCrop


class RandomScale(T.Augmentation):
    """Resize an image by a random factor between ``low`` and ``high``."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.low, self.high)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return T.ResizeTransform(height, width, *size, Image.Resampling.BILINEAR)


class PadToSize(T.Augmentation):
    """Pad smaller images at the right and bottom to ``height`` x ``width``: grey, with the label ``ignore_value``.

    detectron2's FixedSizeCrop gives padding the label 0 in v0.6, and moves both sides of a crop by one number.
    """

    def __init__(self, height: int, width: int, ignore_value: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        right, bottom = max(0, self.width - width), max(0, self.height - height)
        return PadTransform(0, 0, right, bottom, width, height, pad_value=GREY, seg_pad_value=self.ignore_value)


def semantic_augmentations(cfg: Any) -> list[T.Augmentation]:
    """Return the augmentations of MoCo v1's appendix: a random scale, a crop (padded if it is smaller) and a flip.

    Raises:
        UsageError: Invalid ``INPUT.SCALE_RANGE`` or ``INPUT.CROP``.
    """
    crop, scale = cfg.INPUT.CROP, cfg.INPUT.SCALE_RANGE
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UsageError(
            f"INPUT.SCALE_RANGE is the smallest and the largest factor, such as [0.5, 2.0]; got {list(scale)}"
        )
    if not crop.ENABLED or crop.TYPE != "absolute" or min(crop.SIZE) < 1:
        raise UsageError(
            "semantic segmentation trains on crops of one size: set INPUT.CROP.ENABLED True, TYPE 'absolute' and "
            f"SIZE [height, width]; got {crop.ENABLED}, {crop.TYPE!r} and {list(crop.SIZE)}"
        )
    size = (int(crop.SIZE[0]), int(crop.SIZE[1]))
    pad = PadToSize(*size, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    return [RandomScale(*scale), T.RandomCrop("absolute", size), pad, T.RandomFlip()]
