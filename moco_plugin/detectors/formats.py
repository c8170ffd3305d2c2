"""Detection data read by the reader of its format, which is detected from the contents of the file or folder."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from moco_plugin.detectors.coco import read_coco
from moco_plugin.detectors.images import files_below
from moco_plugin.detectors.json_forms import read_labelme, read_via
from moco_plugin.detectors.records import Annotations, few, numbered, split_of
from moco_plugin.detectors.tables import is_table, read_table
from moco_plugin.detectors.voc import read_cvat, read_voc, root_tag
from moco_plugin.detectors.yolo import describes_yolo, read_yolo
from moco_plugin.errors import UserError
from moco_plugin.transfer.components.datasets import PARTS
from moco_plugin.typed import decode_or_none, read_json_parts

EXPECTED = (
    "expected a COCO file, a YOLO set (its YAML file, or images and label .txt files), Pascal VOC's or CVAT's XML, JSON of "
    "Labelme or VIA, or a CSV file with columns such as filename, class, xmin, ymin, xmax, ymax"
)
ADVICE = {".zip": "unpack it", **dict.fromkeys((".tfrecord", ".parquet", ".ndjson"), "export the set as COCO")}
OTHERS = {
    "createml": "CreateML's JSON, which is not supported; export the set as Pascal VOC, YOLO or COCO",
    "label studio": "Label Studio's own JSON, which is not supported; export the project as COCO, YOLO or Pascal VOC",
}


def read_detection_data(source: Path, images: Path | None = None) -> Annotations:
    """Read detection data of any format; docs/detection.md lists them by tool.

    Args:
        source: A file or a folder.
        images: Folder of the images; None for where the format has them.

    Raises:
        UserError: The format is unknown, or a file is invalid.
    """
    data = _read_folder(source, images) if source.is_dir() else _read_file(source, images)
    if not data.categories:
        data.categories = numbered(sorted({item.category for record in data.records for item in record.objects}))
    return data


def _read_file(path: Path, images: Path | None) -> Annotations:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _read_json(path, images)
    if suffix in (".yaml", ".yml", ".data", ".txt"):
        return read_yolo(path, images)
    if suffix == ".csv":
        return read_table(path, images)
    if suffix == ".xml":
        return read_cvat(path, images) if root_tag(path) == "annotations" else read_voc(path.parent, [path], images)
    raise UserError(f"{path} is not detection data; {ADVICE.get(suffix, EXPECTED)}")


def _json_form(path: Path) -> tuple[str, dict[str, msgspec.Raw] | list[msgspec.Raw]]:
    """Return the form of a JSON file ("" for none), and its parts."""
    parts = read_json_parts(path)
    first = next(iter(parts.values() if isinstance(parts, dict) else parts), msgspec.Raw(b"null"))
    keys = set(decode_or_none(first, dict[str, msgspec.Raw]) or ())
    if not isinstance(parts, dict):
        if {"image", "annotations"} <= keys:
            return "createml", parts
        return "label studio" if {"id", "data"} <= keys or {"id", "image", "label"} <= keys else "", parts
    if all(part in parts for part in PARTS):
        return "coco", parts
    if "shapes" in parts:
        return "labelme", parts
    return "via" if "_via_img_metadata" in parts or {"filename", "regions"} <= keys else "", parts


def _read_json(path: Path, images: Path | None) -> Annotations:
    form, parts = _json_form(path)
    if form == "coco":
        return read_coco(path, images)
    if form == "labelme":
        return read_labelme(path.parent, [path], images)
    if form == "via" and isinstance(parts, dict):
        return read_via(path, parts, images)
    if form in OTHERS:
        raise UserError(f"{path} is {OTHERS[form]}")
    raise UserError(f"{path} is not a COCO file, nor of another tool; expected lists of {', '.join(PARTS)}")


def _read_folder(root: Path, images: Path | None) -> Annotations:
    if describes_yolo(root) is not None:
        return read_yolo(root, images)
    if xml := files_below(root, (".xml",)):
        if len(xml) == 1 and root_tag(xml[0]) == "annotations":
            return read_cvat(xml[0], images)
        if (data := read_voc(root, xml, images)).records:
            return data
    forms: dict[str, list[Path]] = {}
    for path in files_below(root, (".json",)):
        forms.setdefault(_json_form(path)[0], []).append(path)
    if "labelme" in forms and "coco" not in forms:
        return read_labelme(root, forms["labelme"], images)
    for form in ("coco", "via", *OTHERS):
        if files := forms.get(form):
            instances = [path for path in files if form == "coco" and path.name.startswith("instances")]
            return _join(root, [_read_json(path, images) for path in instances or files])
    if tables := [path for path in files_below(root, (".csv",)) if is_table(path)]:
        return _join(root, [read_table(path, images) for path in tables])
    if files_below(root, (".txt",)):
        return read_yolo(root, images)
    raise UserError(f"{root} is not detection data; {EXPECTED}")


def _join(root: Path, parts: Sequence[Annotations]) -> Annotations:
    """Return the data of a folder's files: one file, or one for each split by its name or its folder's.

    Raises:
        UserError: There are several files, and not one for each split.
    """
    if len(parts) == 1:
        return parts[0]
    splits = {split_of(part.source.stem) or split_of(part.source.parent.name): part for part in parts}
    if len(splits) < len(parts) or "train" not in splits or "" in splits:
        files = [part.source.relative_to(root) for part in parts]
        raise UserError(f"{root} contains several files of annotations, {few(files)}; give one of them as --train-json")
    whole = Annotations(root, parts[0].form, [], splits={split: part.records for split, part in splits.items()})
    for part in (splits.pop("train"), *splits.values()):
        names = {row.name for row in whole.categories}
        first = max((row.key for row in whole.categories), default=0) + 1
        new = [row for row in part.categories if row.name not in names]
        for key, row in enumerate(new if names else (), start=first):
            row.key = key
        whole.categories += new
        whole.roots, whole.notes = [*whole.roots, *part.roots], [*whole.notes, *part.notes]
        for reason, places in part.faults.items():
            whole.faults.setdefault(reason, []).extend(places)
    return whole
