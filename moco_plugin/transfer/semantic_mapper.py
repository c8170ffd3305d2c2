"""Mapping of a data set's entries for semantic segmentation: random scale, crop and flip in training."""

from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
from fvcore.transforms.transform import PadTransform
from PIL import Image

from moco_plugin.errors import UsageError
from moco_plugin.transfer.mapper import Mapper

GREY = 128  # what detectron2's FixedSizeCrop pads images with


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


def training_steps(scale_range: Sequence[float], crop_size: tuple[int, int], ignore_value: int) -> list[T.Augmentation]:
    """Return the augmentations of training: a scale between two factors, a crop of height x width pixels, and a flip."""
    crop = T.RandomCrop("absolute", crop_size)
    return [RandomScale(*scale_range), crop, PadToSize(*crop_size, ignore_value), T.RandomFlip()]


class SemanticMapper(Mapper):
    """A mapper with the augmentation of MoCo v1's appendix; inference uses the unchanged image."""

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
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
        steps = training_steps(scale, size, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) if is_train else []
        images = {"image_format": cfg.INPUT.FORMAT, "value_range": cfg.INPUT.VALUE_RANGE}
        return {"is_train": is_train, "augmentations": steps, **images}
