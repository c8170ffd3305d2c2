"""Mapping of a data set's entries for semantic segmentation: random scale, crop and flip in training."""

from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from fvcore.transforms.transform import PadTransform
from PIL import Image

from moco_plugin.errors import UsageError
from moco_plugin.transfer.image_mapper import read_picture

GREY = 128  # what detectron2's FixedSizeCrop pads images with


class RandomScale(T.Augmentation):
    """Resize an image by a random factor of its own size.

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
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return T.ResizeTransform(height, width, *size, Image.Resampling.BILINEAR)


class PadToSize(T.Augmentation):
    """Pad an image that is smaller than a size at its right and bottom: grey, with labels that are ignored.

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
        right, bottom = max(0, self.width - width), max(0, self.height - height)
        return PadTransform(0, 0, right, bottom, width, height, pad_value=GREY, seg_pad_value=self.ignore_value)


def read_labels(path: str) -> np.ndarray:
    """Read a label image as H x W numbers: the values of a grey image, the indices of one with a palette.

    Pascal VOC's have palettes, which detectron2's own mapper would turn into brightness.
    """
    with Image.open(path) as image:
        labels = np.array(image)
    if labels.ndim != 2:
        raise UsageError(
            f"label image {path} is of mode {image.mode}; expected one number per pixel, grey or with a palette"
        )
    return labels


def training_steps(scale_range: Sequence[float], crop_size: tuple[int, int], ignore_value: int) -> list[T.Augmentation]:
    """Return the augmentations of training.

    Args:
        scale_range: Smallest and largest factor of the random scale.
        crop_size: Height and width of a crop in pixels.
        ignore_value: Label of padding.
    """
    crop = T.RandomCrop("absolute", crop_size)
    return [RandomScale(*scale_range), crop, PadToSize(*crop_size, ignore_value), T.RandomFlip()]


class SemanticMapper(DatasetMapper):
    """detectron2's DatasetMapper with the augmentation of MoCo v1's appendix, for labels with a palette as well.

    Training scales by a random factor, crops (and pads what is smaller) and flips. Inference uses the unchanged image,
    without labels.

    Attributes:
        value_range: ``INPUT.VALUE_RANGE``, see ``read_picture``.
    """

    value_range: Sequence[float] | None = None

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
        return {"is_train": is_train, "augmentations": steps, "image_format": cfg.INPUT.FORMAT}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the entry with ``image``, 3 x H x W uint8, and in training ``sem_seg``, H x W int64."""
        entry = dict(dataset_dict)
        image = read_picture(entry["file_name"], self.image_format, self.value_range)
        detection_utils.check_image_size(entry, image)
        label_file = entry.pop("sem_seg_file_name", None)
        sample = T.AugInput(image, sem_seg=read_labels(label_file) if self.is_train else None)
        self.augmentations(sample)
        if self.is_train:
            entry["sem_seg"] = torch.from_numpy(sample.sem_seg.astype(np.int64))
        entry["image"] = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        return entry
