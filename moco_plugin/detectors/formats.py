"""Detection data recognised by what is in a file or folder, and read by the reader of its form."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from moco_plugin.detectors.coco import read_coco
from moco_plugin.detectors.find import files_below
from moco_plugin.detectors.json_forms import read_labelme, read_via
from moco_plugin.detectors.records import Annotations, few, split_of
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
ADVICE = {
    ".zip": "unpack it",
    ".tfrecord": "export the set as COCO",
    ".parquet": "export the set as COCO",
    ".ndjson": "export it as COCO",
}


OTHERS = {
    "createml": "CreateML's JSON, which is not read; export the set as Pascal VOC, YOLO or COCO",
    "label studio": "Label Studio's own JSON, which is not read; export the project as COCO, YOLO or Pascal VOC",
}


def read_detection_data(source: Path, images: Path | None = None) -> Annotations:
    """Read detection data of any form; docs/detection.md lists them by tool.

    Args:
        source: A file or a folder.
        images: Folder of the images; None for where the form has them.

    Raises:
        UserError: It is of no known form, or a file in it is invalid.
    """
    if source.is_dir():
        return _read_folder(source, images)
    suffix = source.suffix.lower()
    if suffix == ".json":
        return _read_json(source, images)
    if suffix in (".yaml", ".yml", ".data", ".txt"):
        return read_yolo(source, images)
    if suffix == ".csv":
        return read_table(source, images)
    if suffix == ".xml":
        is_cvat = root_tag(source) == "annotations"
        return read_cvat(source, images) if is_cvat else read_voc(source.parent, [source], images)
    raise UserError(f"{source} is not detection data; {ADVICE.get(suffix, EXPECTED)}")


def _json_form(path: Path) -> tuple[str, dict[str, msgspec.Raw] | list[msgspec.Raw]]:
    """Return the form of a JSON file ("" for none), and its parts."""
    parts = read_json_parts(path)
    if isinstance(parts, dict):
        if all(part in parts for part in PARTS):
            return "coco", parts
        if "shapes" in parts:
            return "labelme", parts
        first = _keys(next(iter(parts.values()), msgspec.Raw(b"null")))
        return "via" if "_via_img_metadata" in parts or {"filename", "regions"} <= first else "", parts
    first = _keys(parts[0] if parts else msgspec.Raw(b"null"))
    if {"image", "annotations"} <= first:
        return "createml", parts
    return "label studio" if {"id", "data"} <= first or {"id", "image", "label"} <= first else "", parts


def _keys(part: msgspec.Raw) -> set[str]:
    return set(decode_or_none(part, dict[str, msgspec.Raw]) or ())


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
        if (data := read_voc(root, xml, images)).records():
            return data
    forms: dict[str, list[Path]] = {}
    for path in files_below(root, (".json",)):
        form, _ = _json_form(path)
        forms.setdefault(form, []).append(path)
    if coco := forms.get("coco"):
        instances = [path for path in coco if path.name.startswith("instances")]
        return _join(root, [read_coco(path, images) for path in instances or coco])
    if "labelme" in forms:
        return read_labelme(root, forms["labelme"], images)
    for form in ("via", *OTHERS):
        if form in forms:
            return _join(root, [_read_json(path, images) for path in forms[form]])
    if tables := [path for path in files_below(root, (".csv",)) if is_table(path)]:
        return _join(root, [read_table(path, images) for path in tables])
    if files_below(root, (".txt",)):
        return read_yolo(root, images)
    raise UserError(f"{root} is not detection data; {EXPECTED}")


def _join(root: Path, parts: Sequence[Annotations]) -> Annotations:
    """Return the data of a folder's files: of one, or of one for each split, by its name or its folder's.

    Raises:
        UserError: They are several, and not one for each split.
    """
    splits = {split_of(part.source.stem) or split_of(part.source.parent.name): part for part in parts}
    if len(parts) == 1:
        return parts[0]
    if len(splits) < len(parts) or "train" not in splits or "" in splits:
        files = [part.source.relative_to(root) for part in parts]
        raise UserError(f"{root} holds several files of annotations, {few(files)}; give one of them as --train-json")
    whole = splits.pop("train")
    whole.source, whole.splits = root, {"train": whole.splits[""]}
    for split, part in splits.items():
        whole.splits[split] = part.splits[""]
        names = {row.name for row in whole.categories}
        for row in part.categories:
            if row.name not in names:
                row.key = max((other.key for other in whole.categories), default=0) + 1
                whole.categories.append(row)
        whole.roots, whole.notes = [*whole.roots, *part.roots], [*whole.notes, *part.notes]
        whole.faults.take(part.faults)
    return whole
