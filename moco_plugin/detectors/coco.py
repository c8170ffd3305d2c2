"""Reader of COCO files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from moco_plugin.detectors.records import Annotations, Category, Faults, Object, Record, Runs, few
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
        UserError: It is no COCO file, or has two images or classes of one id, or two classes of one name.
    """
    content = read_json_parts(path)
    if not isinstance(content, dict) or not all(part in content for part in PARTS):
        raise UserError(f"{path} is not a COCO file; expected lists of {', '.join(PARTS)}")
    rows = decode(content["images"], list[_Image], f"the images of {path}")
    kinds = decode(content["categories"], list[_Category], f"the categories of {path}")
    raw = decode(content["annotations"], list[msgspec.Raw], f"the annotations of {path}")
    categories = [Category(str(row.name).strip(), row.id, row.keypoints or [], row.skeleton or []) for row in kinds]
    for what, values in (
        ("images of the id", [str(row.id) for row in rows]),
        ("categories of the id", [row.key for row in categories]),
    ):
        if twice := [value for value, count in Counter[int | str](values).items() if count > 1]:
            raise UserError(f"{path} has several {what} {few(twice)}; expected one each, so correct the file")
    root = path.parent.parent if path.parent.name.lower() in ("annotations", "annotation") else path.parent
    # instances_train2017 is of the folder train2017, and CVAT's instances_Train of images/Train
    part = path.stem.rpartition("_")[2]
    folder = next((folder for folder in (root / part, root / "images" / part) if part and folder.is_dir()), None)
    records = {str(row.id): Record(row.file_name, [], row.width, row.height, images or folder) for row in rows}
    names, faults = {row.key: row.name for row in categories}, Faults()
    by_attributes = False
    objects: list[Object] = []
    for number, written in enumerate(raw, start=1):
        where = f"annotation {number} of {path.name}"
        row = decode_or_none(written, _Object)
        if row is None:
            faults.add("objects with values that are not numbers where numbers are expected", where)
        elif (record := records.get(str(row.image_id))) is None:
            faults.add("objects of images that the file does not list", where)
        elif row.category_id not in names:
            faults.add("objects of categories that the file does not list", where)
        else:
            objects.append(item := _object(row, names[row.category_id], where))
            record.objects.append(item)
            by_attributes |= item.crowd and b"occluded" in bytes(row.attributes)
    notes = _train_crowds(objects, by_attributes)
    roots = [images] if images is not None else [path.parent, root]
    data = Annotations(path, "a COCO file", categories, {"": list(records.values())}, roots, notes, faults)
    data.numbers = [row.id for row in rows]
    return data


def _object(row: _Object, category: str, where: str) -> Object:
    mask = row.segmentation
    polygons: list[Any] = mask if isinstance(mask, list) else []
    if not all(isinstance(part, list) for part in polygons):
        polygons = [[part for part in polygons if not isinstance(part, list)]]  # VIA writes one list of numbers
    runs = Runs(mask.counts, size=mask.size) if isinstance(mask, _Runs) else None
    return Object(category, row.bbox, polygons, runs, row.keypoints or [], bool(row.iscrowd), row.area, where)


def _train_crowds(objects: Sequence[Object], by_attributes: bool) -> list[str]:
    """Turn crowds into objects where a tool marks every run-length mask as one, as CVAT does with brush masks."""
    masks, crowds = [item for item in objects if item.runs], [item for item in objects if item.crowd]
    if not crowds:
        return []
    all_are = len(crowds) == len(masks) and all(item.runs for item in crowds)
    if all_are and (by_attributes or len(crowds) > CROWD_SHARE * len(objects)):
        for item in crowds:
            item.crowd = False
        return [
            f"all {len(crowds)} run-length masks are marked as crowds, as CVAT marks brush masks: trained as objects"
        ]
    return [f"{len(crowds)} of {len(objects)} objects are crowds (iscrowd): not trained on"]
