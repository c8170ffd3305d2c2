"""The files of data sets: the missing ones, and where to get them."""

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from moco_plugin.papers import REPORTED
from moco_plugin.transfer.components.voc_semantic import AUGMENTED, TRAIN_AUG

FILES: dict[str, Any] = REPORTED["data_sets"]
PACKAGES: dict[str, list[str]] = FILES["packages"]
"""Packages for reading and evaluating data sets, by kind."""


def datasets_root() -> Path:
    """Return detectron2's folder of data sets: $DETECTRON2_DATASETS, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def source(name: str) -> str:
    """Return where to get the files of a data set, or an empty string."""
    name = name.removeprefix("keypoints_")
    return next((text for prefix, text in FILES["sources"].items() if name.startswith(prefix)), "")


def missing_files(name: str) -> list[str]:
    """Return the missing or empty lists, annotation files and folders of a registered data set or one of DensePose's."""
    if name in FILES["densepose"] and name not in DatasetCatalog.list():
        needed = [datasets_root() / part for part in FILES["densepose"][name]]
    else:
        needed = _needed(MetadataCatalog.get(name))
    return [str(path) for path in needed if not path.exists() or (path.is_dir() and not any(path.iterdir()))]


def _needed(metadata: Any) -> list[Path]:
    """Return the files and folders that a data set needs; none for unknown kinds."""
    kind = getattr(metadata, "evaluator_type", "")
    if kind in ("coco", "lvis") and hasattr(metadata, "json_file"):  # else a user's own, not in COCO's format
        return [Path(metadata.json_file), Path(metadata.image_root)]
    if kind == "pascal_voc":
        root = Path(metadata.dirname)
        return [root / "ImageSets" / "Main" / f"{metadata.split}.txt", root / "JPEGImages", root / "Annotations"]
    if kind.startswith("cityscapes"):
        images, labels = Path(metadata.image_dir), Path(metadata.gt_dir)
        train_ids = [labels / "*" / "*labelTrainIds.png"] if kind == "cityscapes_sem_seg" else []
        return [images, labels, *(path for path in train_ids if not any(labels.glob("*/*labelTrainIds.png")))]
    if kind == "sem_seg" and hasattr(metadata, "sbd_dirname"):
        voc, sbd = Path(metadata.dirname), Path(metadata.sbd_dirname)
        lists = [voc / "ImageSets" / "Segmentation" / f"{part}.txt" for part in ("train", "val")]
        augmented = metadata.split == TRAIN_AUG and not (voc / AUGMENTED).is_dir()
        of_sbd = [sbd / "train.txt", sbd / "val.txt", sbd / "cls"] if augmented else []
        return [*lists, voc / "JPEGImages", voc / "SegmentationClass", *of_sbd]
    return [Path(metadata.image_root), Path(metadata.sem_seg_root)] if kind == "sem_seg" else []
