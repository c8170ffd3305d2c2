"""Checks of data sets before training: their files, their annotations and their classes."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.transfer.components.dataset_files import datasets_root, missing_files
from moco_plugin.transfer.components.dataset_files import source as source_of
from moco_plugin.transfer.components.datasets import PARTS, is_coco, metadata_of, require_dataset
from moco_plugin.transfer.tasks import TASKS, find_task

MAX_FILE_BYTES = 256 << 20
"""Size of the largest file checked; only the published files of COCO and LVIS are larger."""
CLASS_COUNTS = {
    "SemanticSegmentor": ("SEM_SEG_HEAD", "stuff_classes"),
    "RetinaNet": ("RETINANET", "thing_classes"),
    "": ("ROI_HEADS", "thing_classes"),
}
"""Where the config of an architecture has the number of classes, and what metadata call their names."""


def check_datasets(cfg: CfgNode, names: Iterable[str]) -> None:
    """Check data sets: files, annotations, and that they have as many classes as the model.

    Where only the files of a data set name its classes, it is read. One without class names is not compared.

    Raises:
        UsageError: No data set of that name is registered.
        UserError: Files are missing or invalid, or the numbers of classes differ.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    head, kind = CLASS_COUNTS.get(architecture, CLASS_COUNTS[""])
    expected = cfg.MODEL[head].NUM_CLASSES
    for name in dict.fromkeys(names):
        require_dataset(name)
        check_annotations(name)
        classes = getattr(metadata_of(name), kind, None)
        if classes is not None and len(classes) != expected:
            key = f"MODEL.{head}.NUM_CLASSES"
            raise UserError(
                f"{key} is {expected}, and data set {name} has {len(classes)} classes; pass {key} {len(classes)} or "
                "other data sets"
            )


def check_annotations(name: str) -> None:
    """Check the COCO file of a registered data set, where it has one.

    Raises:
        UserError: The file is not valid COCO, has an invalid annotation, or names other classes than the data set.
    """
    metadata = MetadataCatalog.get(name)
    path = Path(getattr(metadata, "json_file", ""))
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return
    content = read_json(path)
    if not is_coco(content):
        raise UserError(f"{path} is not a COCO file; expected lists of {', '.join(PARTS)}")
    categories = [c for c in content["categories"] if isinstance(c.get("id"), int)]
    classes = [str(c.get("name")) for c in sorted(categories, key=lambda c: int(c["id"]))]
    expected = [str(name) for name in getattr(metadata, "thing_classes", classes)]
    if getattr(metadata, "evaluator_type", "") == "coco" and classes != expected:
        odd = sorted(set(classes) ^ set(expected)) or ["their order"]
        raise UserError(
            f"{path} has other classes than data set {name!r}: {len(classes)} and {len(expected)}, they differ in "
            f"{', '.join(odd[:3])}; register the file under its own name"
        )
    images = {image["id"]: image for image in content["images"] if isinstance(image.get("id"), (int, str))}
    ids = {category["id"] for category in categories}
    for index, annotation in enumerate(content["annotations"], start=1):
        if problem := _problem(annotation, images, ids):
            count = len(content["annotations"])
            raise UserError(f"{path}: annotation {index} of {count} {problem}; correct the file")


def _problem(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], categories: set[int]) -> str:
    """Return the problem of an annotation, or an empty string."""
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if not isinstance(image, (int, str)) or image not in images:
        return f"is of an image that the file does not list ({str(image)[:40]!r})"
    if not isinstance(category, int) or category not in categories:
        return f"is of a category that the file does not list ({str(category)[:40]!r})"
    box: Any = annotation.get("bbox")
    if not _are_numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        return "has an invalid bbox; expected four numbers x, y, width, height"
    mask = annotation.get("segmentation", [])
    if isinstance(mask, list):
        if not all(_are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
            return "has an invalid segmentation; expected polygons of at least three points x, y"
        return ""
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (list, str)):
        return "has an invalid segmentation; expected polygons or a run-length encoding"
    size: list[Any] = [images[image].get("height"), images[image].get("width")]
    if mask.get("size") != size or not all(isinstance(side, int) for side in size):
        return f"has a mask of size {str(mask.get('size'))[:40]}, and its image is {size}"
    counts = mask["counts"]
    if isinstance(counts, list) and not (
        all(isinstance(n, int) and n >= 0 for n in counts) and sum(counts) == size[0] * size[1]
    ):
        return "has an invalid run-length encoding; expected counts that add up to the image"
    return ""


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, (int, float)) and abs(n) < 1e9 and math.isfinite(n) for n in value
    )


def list_datasets(tasks: Sequence[str] = ()) -> tuple[str, bool]:
    """Look for the data sets of tasks under ``DETECTRON2_DATASETS``.

    Args:
        tasks: Tasks by name, or several by the first part of their names (``coco_c4`` for ``coco_c4_1x`` and
            ``coco_c4_2x``); by default all of the paper's.

    Returns:
        A table as text, and whether everything was found.

    Raises:
        UsageError: There is no such task.
    """
    chosen = [task for task in TASKS if not task.startswith("scenes_")] if not tasks else []  # those are the demo's
    for name in tasks:
        several = [task for task in TASKS if task.startswith(f"{name}_")]
        chosen += [name] if name in TASKS else several or [find_task(name).name]
    groups: dict[tuple[str, ...], list[str]] = {}  # tasks that take the same data sets
    for task in dict.fromkeys(chosen):
        groups.setdefault(TASKS[task].datasets, []).append(task)
    missing = {name: missing_files(name) for group in groups for name in group}
    lines = [f"data sets in {datasets_root()}"]
    for group, sharing in groups.items():
        whole = not any(missing[name] for name in group)
        lines += ["", f"{', '.join(sharing)}: {'complete' if whole else 'not complete'}"]
        for name in group:
            first, *more = [f"missing  {path}" for path in missing[name]] or ["found"]
            more += [f"{'':<7}  get it from {source_of(name)}"] * bool(missing[name])
            lines += [f"  {name:<35}  {first}", *(f"  {'':<35}  {line}" for line in more)]
    return "\n".join(lines), not any(missing.values())
