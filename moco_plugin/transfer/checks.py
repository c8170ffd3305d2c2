"""Checks of data sets before training: their files, their annotations and their classes."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from moco_plugin.errors import UserError
from moco_plugin.transfer.components.coco import Annotation, Image, read_coco
from moco_plugin.transfer.components.dataset_files import datasets_root, missing_files
from moco_plugin.transfer.components.dataset_files import source as source_of
from moco_plugin.transfer.components.datasets import metadata_of, require_dataset
from moco_plugin.transfer.tasks import TASKS, find_task

MAX_FILE_BYTES = 256 << 20  # of a file that is checked; only the published files of COCO and LVIS are larger
CLASS_COUNTS = {"SemanticSegmentor": ("SEM_SEG_HEAD", "stuff_classes"), "RetinaNet": ("RETINANET", "thing_classes")}
"""Section of the config with the number of classes, and key of their names in metadata, by architecture."""


def check_datasets(cfg: CfgNode, names: Iterable[str]) -> None:
    """Check data sets: their files, their annotations and, where they name classes, the number of classes.

    Raises:
        UsageError: No data set of that name is registered.
        UserError: Files are missing or invalid, or the model has another number of classes.
    """
    head, kind = CLASS_COUNTS.get(cfg.MODEL.META_ARCHITECTURE, ("ROI_HEADS", "thing_classes"))
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
        UserError: The file is not valid, or has other classes than the data set.
    """
    metadata = MetadataCatalog.get(name)
    path = Path(getattr(metadata, "json_file", ""))
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return
    content = read_coco(path)
    classes = content.class_names()
    expected = [str(name) for name in getattr(metadata, "thing_classes", classes)]
    if getattr(metadata, "evaluator_type", "") == "coco" and classes != expected:
        odd = sorted(set(classes) ^ set(expected)) or ["their order"]
        raise UserError(
            f"{path} has other classes than data set {name!r}: {len(classes)} and {len(expected)}, they differ in "
            f"{', '.join(odd[:3])}; register the file under its own name"
        )
    images = {image.id: image for image in content.images}
    ids = {category.id for category in content.categories}
    for index, annotation in enumerate(content.annotations, start=1):
        if problem := _problem(annotation, images.get(annotation.image_id), ids):
            raise UserError(f"{path}: annotation {index} of {len(content.annotations)} {problem}; correct the file")


def _problem(annotation: Annotation, image: Image | None, categories: set[int]) -> str:
    """Return the problem of an annotation, or an empty string."""
    if image is None:
        return f"is of an image that the file does not list ({str(annotation.image_id)[:40]!r})"
    if annotation.category_id not in categories:
        return f"is of a category that the file does not list ({str(annotation.category_id)[:40]!r})"
    mask, size = annotation.segmentation, (image.height, image.width)
    if isinstance(mask, list):
        odd = any(len(polygon) % 2 for polygon in mask)
        return "has an invalid polygon; expected pairs of x and y" if odd else ""
    if mask.size != size:
        return f"has a mask of size {str(list(mask.size))[:40]}, and its image is {list(size)}"
    if isinstance(mask.counts, list) and sum(mask.counts) != math.prod(mask.size):
        return "has an invalid run-length encoding; expected counts that add up to the image"
    return ""


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
