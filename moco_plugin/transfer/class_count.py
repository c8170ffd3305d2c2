"""Comparison of a model's number of classes with that of its data sets."""

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from moco_plugin.errors import UserError


def check_class_count(cfg: CfgNode, names: Iterable[str]) -> None:
    """Raise UserError if one of the data sets has more or fewer classes than the model.

    Where only the data set's files name the classes, it is read. A data set without class names is
    not compared.
    """
    key, kind = _where(cfg)
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    for name in names:
        metadata = MetadataCatalog.get(name)
        if not {"thing_classes", "stuff_classes"} & metadata.as_dict().keys():
            DatasetCatalog.get(name)
        classes = getattr(metadata, kind, None)
        if classes is not None and len(classes) != node:
            raise UserError(
                f"{key} is {node}, and data set {name} has {len(classes)} classes; pass {key} {len(classes)} or "
                "other data sets"
            )


def _where(cfg: CfgNode) -> tuple[str, str]:
    """Return the config's key of the number of classes, and what metadata call the classes."""
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        return "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "stuff_classes"
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return "MODEL.RETINANET.NUM_CLASSES", "thing_classes"
    return "MODEL.ROI_HEADS.NUM_CLASSES", "thing_classes"
