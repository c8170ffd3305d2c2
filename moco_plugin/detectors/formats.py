"""Readers of detection data: COCO files, VOC folders and YOLO folders, converted to COCO's form."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.safe_yaml import read_yaml_file
from moco_plugin.transfer.components.datasets import PARTS, is_coco

MAX_XML_BYTES = 10 << 20


def read_detection_data(source: Path, images: Path | None = None) -> dict[str, Any]:
    """Return the content of a COCO file: ``images`` with absolute ``file_name``, ``annotations``, ``categories``.

    Args:
        source: A COCO ``.json`` file, a folder with ``Annotations/*.xml`` (VOC), or one with label ``.txt`` files
            (YOLO) and the names of the classes in ``data.yaml`` or ``classes.txt``.
        images: Folder of the images of a COCO file; None for the file's own.

    Raises:
        UserError: It is none of them, or a file in it is invalid.
    """
    if source.suffix.lower() == ".json":
        return _read_coco(source, images or source.parent)
    if (source / "Annotations").is_dir():
        return _read_voc(source)
    if source.is_dir() and _files(source, (".txt",)):
        return _read_yolo(source)
    raise UserError(
        f"{source} is not detection data; expected a COCO .json file, a folder with Annotations/*.xml (VOC), or one of "
        "images and label .txt files (YOLO)"
    )


def _read_coco(path: Path, root: Path) -> dict[str, Any]:
    content = read_json(path)
    if not is_coco(content):
        raise UserError(f"{path} is not a COCO file; expected lists of {', '.join(PARTS)}")
    for image in content["images"]:
        if not isinstance(image.get("file_name"), str) or not isinstance(image.get("id"), (int, str)):
            raise UserError(f"{path} has an image without id or file_name; expected both")
        image["file_name"] = str((root / image["file_name"]).resolve())
    for category in content["categories"]:
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            raise UserError(f"{path} has a category without id or name; expected a number and a text")
    return {part: content[part] for part in PARTS}


def _read_voc(root: Path) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: dict[str, int] = {}
    for index, path in enumerate(sorted((root / "Annotations").glob("*.xml")), start=1):
        if path.stat().st_size > MAX_XML_BYTES:
            raise UserError(f"{path} has more than {MAX_XML_BYTES} bytes; expected the annotations of one image")
        try:
            tree = ElementTree.parse(path).getroot()
            name = (tree.findtext("filename") or f"{path.stem}.jpg").strip()
            boxes = []
            for item in tree.iter("object"):
                corners = [float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
                boxes.append(((item.findtext("name") or "").strip(), corners, item.findtext("difficult") == "1"))
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"{path} is not a VOC annotation file ({error}); correct or remove it") from error
        folder = next((root / part for part in ("JPEGImages", "images") if (root / part).is_dir()), root)
        images.append({"id": index, "file_name": str((folder / Path(name).name).resolve())})
        for label, (left, top, right, bottom), difficult in boxes:
            category = names.setdefault(label, len(names) + 1)
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]  # VOC counts pixels from 1, both ends in
            annotations.append(_annotation(len(annotations) + 1, index, category, box) | {"iscrowd": int(difficult)})
    categories = [{"id": index, "name": name} for name, index in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_yolo(root: Path) -> dict[str, Any]:
    from PIL import Image, ImageOps

    names = class_names(root)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, path in enumerate(_files(root, SUFFIXES), start=1):
        parts = path.relative_to(root).with_suffix(".txt").parts
        label = root.joinpath(*("labels" if part == "images" else part for part in parts))
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
        images.append({"id": index, "file_name": str(path.resolve()), "width": width, "height": height})
        for line in label.read_text(errors="replace").splitlines() if label.is_file() else ():
            try:
                kind, *values = (float(word) for word in line.split())
                category = int(kind)
                if len(values) < 4 or (len(values) > 4 and len(values) % 2) or not all(map(math.isfinite, values)):
                    raise ValueError(line)
            except ValueError as error:
                raise UserError(
                    f"{label} has the line {line[:60]!r}; expected a class and four numbers, or a polygon, from 0 to 1"
                ) from error
            if len(values) == 4:
                x, y, w, h = values
                box, polygons = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], []
            else:
                xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
                box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
                polygons = [[coordinate for point in zip(xs, ys, strict=True) for coordinate in point]]
            if names and category >= len(names):
                raise UserError(f"{label} has class {category}, and there are {len(names)} names; correct one of them")
            annotation = _annotation(len(annotations) + 1, index, category + 1, box)
            annotations.append(annotation | ({"segmentation": polygons} if polygons else {}))
    count = len(names) or max((annotation["category_id"] for annotation in annotations), default=0)
    categories = [{"id": index + 1, "name": names[index] if names else str(index)} for index in range(count)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files below a folder with these suffixes, sorted, without hidden ones."""
    return sorted(
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name[0] != "." and Path(name).suffix.lower() in suffixes
    )


def class_names(root: Path) -> list[str]:
    """Return the class names from a YAML file or ``classes.txt`` in a folder or its parent; else none."""
    for folder in (root, root.parent):
        for path in (*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*.yml"))):
            names = read_yaml_file(path, str(path)).get("names")
            if isinstance(names, dict):
                return [str(names[key]) for key in sorted(names)]
            if isinstance(names, list):
                return [str(name) for name in names]
        if (path := folder / "classes.txt").is_file():
            return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return []


def _annotation(key: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    return {
        "id": key,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": max(0.0, box[2] * box[3]),
        "iscrowd": 0,
    }
