"""Registration of data sets that detectron2 lacks, and checks of registered ones."""

import importlib.util
import re
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances

from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.files import read_json
from moco_plugin.transfer.components.coco import CocoFile, read_coco
from moco_plugin.transfer.components.dataset_files import PACKAGES, datasets_root, missing_files, source
from moco_plugin.transfer.components.voc_semantic import register_voc_semantic

FILE_PREFIX = "coco:"  # before the path of a COCO file
SEMANTIC_PREFIX = "semantic:"  # before the path of a list of images and label images, see detectors/semantic.py
PARTS = ("images", "annotations", "categories")  # of a COCO file
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


def register_scenes(root: Path | None = None, name: str = "scenes") -> None:
    """Register ``{name}_{train,test}`` (COCO format) and ``{name}_voc_{train,test}`` (VOC format).

    Args:
        root: Folder that ``tools/make_scenes.py`` has made; by default ``scenes`` in :func:`datasets_root`.
        name: First part of the registered names.
    """
    root = root or datasets_root() / "scenes"
    for split in ("train", "test"):
        json_file = root / "annotations" / f"instances_{split}.json"
        coco, voc = f"{name}_{split}", f"{name}_voc_{split}"
        register_coco_instances(coco, {}, str(json_file), str(root / "JPEGImages"))
        DatasetCatalog.register(voc, partial(_load_voc, root, split, json_file, voc))
        # 2012: average precision as the whole area under the curve
        MetadataCatalog.get(voc).set(dirname=str(root), split=split, year=2012, evaluator_type="pascal_voc")


def _load_voc(root: Path, split: str, json_file: Path, name: str) -> list[dict]:
    require_dataset(name)
    class_names = read_coco(json_file).class_names()
    MetadataCatalog.get(name).thing_classes = class_names  # known once the data set is, as with COCO files
    return list(load_voc_instances(str(root), split, class_names))


def _register_file(name: str) -> None:
    """Register a data set whose name contains its file."""
    path = Path(name.partition(":")[2])
    if name.startswith(FILE_PREFIX):
        content = read_coco(path)
        # detectron2 sets these two when it loads the file
        ids = sorted(category.id for category in content.categories)
        indices = {key: index for index, key in enumerate(ids)}
        metadata = {"thing_classes": content.class_names(), "thing_dataset_id_to_contiguous_id": indices}
        register_coco_instances(name, metadata | keypoint_metadata(content), str(path), "")
    elif name.startswith(SEMANTIC_PREFIX):
        labelled = read_json(path)
        entries = labelled["images"]
        DatasetCatalog.register(name, lambda: [dict(entry) for entry in entries])
        MetadataCatalog.get(name).set(
            stuff_classes=labelled["classes"],
            ignore_label=labelled["ignore_label"],
            evaluator_type="sem_seg",
            image_root=str(Path(entries[0]["file_name"]).parent),
            sem_seg_root=str(Path(entries[0]["sem_seg_file_name"]).parent),
        )


def keypoint_metadata(content: CocoFile) -> dict[str, Any]:
    """Return detectron2's metadata for the keypoints of a COCO file's first class that has some; empty if none.

    Keypoints with names that differ in left and right are swapped in flipped images.
    """
    category = next((category for category in content.categories if category.keypoints), None)
    if category is None:
        return {}
    names = category.keypoints
    flips = [
        (name, other)
        for name in names
        if (other := _other_side(name)) in names and names.index(name) < names.index(other)
    ]
    edges = [pair for pair in category.skeleton if all(0 < number <= len(names) for number in pair)]
    rules = [(names[one - 1], names[two - 1], (0, 160, 255)) for one, two in edges]  # COCO counts from 1
    return {"keypoint_names": names, "keypoint_flip_map": flips, "keypoint_connection_rules": rules}


def _other_side(name: str) -> str:
    return "".join(_SIDES.get(part, part) for part in re.split(r"([_\-. ]|(?<=left)|(?<=right))", name) if part)


def require_dataset(name: str) -> None:
    """Check that a data set is registered, its folders and lists exist, and the packages that it needs are installed.

    A data set that is named by its file is registered first.

    Raises:
        UsageError: No data set of that name is registered.
        UserError: A file or a package is missing.
    """
    if name not in DatasetCatalog.list():
        _register_file(name)
    if name not in DatasetCatalog.list():
        raise UsageError(f"data set {name!r} is not registered{did_you_mean(name, DatasetCatalog.list())}")
    for package in PACKAGES.get(getattr(MetadataCatalog.get(name), "evaluator_type", ""), ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"data set {name!r} needs the package {package}, which is not installed; run "
                "`make setup`, or `pip install '.[detectron2]'` in the clone and moco-install-detectron2"
            )
    if missing := missing_files(name):
        how = f"get it from {source(name)}" if source(name) else "get it as detectron2 describes"
        raise UserError(
            f"data set {name!r} is missing: {' and '.join(missing)}; {how}, or set "
            f"DETECTRON2_DATASETS (now {datasets_root()}) to the folder of the data sets"
        )


def metadata_of(name: str) -> Any:
    """Return detectron2's metadata of a data set, which is loaded where only its files name the classes."""
    metadata = MetadataCatalog.get(name)
    if not {"thing_classes", "stuff_classes"} & metadata.as_dict().keys():
        DatasetCatalog.get(name)
    return metadata


def register_datasets() -> None:
    """Register the data sets that detectron2 lacks, below :func:`datasets_root`."""
    register_scenes()
    register_voc_semantic(datasets_root())
