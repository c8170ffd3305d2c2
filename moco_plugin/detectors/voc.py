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


def _known(value: float) -> float | None:
    return None if math.isnan(value) or value <= 0 else value


# ------------------------------------------------------------------------------------------------------ Pascal VOC
def read_voc(root: Path, files: Sequence[Path], images: Path | None) -> Annotations:
    """Read the XML files of a folder, one for each image.

    Splits are those of ``ImageSets/Main``, or folders called ``train``, ``valid`` and ``test``.

    Raises:
        UserError: A file is not XML.
    """
    root = root.parent if root.name.lower() == "annotations" else root
    faults, notes = Faults(), list[str]()
    records: dict[Path, Record] = {}
    for path in files:
        if (record := _voc_record(path, faults)) is not None:
            records[path] = record
    roots = (
        [images]
        if images is not None
        else [folder for name in ("JPEGImages", "images") if (folder := root / name).is_dir()]
    )
    splits = _image_sets(root, records, notes)
    if not splits:
        for path, split in by_folder(root, list(records)).items():
            splits.setdefault(split, []).append(records[path])
    categories = named(list(records.values()))
    return Annotations(root, "Pascal VOC's XML", categories, splits, [*roots, root], notes, faults)


def _voc_record(path: Path, faults: Faults) -> Record | None:
    elements = read_elements(path)
    if next(elements).tag != "annotation":
        return None
    record = Record("", folder=path.parent)
    named_image = ""
    for element in elements:
        if element.tag == "filename":
            named_image = (element.text or "").strip()
        elif element.tag == "size":
            record.width, record.height = (_known(_number(element.findtext(key))) for key in ("width", "height"))
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
    given = re.split(r"[\\/]", named_image)[-1]
    same = given.lower() == path.stem.lower() or given.rpartition(".")[0].lower() == path.stem.lower()
    record.name, record.others = (named_image, (path.stem,)) if same else (path.stem, (named_image,))
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
        names = [
            line.split()[0] if len(line.split()) == 2 else line.strip()
            for line in read_text(path).splitlines()
            if line.strip()
        ]
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
    faults, notes = Faults(), list[str]()
    labels: list[str] = []
    splits: dict[str, list[Record]] = {}
    for element in read_elements(path):
        if element.tag == "track":
            raise UserError(f'{path} has tracks of a video; export the task as "CVAT for images" or as COCO')
        labels += [(name.text or "").strip() for name in element.findall(".//labels/label/name")]
        if element.tag == "image":
            record = Record(element.get("name", ""))
            record.width, record.height = (_known(_number(element.get(key))) for key in ("width", "height"))
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
    used = named(splits.get("", []) or [record for records in splits.values() for record in records])
    names = list(dict.fromkeys([name for name in labels if name]))
    categories = numbered(names) if {row.name for row in used} <= {*names} else used
    roots = (
        [images]
        if images is not None
        else [*([path.parent / "images"] if (path.parent / "images").is_dir() else []), path.parent]
    )
    return Annotations(path, "CVAT's XML", categories, splits, roots, notes, faults)


def _cvat_object(shape: Element, where: str) -> Object | str:
    """Return an object; else why it is left out, or an empty text for what is no object."""
    name = shape.get("label", "").strip()
    if not name or shape.tag == "tag":
        return "" if shape.tag in ("tag", "attribute") else "shapes without a label"
    if shape.tag == "polygon":
        points = [_number(number) for number in re.split(r"[,;]", shape.get("points", ""))]
        return Object(name, polygons=[points], where=where)
    if shape.tag == "mask":
        frame = tuple(_integer(shape.get(key)) for key in ("left", "top", "width", "height"))
        counts = [_integer(number) for number in shape.get("rle", "").split(",")]
        return Object(name, runs=Runs(counts, by_rows=True, frame=frame), where=where)  # type: ignore[arg-type]
    turn = math.radians(_number(shape.get("rotation") or "0"))
    if shape.tag == "box":
        left, top, right, bottom = (_number(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        if not turn:
            return Object(name, [left, top, right - left, bottom - top], where=where)
        return Object(name, polygons=[_turned(corners, (left + right) / 2, (top + bottom) / 2, turn)], where=where)
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        return Object(name, polygons=[_turned(ellipse(x, y, rx, ry), x, y, turn)], where=where)
    return f"shapes of the kind {shape.tag!r}, which have no area"


def ellipse(x: float, y: float, rx: float, ry: float) -> list[tuple[float, float]]:
    """Return points of an ellipse."""
    angles = [2 * math.pi * number / ELLIPSE_POINTS for number in range(ELLIPSE_POINTS)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def _turned(points: Sequence[tuple[float, float]], x: float, y: float, angle: float) -> list[float]:
    """Return points turned around a centre, clockwise as images are seen, as x, y, x, y, ..."""
    cos, sin = math.cos(angle), math.sin(angle)
    turned = [(x + (px - x) * cos - (py - y) * sin, y + (px - x) * sin + (py - y) * cos) for px, py in points]
    return [number for point in turned for number in point]
