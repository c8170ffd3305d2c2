"""Mapping of a data set's entries to the model's input: detectron2's, with our decoder of images."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper, detection_utils

from moco_plugin.data.decode import CannotDecode, decode, decode_labels
from moco_plugin.errors import UserError
from moco_plugin.transfer.augmentation import semantic_augmentations


def box_polygon(box: Sequence[float]) -> list[list[float]]:
    """Return the mask of a box (left, top, width, height), as COCO has polygons."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


class Mapper(DatasetMapper):
    """detectron2's DatasetMapper with our decoder of images.

    It starts no program for any format, and scales images of more than 8 bits by a range of values or their depth. JPEG and
    PNG images of 8 bits are as in detectron2.
    """

    @configurable
    def __init__(self, *, value_range: Sequence[float] = (), **options: Any) -> None:
        super().__init__(**options)
        self.value_range = tuple(value_range) or None

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        options = {**super().from_config(cfg, is_train), "value_range": cfg.INPUT.VALUE_RANGE}
        if cfg.INPUT.SCALE_RANGE:  # semantic segmentation, which is tested on unchanged images
            options["augmentations"] = semantic_augmentations(cfg) if is_train else []
        return options

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the entry with ``image``, C x H x W uint8, and in training ``instances`` or ``sem_seg``, H x W int64."""
        entry = copy.deepcopy(dataset_dict)
        try:
            image = decode(Path(entry["file_name"]), entry["file_name"], self.value_range)
        except CannotDecode as error:
            raise UserError(f"image {entry['file_name']} cannot be decoded ({error}); repair or remove it") from error
        array = detection_utils.convert_PIL_to_numpy(image, self.image_format)
        detection_utils.check_image_size(entry, array)
        label_file, annotations = entry.pop("sem_seg_file_name", None), entry.pop("annotations", None)
        labels = decode_labels(label_file) if label_file and self.is_train else None
        sample = T.AugInput(array, sem_seg=labels)
        transforms = self.augmentations(sample)
        entry["image"] = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        if sample.sem_seg is not None:
            entry["sem_seg"] = torch.from_numpy(sample.sem_seg.astype(np.int64))
        shape = sample.image.shape[:2]
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(entry, shape, transforms, proposal_topk=self.proposal_topk)
        if annotations is not None and self.is_train:
            entry["annotations"] = annotations
            self._transform_annotations(entry, transforms, shape)
        return entry

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        """Set ``instances``; objects without a mask get that of their box and are marked in ``gt_has_mask``."""
        objects = [row for row in dataset_dict.pop("annotations") if not row.get("iscrowd", 0)]
        known = torch.tensor(["segmentation" in row for row in objects], dtype=torch.bool)
        for row in objects:
            row.setdefault("segmentation", box_polygon(row["bbox"]))
            for key, used in (("segmentation", self.use_instance_mask), ("keypoints", self.use_keypoint)):
                if not used:
                    row.pop(key, None)
        turned = [
            detection_utils.transform_instance_annotations(
                row, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
            )
            for row in objects
        ]
        instances = detection_utils.annotations_to_instances(turned, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        if self.use_instance_mask and not bool(known.all()):
            instances.gt_has_mask = known
        dataset_dict["instances"] = detection_utils.filter_empty_instances(instances)
