"""Evaluators of data sets, by the kind that a data set's metadata name."""

import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from moco_plugin.errors import UsageError
from moco_plugin.transfer.compat import before_evaluation
from moco_plugin.transfer.components.dataset_files import PACKAGES

KINDS = ("cityscapes_instance", "cityscapes_sem_seg", "coco", "lvis", "pascal_voc", "sem_seg")


def build_evaluator(cfg: Any, name: str) -> DatasetEvaluator:
    """Return detectron2's evaluator for a data set.

    Results are percentages: AP, AP50, AP75 of boxes for Pascal VOC; the same and more of boxes, masks and
    keypoints for COCO and LVIS, whichever the model gives; AP and AP50 of masks for Cityscapes' instances; IoU for
    Cityscapes' semantic segmentation; mIoU for any other.

    Args:
        cfg: A detectron2 config; predictions are kept in ``inference`` of its ``OUTPUT_DIR``.
        name: A registered data set.

    Raises:
        UsageError: The data set is of another kind.
    """
    kind = getattr(MetadataCatalog.get(name), "evaluator_type", "")
    output = os.path.join(cfg.OUTPUT_DIR, "inference")
    for package in PACKAGES.get(kind, ()):
        before_evaluation(package)
    if kind == "coco":
        return COCOEvaluator(name, output_dir=output, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)
    if kind == "lvis":
        return LVISEvaluator(name, output_dir=output, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    if kind == "cityscapes_instance":
        return CityscapesInstanceEvaluator(name)
    if kind == "cityscapes_sem_seg":
        return CityscapesSemSegEvaluator(name)
    if kind == "sem_seg":
        return SemSegEvaluator(name, output_dir=output)
    raise UsageError(f"data set {name!r} is evaluated as {kind!r}; known here are {', '.join(KINDS)}")
