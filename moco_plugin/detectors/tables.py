"""Reader of CSV files: corners or boxes by the names of columns, run lengths, and VIA's annotations."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

from moco_plugin.detectors.json_forms import ONE_CLASS, via_annotations
from moco_plugin.detectors.records import Annotations, Object, Record, Runs
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
CORNERS = ("left", "top", "right", "bottom")
SHAPES = (CORNERS, ("runs",), ("box",), ("x", "y", "width", "height"))  # columns of an object, preferred ones first
WITHOUT_HEADER = ["path", "x1", "y1", "x2", "y2", "class"]  # keras-retinanet's
VIA = ("filename", "region_shape_attributes", "region_attributes")
LONGEST_FIELD = 1 << 24


def _read(path: Path) -> tuple[list[str], list[list[str]], dict[str, int]]:
    """Return the header, the rows, and the indices of the known columns."""
    lines = read_text(path, what="a CSV file").splitlines() or [""]
    csv.field_size_limit(LONGEST_FIELD)
    try:
        rows = list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count)))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}); check the file") from error
    if len(rows[0]) == len(WITHOUT_HEADER) and "image" not in _columns(rows[0]):
        rows.insert(0, WITHOUT_HEADER)
    return rows[0], rows[1:], _columns(rows[0])


def _columns(header: Sequence[str]) -> dict[str, int]:
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): index for index, name in reversed([*enumerate(header)])}
    found = {name: [plain[known] for known in words.split() if known in plain] for name, words in COLUMNS.items()}
    return {name: indices[0] for name, indices in found.items() if indices}


def _shape(columns: dict[str, int]) -> tuple[str, ...]:
    return next((names for names in SHAPES if columns.keys() >= {"image", *names}), ())


def is_table(path: Path) -> bool:
    """Return whether a CSV file has columns of images and boxes."""
    header, _, columns = _read(path)
    return set(VIA) <= {*header} or bool(_shape(columns))


def read_table(path: Path, images: Path | None) -> Annotations:
    """Read a CSV file of objects.

    Raises:
        UserError: It has no columns of images and boxes.
    """
    header, rows, columns = _read(path)
    if set(VIA) <= {*header}:
        values = [[row[header.index(name)] for name in VIA] for row in rows if len(row) == len(header)]
        region = '{"shape_attributes": %s, "region_attributes": %s}'
        parts = [
            (name, [(region % (shape, about)).encode()] * (shape not in ("", "{}"))) for name, shape, about in values
        ]
        return via_annotations(path, parts, images)
    if not (shape := _shape(columns)):
        raise UserError(
            f"{path} has the columns {', '.join(header[:8])}; expected filename (or image_id), class, and xmin, ymin, xmax, "
            "ymax (or x, y, width, height; bbox; EncodedPixels)"
        )
    data = Annotations(path, "a CSV file", [images or path.parent])
    if "class" not in columns:
        data.notes.append(f"{path.name} has no column of classes: all objects are of one, {ONE_CLASS!r}")
    records: dict[str, Record] = {}
    for line, row in enumerate(rows, start=2):
        where = f"line {line} of {path.name}"
        if row and len(row) != len(header):
            data.leave_out("lines of another number of columns", where)
        elif row:
            name = row[columns["image"]].strip()
            record = records.setdefault(name, Record(name))
            kind = row[columns["class"]].strip() if "class" in columns else ONE_CLASS
            cells = [row[columns[part]].strip() for part in shape]
            item = _runs(cells[0], kind) if shape == ("runs",) else _box(cells, shape, kind)
            if item is not None:
                data.add(record, item, where)
    data.splits[""] = list(records.values())
    numbers = [number for record in data.records for item in record.objects for number in item.box or ()]
    for record in data.records:
        record.relative = bool(numbers) and 0 <= min(numbers) <= max(numbers) <= 1
    return data


def _runs(text: str, kind: str) -> Object | str | None:
    """Return the object of pairs of start and length; None for an image without one, else why it is left out."""
    words = text.split()
    if not words or text in ("-1", "nan"):
        return None
    if len(words) % 2 or not all(word.isdecimal() and len(word) < 10 for word in words):
        return "lines with invalid run lengths"
    counts, end = list[int](), 1
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        counts += [start - end, length]  # from 1, by columns
        end = start + length
    return Object(kind, runs=Runs(counts, open=True))


def _box(values: list[str], shape: tuple[str, ...], kind: str) -> Object | str | None:
    """Return the object of a box; None for an image without one, else why it is left out."""
    words = values if len(shape) == 4 else re.findall(r"[^\s,\[\]()]+", values[0])
    if all(word.lower() in ("", "nan") for word in words):
        return None
    try:
        numbers = [*map(float, words)]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)) or not kind:
        return "lines without a class and four numbers"
    if shape == CORNERS:
        numbers[2:] = numbers[2] - numbers[0], numbers[3] - numbers[1]
    return Object(kind, numbers)
