"""Predictions of a perfect detector."""

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as coco_mask

from moco_plugin.data.decode import decode_labels


def xyxy(annotation: dict[str, Any]) -> list[float]:
    return list(map(float, BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)))


def bitmask(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return coco_mask.decode(segmentation).astype(bool)


def perfect(entry: dict[str, Any]) -> dict[str, Any]:
    """What a perfect model gives for an entry of a data set."""
    if "sem_seg_file_name" in entry:
        labels = torch.from_numpy(decode_labels(entry["sem_seg_file_name"]).astype(np.int64))
        scores = torch.nn.functional.one_hot(labels.where(labels != 255, 0))
        return {"sem_seg": scores.permute(2, 0, 1)}
    annotations = [a for a in entry["annotations"] if not a.get("iscrowd")]
    found = Instances((entry["height"], entry["width"]))
    found.pred_boxes = Boxes(torch.tensor([xyxy(a) for a in annotations]).reshape(-1, 4))
    found.pred_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    found.scores = torch.linspace(1, 0.9, len(annotations))
    if all("segmentation" in a for a in annotations):
        masks = [bitmask(a, *found.image_size) for a in annotations]
        found.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, *found.image_size))
    if any("keypoints" in a for a in annotations):
        points = [a["keypoints"] for a in annotations]
        found.pred_keypoints = torch.tensor(points).reshape(len(points), -1, 3)
    return {"instances": found}
