"""Readers of XML: Pascal VOC's, one file for each image, which labelImg and Roboflow also write; CVAT's, one for all."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from moco_plugin.detectors.records import Annotations, Object, Record, Runs, by_folder, few, numbered, split_of
from moco_plugin.errors import UserError
from moco_plugin.files import read_text
from moco_plugin.typed import read_elements

CORNERS = ("xmin", "ymin", "xmax", "ymax")
ELLIPSE_POINTS = 32


def root_tag(path: Path) -> str:
    """Return the name of an XML file's root."""
    return next(iter(read_elements(path))).tag


def _number(text: str | None, default: float = math.nan) -> float:
    """Return a finite number, or the default."""
    try:
        value = float((text or "").strip())
    except ValueError:
        return default
    return value if math.isfinite(value) else default


# ------------------------------------------------------------------------------------------------------ Pascal VOC
def read_voc(root: Path, files: Sequence[Path], images: Path | None) -> Annotations:
    """Read the XML files of a folder, one for each image.

    Splits are those of ``ImageSets/Main``, or folders called ``train``, ``valid`` and ``test``.

    Raises:
        UserError: A file is not XML.
    """
    root = root.parent if root.name.lower() == "annotations" else root
    data = Annotations(root, "Pascal VOC's XML", [images or root / "JPEGImages", images or root / "images", root])
    records = {path: record for path in files if (record := _voc_record(path, data)) is not None}
    data.splits = _image_sets(root, records, data.notes) or {
        split: [records[path] for path in paths] for split, paths in by_folder(root, list(records)).items()
    }
    return data


def _voc_record(path: Path, data: Annotations) -> Record | None:
    elements = read_elements(path)
    if next(elements).tag != "annotation":
        return None
    record, written = Record("", folder=path.parent), ""
    for element in elements:
        if element.tag == "filename":
            written = (element.text or "").strip()
        elif element.tag == "size":
            record.width, record.height = (_number(element.findtext(key), 0) for key in ("width", "height"))
        elif element.tag == "object":
            name = (element.findtext("name") or "").strip()
            left, top, right, bottom = (_number(element.findtext(f"bndbox/{key}")) for key in CORNERS)
            # VOC counts pixels from 1 and includes both ends
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            crowd = (element.findtext("difficult") or "").strip() == "1"
            odd = "objects without a name, or without four numbers in bndbox"
            item: Object | str = odd if not name or math.isnan(sum(box)) else Object(name, box, crowd=crowd)
            data.add(record, item, f"object {len(record.objects) + 1} of {path.name}")
    # a file that was renamed with its image still contains the old name
    given = re.split(r"[\\/]", written)[-1].lower()
    names = (written, path.stem)
    record.name, other = names if path.stem.lower() in (given, given.rpartition(".")[0]) else names[::-1]
    record.others = (other,)
    return record


def _image_sets(root: Path, records: dict[Path, Record], notes: list[str]) -> dict[str, list[Record]]:
    """Return the splits of ``ImageSets/Main``: trainval and test, else train and val."""
    folder = next((root / "ImageSets" / name for name in ("Main", "") if (root / "ImageSets" / name).is_dir()), None)
    if folder is None:
        return {}
    below = {path.relative_to(root).with_suffix("").as_posix().partition("/")[2]: path for path in records}
    by_name = {path.stem: record for path, record in records.items()} | {name: records[p] for name, p in below.items()}
    sets: dict[str, list[Record]] = {}
    for path in sorted(folder.glob("*.txt")):
        split = path.stem.lower()
        if split not in ("train", "val", "trainval", "test"):
            continue  # lists of one class, or CVAT's default
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        names = [line.split()[0] if len(line.split()) == 2 else line for line in lines]
        sets[split] = [by_name[name] for name in names if name in by_name]
        if split != "test" and (lost := [name for name in names if name not in by_name]):
            notes.append(f"{len(lost)} images of {path.name} have no XML file: {few(lost)}")
    if sets.get("trainval") and (sets.get("test") or not sets.get("val")):
        sets |= {"train": sets["trainval"], "val": []}
    return {name: sets[name] for name in ("train", "val", "test") if sets.get(name)} if sets.get("train") else {}


# ------------------------------------------------------------------------------------------------------------ CVAT
def read_cvat(path: Path, images: Path | None) -> Annotations:
    """Read an XML file of the form "CVAT for images".

    Raises:
        UserError: It is one of another form.
    """
    data = Annotations(path, "CVAT's XML", [images] if images else [path.parent / "images", path.parent])
    labels: list[str] = []
    for element in read_elements(path):
        if element.tag == "track":
            raise UserError(f'{path} has tracks of a video; export the task as "CVAT for images" or as COCO')
        labels += [(name.text or "").strip() for name in element.findall(".//labels/label/name")]
        if element.tag == "image":
            width, height = (_number(element.get(key), 0) for key in ("width", "height"))
            record = Record(element.get("name", ""), width=width, height=height)
            for shape in element:
                if shape.tag not in ("tag", "attribute"):
                    where = f"{shape.tag} {len(record.objects) + 1} of {record.name} in {path.name}"
                    data.add(record, _cvat_object(shape), where)
            data.splits.setdefault(split_of(element.get("subset", "")), []).append(record)
    if ("" in data.splits and len(data.splits) > 1) or "train" not in data.splits:
        data.splits = {"": data.records}
    names = dict.fromkeys(filter(None, labels))
    if all(item.category in names for record in data.records for item in record.objects):
        data.categories = numbered(names)
    return data


def _cvat_object(shape: Element) -> Object | str:
    """Return an object, or the reason for which it is left out."""
    name = shape.get("label", "").strip()
    if not name:
        return "shapes without a label"

    def numbers(keys: str, default: float = math.nan) -> list[float]:
        return [_number(shape.get(key), default) for key in keys.split()]

    item, turn = Object(name), math.radians(_number(shape.get("rotation"), 0))
    if shape.tag == "polygon":
        item.polygons = [[_number(number) for number in re.split(r"[,;]", shape.get("points", ""))]]
    elif shape.tag == "mask":
        left, top, width, height = map(int, numbers("left top width height", -1))
        counts = [int(_number(number, -1)) for number in shape.get("rle", "").split(",")]
        item.runs = Runs(counts, by_rows=True, frame=(left, top, width, height))
    elif shape.tag == "box":
        x, y, right, bottom = numbers("xtl ytl xbr ybr")
        rx, ry = (right - x) / 2, (bottom - y) / 2
        if turn:
            item.polygons = [_turned([(-rx, -ry), (rx, -ry), (rx, ry), (-rx, ry)], x + rx, y + ry, turn)]
        else:
            item.box = [x, y, right - x, bottom - y]
    elif shape.tag == "ellipse":
        x, y, rx, ry = numbers("cx cy rx ry")
        item.polygons = [ellipse(x, y, rx, ry, turn)]
    else:
        return f"shapes of the kind {shape.tag!r}, which have no area"
    return item


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0) -> list[float]:
    """Return the points x, y, x, y, ... of an ellipse, rotated clockwise by an angle in radians."""
    steps = [2 * math.pi * index / ELLIPSE_POINTS for index in range(ELLIPSE_POINTS)]
    return _turned([(rx * math.cos(step), ry * math.sin(step)) for step in steps], x, y, angle)


def _turned(points: Sequence[tuple[float, float]], x: float, y: float, angle: float) -> list[float]:
    """Return points relative to a centre, rotated around it clockwise as images are seen, as x, y, x, y, ..."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [number for px, py in points for number in (x + px * cos - py * sin, y + px * sin + py * cos)]
