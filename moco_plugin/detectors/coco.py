"""Reader of COCO files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from moco_plugin.detectors.records import Annotations, Category, Object, Record, Runs, few
from moco_plugin.errors import UserError
from moco_plugin.transfer.components.datasets import PARTS
from moco_plugin.typed import decode, decode_or_none, read_json_parts

CROWD_SHARE = 0.05  # of the objects; COCO's own have 0.01


class _Image(msgspec.Struct):
    id: int | str
    file_name: str
    width: float | None = None
    height: float | None = None


class _Category(msgspec.Struct):
    id: int
    name: str | int | float
    keypoints: list[str] | None = None
    skeleton: list[list[int]] | None = None


class _Runs(msgspec.Struct):
    counts: list[int] | str
    size: tuple[int, int]


class _Object(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: list[float] | None = None
    segmentation: list[list[float] | float] | _Runs | None = None
    keypoints: list[float] | None = None
    iscrowd: bool | float | None = None
    area: float | None = None
    attributes: msgspec.Raw = msgspec.Raw(b"")


def read_coco(path: Path, images: Path | None) -> Annotations:
    """Read a COCO file.

    Args:
        path: The file.
        images: Folder of its images; None for the file's own folder, or the one above ``annotations``.

    Raises:
        UserError: It is not a COCO file, or two images or two classes have the same id.
    """
    content = read_json_parts(path)
    if not isinstance(content, dict) or not all(part in content for part in PARTS):
        raise UserError(f"{path} is not a COCO file; expected lists of {', '.join(PARTS)}")
    rows = decode(content["images"], list[_Image], f"the images of {path}")
    kinds = decode(content["categories"], list[_Category], f"the categories of {path}")
    raw = decode(content["annotations"], list[msgspec.Raw], f"the annotations of {path}")
    for what, ids in (("images", [str(row.id) for row in rows]), ("categories", [str(row.id) for row in kinds])):
        if twice := [key for key, count in Counter(ids).items() if count > 1]:
            raise UserError(f"{path} has several {what} of the id {few(twice)}; expected one each, so correct the file")
    root = path.parent.parent if path.parent.name.lower() in ("annotations", "annotation") else path.parent
    # instances_train2017 describes the folder train2017, and CVAT's instances_Train the folder images/Train
    part = path.stem.rpartition("_")[2]
    folder = next((folder for folder in (root / part, root / "images" / part) if part and folder.is_dir()), None)
    records = {str(row.id): Record(row.file_name, [], row.width, row.height, images or folder) for row in rows}
    data = Annotations(path, "a COCO file", [images] if images else [path.parent, root])
    data.splits, data.image_ids = {"": list(records.values())}, [row.id for row in rows]
    data.categories = [
        Category(str(row.name).strip(), row.id, row.keypoints or [], row.skeleton or []) for row in kinds
    ]
    names, by_cvat = {row.key: row.name for row in data.categories}, False
    for index, written in enumerate(raw, start=1):
        where = f"annotation {index} of {path.name}"
        row = decode_or_none(written, _Object)
        if row is None:
            data.leave_out("objects with values that are not numbers where numbers are expected", where)
        elif (record := records.get(str(row.image_id))) is None:
            data.leave_out("objects of images that the file does not list", where)
        elif row.category_id not in names:
            data.leave_out("objects of categories that the file does not list", where)
        else:
            data.add(record, _object(row, names[row.category_id]), where)
            by_cvat |= bool(row.iscrowd) and b"occluded" in bytes(row.attributes)
    data.notes += _train_crowds([item for record in data.records for item in record.objects], by_cvat)
    return data


def _object(row: _Object, category: str) -> Object:
    mask = row.segmentation
    polygons: list[Any] = mask if isinstance(mask, list) else []
    if not all(isinstance(part, list) for part in polygons):
        polygons = [[part for part in polygons if not isinstance(part, list)]]  # VIA writes one list of numbers
    runs = Runs(mask.counts, size=mask.size) if isinstance(mask, _Runs) else None
    return Object(category, row.bbox, polygons, runs, row.keypoints or [], bool(row.iscrowd), row.area)


def _train_crowds(objects: Sequence[Object], by_cvat: bool) -> list[str]:
    """Turn crowds into objects if all run-length masks, and nothing else, are marked as crowds, as CVAT's brush masks."""
    crowds = [item for item in objects if item.crowd]
    if not crowds:
        return []
    if all((item.runs is not None) == item.crowd for item in objects) and (
        by_cvat or len(crowds) > CROWD_SHARE * len(objects)
    ):
        for item in crowds:
            item.crowd = False
        return [
            f"all {len(crowds)} run-length masks are marked as crowds, as CVAT marks brush masks: trained as objects"
        ]
    return [f"{len(crowds)} of {len(objects)} objects are crowds (iscrowd): not trained on"]
