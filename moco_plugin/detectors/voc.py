"""Readers of XML: Pascal VOC's, which labelImg and Roboflow write, one file for each image, and CVAT's, one for all."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from moco_plugin.detectors.records import (
    Annotations,
    Faults,
    Object,
    Record,
    Runs,
    by_folder,
    few,
    named,
    numbered,
    split_of,
)
from moco_plugin.errors import UserError
from moco_plugin.files import read_text
from moco_plugin.typed import read_elements

CORNERS = ("xmin", "ymin", "xmax", "ymax")
ELLIPSE_POINTS = 32


def root_tag(path: Path) -> str:
    """Return the name of an XML file's root."""
    return next(iter(read_elements(path))).tag


def _number(text: str | None) -> float:
    """Return a finite number; NaN for what is none."""
    try:
        value = float((text or "").strip())
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _integer(text: str | None) -> int:
    value = _number(text)
    return -1 if math.isnan(value) else int(value)


def _side(text: str | None) -> float | None:
    return value if (value := _number(text)) > 0 else None


# ------------------------------------------------------------------------------------------------------ Pascal VOC
def read_voc(root: Path, files: Sequence[Path], images: Path | None) -> Annotations:
    """Read the XML files of a folder, one for each image.

    Splits are those of ``ImageSets/Main``, or folders called ``train``, ``valid`` and ``test``.

    Raises:
        UserError: A file is not XML.
    """
    root = root.parent if root.name.lower() == "annotations" else root
    faults, notes = Faults(), list[str]()
    records = {path: record for path in files if (record := _voc_record(path, faults)) is not None}
    splits = _image_sets(root, records, notes)
    if not splits:
        splits = {split: [records[path] for path in paths] for split, paths in by_folder(root, list(records)).items()}
    roots = [images or root / "JPEGImages", images or root / "images", root]
    return Annotations(root, "Pascal VOC's XML", named(list(records.values())), splits, roots, notes, faults)


def _voc_record(path: Path, faults: Faults) -> Record | None:
    elements = read_elements(path)
    if next(elements).tag != "annotation":
        return None
    record, written = Record("", folder=path.parent), ""
    for element in elements:
        if element.tag == "filename":
            written = (element.text or "").strip()
        elif element.tag == "size":
            record.width, record.height = (_side(element.findtext(key)) for key in ("width", "height"))
        elif element.tag == "object":
            where = f"object {len(record.objects) + 1} of {path.name}"
            name = (element.findtext("name") or "").strip()
            left, top, right, bottom = (_number(element.findtext(f"bndbox/{key}")) for key in CORNERS)
            # VOC counts pixels from 1, both ends are inside
            item = Object(name, [left - 1, top - 1, right - left + 1, bottom - top + 1], where=where)
            item.crowd = (element.findtext("difficult") or "").strip() == "1"
            if not name:
                faults.add("objects without a name", where)
            elif not all(map(math.isfinite, item.box or ())):
                faults.add("objects without four numbers in bndbox", where)
            else:
                record.objects.append(item)
    # a file that was renamed with its image still has the old name inside
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
    by_stem = {path.stem: record for path, record in records.items()}
    by_stem |= {
        path.relative_to(root).with_suffix("").as_posix().partition("/")[2]: record for path, record in records.items()
    }
    sets: dict[str, list[Record]] = {}
    lost: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem.lower() not in ("train", "val", "trainval", "test"):
            continue  # lists of one class, or CVAT's default
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        names = [line.split()[0] if len(line.split()) == 2 else line for line in lines]
        sets[path.stem.lower()] = [by_stem[name] for name in names if name in by_stem]
        lost += [name for name in names if name not in by_stem] if path.stem.lower() != "test" else []
    if lost:
        notes.append(f"{len(lost)} images of ImageSets have no XML file: {few(lost)}")
    sets = {name: part for name, part in sets.items() if part}
    if "trainval" in sets and "test" in sets:
        return {"train": sets["trainval"], "test": sets["test"]}
    if "trainval" in sets and "val" not in sets:
        sets["train"] = sets["trainval"]
    return {name: sets[name] for name in ("train", "val", "test") if name in sets} if "train" in sets else {}


# ------------------------------------------------------------------------------------------------------------ CVAT
def read_cvat(path: Path, images: Path | None) -> Annotations:
    """Read an XML file of the form "CVAT for images".

    Raises:
        UserError: It is one of another form.
    """
    faults, labels = Faults(), list[str]()
    splits: dict[str, list[Record]] = {}
    for element in read_elements(path):
        if element.tag == "track":
            raise UserError(f'{path} has tracks of a video; export the task as "CVAT for images" or as COCO')
        labels += [(name.text or "").strip() for name in element.findall(".//labels/label/name")]
        if element.tag == "image":
            record = Record(element.get("name", ""))
            record.width, record.height = (_side(element.get(key)) for key in ("width", "height"))
            for shape in element:
                where = f"{shape.tag} {len(record.objects) + 1} of {record.name} in {path.name}"
                item = _cvat_object(shape, where)
                if isinstance(item, Object):
                    record.objects.append(item)
                elif item:
                    faults.add(item, where)
            splits.setdefault(split_of(element.get("subset", "")), []).append(record)
    if ("" in splits and len(splits) > 1) or "train" not in splits:
        splits = {"": [record for records in splits.values() for record in records]}
    used = named([record for records in splits.values() for record in records])
    names = list(dict.fromkeys(filter(None, labels)))
    categories = numbered(names) if {row.name for row in used} <= {*names} else used
    roots = [images] if images is not None else [path.parent / "images", path.parent]
    return Annotations(path, "CVAT's XML", categories, splits, roots, [], faults)


def _cvat_object(shape: Element, where: str) -> Object | str:
    """Return an object; else why it is left out, or an empty text for what is no object."""
    name = shape.get("label", "").strip()
    if not name or shape.tag == "tag":
        return "" if shape.tag in ("tag", "attribute") else "shapes without a label"
    item, turn = Object(name, where=where), math.radians(_number(shape.get("rotation") or "0"))
    if shape.tag == "polygon":
        item.polygons = [[_number(number) for number in re.split(r"[,;]", shape.get("points", ""))]]
    elif shape.tag == "mask":
        left, top, width, height = (_integer(shape.get(key)) for key in ("left", "top", "width", "height"))
        counts = [_integer(number) for number in shape.get("rle", "").split(",")]
        item.runs = Runs(counts, by_rows=True, frame=(left, top, width, height))
    elif shape.tag == "box":
        x, y, right, bottom = (_number(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        rx, ry = (right - x) / 2, (bottom - y) / 2
        if turn:
            corners = [(-rx, -ry), (rx, -ry), (rx, ry), (-rx, ry)]
            item.polygons = [_turned(corners, x + rx, y + ry, turn)]
        else:
            item.box = [x, y, right - x, bottom - y]
    elif shape.tag == "ellipse":
        x, y, rx, ry = (_number(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        item.polygons = [ellipse(x, y, rx, ry, turn)]
    else:
        return f"shapes of the kind {shape.tag!r}, which have no area"
    return item


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0) -> list[float]:
    """Return points of an ellipse that is turned clockwise by an angle in radians, as x, y, x, y, ..."""
    steps = [2 * math.pi * number / ELLIPSE_POINTS for number in range(ELLIPSE_POINTS)]
    return _turned([(rx * math.cos(step), ry * math.sin(step)) for step in steps], x, y, angle)


def _turned(points: Sequence[tuple[float, float]], x: float, y: float, angle: float) -> list[float]:
    """Return points, given from a centre, turned around it, clockwise as images are seen, as x, y, x, y, ..."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [number for px, py in points for number in (x + px * cos - py * sin, y + px * sin + py * cos)]
