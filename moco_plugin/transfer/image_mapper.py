"""Mapping of own data's entries: detectron2's, with the product's one reader of images, and objects without masks."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils

from moco_plugin.data.bands import CannotDecode
from moco_plugin.data.decode import decode_array
from moco_plugin.errors import UserError


def read_picture(path: str | Path, image_format: str, value_range: Sequence[float] | None = None) -> np.ndarray:
    """Return an image as training, test and predictions see it.

    Args:
        path: The file.
        image_format: "BGR" or "RGB".
        value_range: The values that become black and white in images of more than 8 bits; None for their bit depth.

    Returns:
        uint8, H x W x 3, upright.

    Raises:
        UserError: The file is missing or cannot be decoded.
    """
    try:
        image = decode_array(Path(path), str(path), value_range or None)
    except CannotDecode as error:
        raise UserError(f"image {path} cannot be decoded{f' ({error})' if str(error) else ''}; repair it") from error
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    return image[:, :, ::-1] if image_format == "BGR" else image


class ImageMapper(DatasetMapper):
    """detectron2's DatasetMapper for data sets that are named by their file.

    Objects without a mask, where others have one, get that of their box, and ``gt_has_mask`` says so to
    ``PartialMaskHead``.

    Attributes:
        value_range: ``INPUT.VALUE_RANGE``, see ``read_picture``.
    """

    value_range: Sequence[float] | None = None

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the entry with ``image``, 3 x H x W uint8, and in training ``instances``."""
        entry = copy.deepcopy(dataset_dict)
        image = read_picture(entry["file_name"], self.image_format, self.value_range)
        detection_utils.check_image_size(entry, image)
        sample = T.AugInput(image)
        transforms = self.augmentations(sample)
        entry["image"] = torch.as_tensor(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        objects = [row for row in entry.pop("annotations", ()) if not row.get("iscrowd", 0)]
        if not self.is_train:
            return entry
        known = torch.tensor(["segmentation" in row for row in objects], dtype=torch.bool)
        for row in objects:
            left, top, width, height = row["bbox"]
            right, bottom = left + width, top + height
            row.setdefault("segmentation", [[left, top, right, top, right, bottom, left, bottom]])
            for key, used in (("segmentation", self.use_instance_mask), ("keypoints", self.use_keypoint)):
                if not used:
                    row.pop(key, None)
        shape, flips = sample.image.shape[:2], self.keypoint_hflip_indices
        objects = [
            detection_utils.transform_instance_annotations(row, transforms, shape, keypoint_hflip_indices=flips)
            for row in objects
        ]
        instances = detection_utils.annotations_to_instances(objects, shape, mask_format=self.instance_mask_format)
        if self.use_instance_mask:
            instances.gt_has_mask = known
        entry["instances"] = detection_utils.filter_empty_instances(instances)
        return entry
