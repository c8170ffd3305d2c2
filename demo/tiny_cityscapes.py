"""Scenes in the layout of Cityscapes: polygons, and the label images drawn from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from moco_plugin.demo.tiny_scenes import TinyScene, band_rows
from moco_plugin.transfer.voc_files import VOID

BANDS = ("sky", "building", "road")  # the ground of every scene, top to bottom
# what the evaluation ignores: Cityscapes' name and id of the recording car, and the id of anything else
EGO_VEHICLE, UNLABELED = ("ego vehicle", 1), 0


def write_cityscapes(
    root: Path, split: str, city: str, scenes: Sequence[TinyScene], categories: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``leftImg8bit/{split}/{city}`` and ``gtFine/{split}/{city}``.

    The last object of the first image is a group, which Cityscapes ignores in evaluation.

    Args:
        root: The folder ``cityscapes``.
        split: ``train`` or ``val``.
        city: First part of the file names.
        scenes: The images, twice as wide as high, with :data:`BANDS` as background.
        categories: Cityscapes' 19 classes with ``id``, ``trainId``, ``name``, ``color`` and ``isthing``.
    """
    images, labels = (root / kind / split / city for kind in ("leftImg8bit", "gtFine"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    things = [str(category["name"]) for category in categories if category["isthing"]]
    for number, scene in enumerate(scenes):
        name = f"{city}_{number:06d}_000019"
        Image.fromarray(scene.image).save(images / f"{name}_leftImg8bit.png")
        objects = _objects(scene, things, group=number == 0)
        height, width = scene.shape
        content = {"imgHeight": height, "imgWidth": width, "objects": objects}
        (labels / f"{name}_gtFine_polygons.json").write_text(json.dumps(content, indent=4) + "\n")
        for kind, picture in _draw(objects, scene.shape, categories).items():
            picture.save(labels / f"{name}_gtFine_{kind}.png")


def _objects(scene: TinyScene, things: Sequence[str], group: bool) -> list[dict[str, Any]]:
    """Return a scene's objects in Cityscapes' form, label and polygon, from back to front."""
    height, width = scene.shape
    objects = [
        {"label": name, "polygon": _rectangle(0, rows.start, width - 1, rows.stop - 1)}
        for name, rows in zip(BANDS, band_rows(height, len(BANDS)), strict=True)
    ]
    for obj in scene.objects:
        name = things[obj.label % len(things)] + ("group" if group and obj is scene.objects[-1] else "")
        outlines, _ = cv2.findContours(obj.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # one polygon is one object, through the outermost pixels
        objects.append({"label": name, "polygon": max(outlines, key=cv2.contourArea)[:, 0].tolist()})
    bonnet = _rectangle(width // 4, height - height // 16, 3 * width // 4, height - 1)
    return [*objects, {"label": EGO_VEHICLE[0], "polygon": bonnet}]


def _rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _draw(
    objects: Sequence[Mapping[str, Any]], shape: tuple[int, int], categories: Sequence[Mapping[str, Any]]
) -> dict[str, Image.Image]:
    """Draw polygons one over the other, as Cityscapes' own scripts do, in each of its encodings."""
    size = (shape[1], shape[0])
    ids = Image.new("L", size, UNLABELED)
    train_ids = Image.new("L", size, VOID)
    colours = Image.new("RGBA", size, (0, 0, 0, 255))
    instances = Image.new("I", size, UNLABELED)
    known = {category["name"]: category for category in categories}
    counts = dict.fromkeys(known, 0)
    for obj in objects:
        polygon = [tuple(point) for point in obj["polygon"]]
        name = obj["label"] if obj["label"] in known else obj["label"].removesuffix("group")
        category = known.get(name, {"id": EGO_VEHICLE[1], "trainId": VOID, "color": (0, 0, 0), "isthing": 0})
        number = category["id"]
        if category["isthing"] and name == obj["label"]:  # a group keeps the id of its class
            number = 1000 * category["id"] + counts[name]
            counts[name] += 1
        for picture, value in (
            (ids, category["id"]),
            (train_ids, category["trainId"]),
            (colours, (*category["color"], 255)),
            (instances, number),
        ):
            ImageDraw.Draw(picture).polygon(polygon, fill=value)
    return {
        "labelIds": ids,
        "labelTrainIds": train_ids,
        "color": colours,
        "instanceIds": Image.fromarray(np.asarray(instances).astype(np.uint16)),
    }
