"""From a data set's entry to what SemanticSegmentor takes: random scale, crop and flip in training."""

from __future__ import annotations

import copy
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils
from fvcore.transforms.transform import PadTransform
from PIL import Image

from moco_plugin.errors import UsageError

GREY = 128  # what detectron2's FixedSizeCrop pads images with


class RandomScale(T.Augmentation):
    """Resizes an image by a random factor of its own size.

    Args:
        low: Smallest factor.
        high: Largest factor.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.low, self.high)
        return T.ResizeTransform(
            height,
            width,
            max(1, round(height * scale)),
            max(1, round(width * scale)),
            Image.Resampling.BILINEAR,
        )


class PadToSize(T.Augmentation):
    """Pads an image that is smaller than a size at its right and bottom: grey, with labels that are ignored.

    detectron2's FixedSizeCrop gives padding the label 0 in v0.6, and moves both sides of a crop by one number.

    Args:
        height: Height of the result, unless the image is higher.
        width: Width of the result, unless the image is wider.
        ignore_value: Label of the padding.
    """

    def __init__(self, height: int, width: int, ignore_value: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        return PadTransform(
            0,
            0,
            max(0, self.width - width),
            max(0, self.height - height),
            width,
            height,
            pad_value=GREY,
            seg_pad_value=self.ignore_value,
        )


def read_labels(path: str) -> np.ndarray:
    """Reads a label image as H x W numbers: the values of a grey image, the indices of one with a palette.

    Pascal VOC's have palettes, which detectron2's own mapper would turn into brightness.
    """
    with Image.open(path) as image:
        labels = np.array(image)
    if labels.ndim != 2:
        raise UsageError(
            f"label image {path} is of mode {image.mode}; expected one number a pixel, grey or with a palette"
        )
    return labels


class SemanticMapper:
    """Maps a data set's entry to an image and, in training, its labels (MoCo v1, appendix).

    In training: scale by a random factor, crop (and pad what is smaller), flip. Else the image as it is.

    Args:
        is_train: Whether to augment and to return labels.
        image_format: "RGB" or "BGR".
        scale_range: Smallest and largest factor of the random scale.
        crop_size: Height and width of a crop in pixels.
        ignore_value: Label of padding.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        image_format: str,
        scale_range: tuple[float, float],
        crop_size: tuple[int, int],
        ignore_value: int,
    ) -> None:
        self.is_train, self.image_format = is_train, image_format
        self.augmentations = T.AugmentationList(
            [
                RandomScale(*scale_range),
                T.RandomCrop("absolute", tuple(crop_size)),
                PadToSize(*crop_size, ignore_value),
                T.RandomFlip(),
            ]
        )

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
        return {
            "is_train": is_train,
            "image_format": cfg.INPUT.FORMAT,
            "scale_range": tuple(scale),
            "crop_size": tuple(int(side) for side in crop.SIZE),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Returns the entry with ``image``, 3 x H x W uint8, and in training ``sem_seg``, H x W int64."""
        entry = copy.copy(dataset_dict)
        image = detection_utils.read_image(entry["file_name"], format=self.image_format)
        detection_utils.check_image_size(entry, image)
        label_file = entry.pop("sem_seg_file_name", None)
        if self.is_train:
            sample = T.AugInput(image, sem_seg=read_labels(label_file))
            self.augmentations(sample)
            image = sample.image
            entry["sem_seg"] = torch.from_numpy(sample.sem_seg.astype(np.int64))
        entry["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return entry
