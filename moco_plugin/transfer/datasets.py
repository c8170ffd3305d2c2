"""Registers the composed scenes, checks that data sets are there, and picks their evaluators."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_voc_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from moco_plugin.errors import UsageError, UserError, nearest


def datasets_root() -> Path:
    """Returns the folder that detectron2 looks for data sets in: $DETECTRON2_DATASETS, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_scenes(root: Path | None = None, name: str = "scenes") -> None:
    """Registers ``{name}_{train,test}`` (COCO format) and ``{name}_voc_{train,test}`` (VOC format).

    Args:
        root: Folder that ``tools/make_scenes.py`` has made; by default ``scenes`` in :func:`datasets_root`.
        name: First part of the registered names.
    """
    root = root or datasets_root() / "scenes"
    for split in ("train", "test"):
        json_file, images = str(root / "annotations" / f"instances_{split}.json"), str(root / "JPEGImages")
        coco, voc = f"{name}_{split}", f"{name}_voc_{split}"
        DatasetCatalog.register(coco, lambda j=json_file, i=images, n=coco: _load_coco(j, i, n))
        MetadataCatalog.get(coco).set(json_file=json_file, image_root=images, evaluator_type="coco")
        DatasetCatalog.register(voc, lambda r=root, s=split, n=voc: _load_voc(r, s, n))
        # 2012: average precision as the whole area under the curve
        MetadataCatalog.get(voc).set(dirname=str(root), split=split, year=2012, evaluator_type="pascal_voc")


def _load_coco(json_file: str, image_root: str, name: str) -> list[dict]:
    require_dataset(name)
    return list(load_coco_json(json_file, image_root, name))


def _load_voc(root: Path, split: str, name: str) -> list[dict]:
    require_dataset(name)
    categories = json.loads((root / "annotations" / f"instances_{split}.json").read_text())["categories"]
    class_names = [category["name"] for category in categories]
    MetadataCatalog.get(name).thing_classes = class_names  # known once the data set is, as with COCO files
    return list(load_voc_instances(str(root), split, class_names))


register_scenes()


def require_dataset(name: str) -> None:
    """Checks that a data set is registered and its files are there.

    Raises:
        UsageError: No data set of that name is registered.
        UserError: A file of it is missing.
    """
    if name not in DatasetCatalog.list():
        raise UsageError(f"data set {name!r} is not registered{nearest(name, DatasetCatalog.list())}")
    metadata = MetadataCatalog.get(name)
    if hasattr(metadata, "json_file"):
        needed = Path(metadata.json_file)
    elif hasattr(metadata, "dirname"):
        needed = Path(metadata.dirname) / "ImageSets" / "Main" / f"{metadata.split}.txt"
    else:
        return
    if not needed.exists():
        how = (
            "make it with tools/make_scenes.py"
            if name.startswith("scenes_")
            else "get it as detectron2 describes"
        )
        raise UserError(
            f"data set {name!r} is not there: {needed} is missing; {how}, or set DETECTRON2_DATASETS "
            f"(now {datasets_root()}) to the folder that holds the data sets"
        )


def build_evaluator(cfg: Any, name: str) -> DatasetEvaluator:
    """Returns detectron2's evaluator for a data set, by the kind that its metadata name.

    Raises:
        UsageError: A kind other than COCO and Pascal VOC.
    """
    kind = getattr(MetadataCatalog.get(name), "evaluator_type", None)
    if kind == "coco":
        return COCOEvaluator(name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    raise UsageError(f"data set {name!r} is evaluated as {kind!r}; known here are coco and pascal_voc")
