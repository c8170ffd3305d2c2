"""Readers of Labelme's and VIA's JSON."""

import base64
import binascii
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from moco_plugin.data.decode import CannotDecode, decode_array
from moco_plugin.detectors.objects import run_lengths
from moco_plugin.detectors.records import Annotations, Object, Record, Runs, few
from moco_plugin.detectors.voc import ellipse
from moco_plugin.errors import UserError
from moco_plugin.typed import decode, decode_or_none, read_json_parts

CLASS_KEYS = ("class", "label", "name", "type", "category", "object")  # of VIA's attributes
ONE_CLASS = "object"  # where no class is named
NO_AREA = "shapes without an area (points and lines)"
Parts = dict[str, msgspec.Raw]


# --------------------------------------------------------------------------------------------------------- Labelme
class _Shape(msgspec.Struct):
    label: str | int | float
    points: list[tuple[float, float]]
    shape_type: str | None = "polygon"
    group_id: int | str | None = None
    mask: str | None = None


class _Labelme(msgspec.Struct):
    shapes: list[msgspec.Raw]
    imagePath: str | None = None
    imageWidth: float | None = None
    imageHeight: float | None = None


def read_labelme(root: Path, files: Sequence[Path], images: Path | None) -> Annotations:
    """Read Labelme's files, one for each image. Polygons of one label and one group are parts of one object."""
    data = Annotations(root, "Labelme's JSON", [images or root], splits={"": []})
    for path in files:
        content = decode(msgspec.json.encode(read_json_parts(path)), _Labelme, str(path))
        sides = (content.imageWidth, content.imageHeight)
        record = Record(content.imagePath or path.stem, [], *sides, path.parent, others=(path.stem,))
        groups: dict[tuple[str, int | str], Object] = {}
        for index, part in enumerate(content.shapes, start=1):
            where = f"shape {index} of {path.name}"
            shape = decode_or_none(part, _Shape)
            item = "shapes without a label or points" if shape is None else _labelme_object(shape, where)
            if shape is not None and isinstance(item, Object) and item.polygons and shape.group_id is not None:
                group = groups.setdefault((item.category, shape.group_id), item)
                if group is not item:
                    group.polygons += item.polygons
                    continue
            data.add(record, item, where)
        data.splits[""].append(record)
    return data


def _labelme_object(shape: _Shape, where: str) -> Object | str:
    item, points = Object(str(shape.label).strip()), shape.points
    if shape.shape_type == "rectangle" and len(points) == 2:
        (x, y), (right, bottom) = points
        item.box = [min(x, right), min(y, bottom), abs(right - x), abs(bottom - y)]
    elif shape.shape_type == "circle" and len(points) == 2:
        item.polygons = [ellipse(*points[0], math.dist(*points), math.dist(*points))]
    elif shape.shape_type == "mask" and len(points) == 2 and shape.mask:
        try:
            mask = decode_array(base64.b64decode(shape.mask), where, channels=1) > 0
        except (CannotDecode, UserError, binascii.Error):
            return "masks that cannot be decoded"
        left, top = (round(number) if abs(number) < 1e6 else -1 for number in points[0])
        item.runs = Runs(run_lengths(mask), by_rows=True, frame=(left, top, mask.shape[1], mask.shape[0]))
    elif shape.shape_type in ("polygon", "rectangle", "rotation", "oriented_rectangle", None):
        item.polygons = [[*chain.from_iterable(points)]]
    else:
        return NO_AREA
    return item


# ------------------------------------------------------------------------------------------------------------- VIA
class _ViaShape(msgspec.Struct):
    name: str
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    cx: float = 0
    cy: float = 0
    r: float = 0
    rx: float = 0
    ry: float = 0
    all_points_x: list[float] = []
    all_points_y: list[float] = []


class _ViaRegion(msgspec.Struct):
    shape_attributes: _ViaShape
    region_attributes: dict[str, str | int | float | bool | dict[str, bool | str] | None] = {}


class _ViaImage(msgspec.Struct):
    filename: str
    regions: list[msgspec.Raw] | dict[str, msgspec.Raw] = []


def read_via(path: Path, parts: Parts, images: Path | None) -> Annotations:
    """Read a project of VIA's, or the annotations that it exports as JSON."""
    if "_via_img_metadata" in parts:
        parts = decode(parts["_via_img_metadata"], Parts, str(path))
    found = [decode(part, _ViaImage, f"{path}, {key[:60]!r}") for key, part in parts.items()]
    return via_annotations(
        path,
        [(one.filename, one.regions if isinstance(one.regions, list) else one.regions.values()) for one in found],
        images,
    )


def via_annotations(
    path: Path, found: Sequence[tuple[str, Iterable[msgspec.Raw | bytes]]], images: Path | None
) -> Annotations:
    """Return the annotations of image names, each with VIA's regions."""
    data = Annotations(path, "VIA's annotations", [images or path.parent])
    records = {name: Record(name) for name, _ in found}
    rows = [(name, decode_or_none(part, _ViaRegion)) for name, regions in found for part in regions]
    keys = Counter(key for _, row in rows if row for key in row.region_attributes)
    key = next((key for known in CLASS_KEYS for key in keys if key.lower() == known), None)
    if key is None and len(keys) > 1:
        raise UserError(
            f"{path} has the attributes {few(list(keys))} of regions; expected one, or one of {', '.join(CLASS_KEYS)} for "
            "the class"
        )
    key = key or next(iter(keys), None)
    if key is None:
        data.notes.append(f"{path.name} names no class: all objects are of one, {ONE_CLASS!r}")
    for index, (name, row) in enumerate(rows, start=1):
        item = "regions that are not VIA's" if row is None else _via_object(row, key)
        data.add(records[name], item, f"region {index} of {path.name}")
    data.splits[""] = list(records.values())
    return data


def _via_object(row: _ViaRegion, key: str | None) -> Object | str:
    value = row.region_attributes.get(key) if key else ONE_CLASS
    if isinstance(value, dict):  # of checkboxes
        value = next((name for name, chosen in value.items() if chosen), None)
    if value is None or not str(value).strip():
        return "regions without a class"
    shape, item = row.shape_attributes, Object(str(value).strip())
    if shape.name == "rect":
        item.box = [shape.x, shape.y, shape.width, shape.height]
    elif shape.name in ("circle", "ellipse"):
        item.polygons = [ellipse(shape.cx, shape.cy, shape.rx or shape.r, shape.ry or shape.r)]
    elif shape.name == "polygon" and len(shape.all_points_x) == len(shape.all_points_y):
        item.polygons = [[*chain.from_iterable(zip(shape.all_points_x, shape.all_points_y, strict=True))]]
    else:
        return NO_AREA
    return item
