"""Reader of CSV files: corners or boxes by the names of columns, run lengths, and VIA's annotations."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

from moco_plugin.detectors.json_forms import ONE_CLASS, via_annotations
from moco_plugin.detectors.records import Annotations, Faults, Object, Record, Runs, named
from moco_plugin.errors import UserError
from moco_plugin.files import read_text

COLUMNS = {
    "image": "filename imageid image imagename file imagepath path imgname img imgid patientid",
    "class": "classname labelname class label category name classid",
    "left": "xmin x1 left",
    "top": "ymin y1 top",
    "right": "xmax x2 right",
    "bottom": "ymax y2 bottom",
    "x": "x",
    "y": "y",
    "width": "w width",
    "height": "h height",
    "box": "bbox box boundingbox",
    "runs": "encodedpixels rle segmentation",
}
CORNERS, BOX = ("left", "top", "right", "bottom"), ("x", "y", "width", "height")
WITHOUT_HEADER = ["path", "x1", "y1", "x2", "y2", "class"]  # keras-retinanet's
REGION = '{"shape_attributes": %s, "region_attributes": %s}'  # of VIA's JSON
LONGEST_FIELD = 1 << 24


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = read_text(path, what="a CSV file").splitlines()
    first = lines[0] if lines else ""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        rows = list(csv.reader(lines, delimiter=max(",;\t", key=first.count)))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}); check the file") from error
    if rows and len(rows[0]) == len(WITHOUT_HEADER) and not _column(rows[0], "image"):
        rows.insert(0, WITHOUT_HEADER)
    return (rows[0], rows[1:]) if rows else ([], [])


def _column(header: Sequence[str], name: str) -> str | None:
    """Return the name of a column as the file has it."""
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(header)}
    return next((plain[known] for known in COLUMNS[name].split() if known in plain), None)


def _columns(header: Sequence[str]) -> dict[str, int]:
    return {name: header.index(column) for name in COLUMNS if (column := _column(header, name)) is not None}


def is_table(path: Path) -> bool:
    """Return whether a CSV file has columns of images and boxes."""
    header, _ = _rows(path)
    at = _columns(header)
    boxes = any(set(names) <= at.keys() for names in (CORNERS, BOX, ("box",), ("runs",)))
    return "region_shape_attributes" in header or ("image" in at and boxes)


def read_table(path: Path, images: Path | None) -> Annotations:
    """Read a CSV file of objects.

    Raises:
        UserError: It has no columns of images and boxes.
    """
    header, rows = _rows(path)
    if "region_shape_attributes" in header:
        whole = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
        regions = [
            (row["filename"], (REGION % (row["region_shape_attributes"], row["region_attributes"])).encode())
            for row in whole
            if row["region_shape_attributes"] not in ("", "{}")
        ]
        return via_annotations(path, [row["filename"] for row in whole], regions, images)
    if not is_table(path):
        raise UserError(
            f"{path} has the columns {', '.join(header[:8])}; expected filename (or image_id), class, and xmin, ymin, xmax, "
            "ymax (or x, y, width, height; bbox; EncodedPixels)"
        )
    columns, faults, notes = _columns(header), Faults(), list[str]()
    if "class" not in columns:
        notes.append(f"{path.name} has no column of classes: all objects are of one, {ONE_CLASS!r}")
    records: dict[str, Record] = {}
    numbers: list[float] = []
    for number, row in enumerate(rows, start=2):
        where = f"line {number} of {path.name}"
        if row and len(row) != len(header):
            faults.add("lines of another number of columns", where)
        elif row:
            name = row[columns["image"]].strip()
            record = records.setdefault(name, Record(name))
            kind = row[columns["class"]].strip() if "class" in columns else ONE_CLASS
            item = _object(row, columns, kind, where)
            if isinstance(item, str):
                faults.add(item, where)
            elif item is not None:
                record.objects.append(item)
                numbers += item.box or ()
    found = list(records.values())
    for record in found:
        record.relative = bool(numbers) and 0 <= min(numbers) <= max(numbers) <= 1
    return Annotations(path, "a CSV file", named(found), {"": found}, [images or path.parent], notes, faults)


def _object(row: Sequence[str], at: dict[str, int], kind: str, where: str) -> Object | str | None:
    """Return the object of a line; None for an image without one, else why it is left out."""
    if "runs" in at and not {*CORNERS} <= at.keys():
        words = row[at["runs"]].split()
        if not words or row[at["runs"]].strip() in ("-1", "nan"):
            return None
        if len(words) % 2 or not all(word.isdecimal() and len(word) < 10 for word in words):
            return "lines with invalid run lengths"
        counts, end = list[int](), 1
        for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
            counts += [start - end, length]  # from 1, by columns
            end = start + length
        return Object(kind, runs=Runs(counts, open=True), where=where)
    if {*CORNERS} <= at.keys():
        words = [row[at[name]].strip() for name in CORNERS]
    elif "box" in at:
        words = re.findall(r"[^\s,\[\]()]+", row[at["box"]])
    else:
        words = [row[at[name]].strip() for name in BOX]
    if not words or all(word.lower() in ("", "nan") for word in words):
        return None
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)) or not kind:
        return "lines without a class and four numbers"
    if {*CORNERS} <= at.keys():
        numbers = [*numbers[:2], numbers[2] - numbers[0], numbers[3] - numbers[1]]
    return Object(kind, numbers, where=where)
