"""Checks of COCO annotation files before training."""

import math
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from moco_plugin.errors import UserError
from moco_plugin.files import read_json

MAX_FILE_BYTES = 256 << 20
"""Size of the largest file checked; only the published files of COCO and LVIS are larger."""


def check_annotations(name: str) -> None:
    """Check the COCO file of a registered data set, where it has one.

    Raises:
        UserError: The file is not valid COCO, or names other classes than the data set.
    """
    metadata = MetadataCatalog.get(name)
    path = Path(getattr(metadata, "json_file", ""))
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return
    content = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(_dicts(content.get(part)) for part in parts):
        raise UserError(f"{path} is not a COCO file; expected lists of {', '.join(parts)}")
    categories = [c for c in content["categories"] if isinstance(c.get("id"), int)]
    found = [str(c.get("name")) for c in sorted(categories, key=lambda c: int(c["id"]))]
    expected = list(getattr(metadata, "thing_classes", found))
    if getattr(metadata, "evaluator_type", "") == "coco" and found != expected:
        odd = sorted(set(found) ^ set(expected)) or ["their order"]
        raise UserError(
            f"{path} has other classes than data set {name!r}: {len(found)} and {len(expected)}, they differ in "
            f"{', '.join(odd[:3])}; register the file under its own name"
        )
    if problem := check_content(content):
        raise UserError(f"{path}: {problem}; correct the file")


def check_content(content: dict[str, Any]) -> str:
    """Return the first annotation that is invalid, and why; an empty string if all are valid.

    Args:
        content: That of a COCO file: lists of dicts.
    """
    sizes = {image["id"]: image for image in content["images"] if isinstance(image.get("id"), (int, str))}
    ids = {category["id"] for category in content["categories"] if isinstance(category.get("id"), int)}
    for place, annotation in enumerate(content["annotations"]):
        if problem := _problem(annotation, sizes, ids):
            return f"annotation {place + 1} of {len(content['annotations'])} {problem}"
    return ""


def _dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _problem(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], categories: set[int]) -> str:
    """Return the problem of an annotation, or an empty string."""
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if not isinstance(image, (int, str)) or image not in images:
        return f"is of an image that the file does not list ({str(image)[:40]!r})"
    if not isinstance(category, int) or category not in categories:
        return f"is of a category that the file does not list ({str(category)[:40]!r})"
    box: Any = annotation.get("bbox")
    if not _numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        return "has an invalid bbox; expected four numbers x, y, width, height"
    mask = annotation.get("segmentation", [])
    if isinstance(mask, list):
        if not all(_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
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


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, (int, float)) and abs(n) < 1e9 and math.isfinite(n) for n in value
    )
