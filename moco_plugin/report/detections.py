"""Scenes with what is in them beside what detectors have found, from COCO files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.report.page import Html
from moco_plugin.report.pictures import grid, panel, picture

MIN_SCORE = 0.3
MIN_IOU = 0.5  # overlap from which an object counts as found
FALLBACK = 3  # detections shown where none reaches MIN_SCORE
SIDE = 560  # pixels, of a scene as shown
COLOURS = (
    "#4e9bff", "#ff9d3c", "#4fd07f", "#ff6b6b", "#b58cff",
    "#f2d13c", "#ff7ac6", "#3fd6d0", "#c8e25a", "#ffffff",
)  # fmt: skip


@dataclass
class Scene:
    """A test image, the objects in it (COCO annotations) and the names of the classes by id."""

    image: Image.Image
    image_id: int
    objects: list[dict[str, Any]]
    classes: dict[int, str]


def read_scenes(root: Path, count: int) -> list[Scene]:
    """Reads the first test scenes of a folder that ``tools/make_scenes.py`` has made.

    Raises:
        UserError: A file is missing or broken.
    """
    path = root / "annotations" / "instances_test.json"
    coco = read_json(path)
    scenes = []
    try:
        classes = {category["id"]: category["name"] for category in coco["categories"]}
        for entry in sorted(coco["images"], key=lambda entry: entry["id"])[:count]:
            objects = [a for a in coco["annotations"] if a["image_id"] == entry["id"]]
            file = root / "JPEGImages" / entry["file_name"]
            with Image.open(file) as image:
                scenes.append(Scene(image.convert("RGB"), entry["id"], objects, classes))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO file of instances: {error} is missing") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read as an image; compose the scenes anew") from error
    return scenes


def detections_figure(scenes: Sequence[Scene], detectors: Mapping[str, Sequence[dict[str, Any]]]) -> Html:
    """Returns one row a scene: the objects in it, then what each detector has found.

    Args:
        scenes: What to show.
        detectors: Name and COCO results (image_id, category_id, bbox, score, segmentation if any) of each.
    """
    panels = []
    for number, scene in enumerate(scenes, start=1):
        alt = f"Scene {number} with its true boxes and masks"
        truth = picture(_draw(scene, scene.objects), alt, "JPEG")
        panels.append(panel("Ground truth", truth, _plural(len(scene.objects), "object")))
        for name, results in detectors.items():
            shown, note = _select(scene, results)
            found = picture(_draw(scene, shown), f"Scene {number} with the detections of {name}", "JPEG")
            panels.append(panel(name, found, note))
    return grid(panels, "medium")


def _select(scene: Scene, results: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Returns the detections to show in a scene, best first, and a note of how many are right."""
    here = [result for result in results if result["image_id"] == scene.image_id]
    best = sorted(here, key=lambda result: -result["score"])
    shown = [result for result in best if result["score"] >= MIN_SCORE]
    if not shown:
        note = f"none of score {MIN_SCORE} or more"
        return best[:FALLBACK], f"{note}; the best {len(best[:FALLBACK])} are shown" if best else note
    missing = list(scene.objects)
    for result in shown:
        same = [obj for obj in missing if obj["category_id"] == result["category_id"]]
        match = max(same, key=lambda obj: iou(obj["bbox"], result["bbox"]), default=None)
        if match is not None and iou(match["bbox"], result["bbox"]) >= MIN_IOU:
            missing.remove(match)
    right = len(scene.objects) - len(missing)
    note = f"{right} of {_plural(len(scene.objects), 'object')} found"
    wrong = len(shown) - right
    return shown, f"{note}, {_plural(wrong, 'wrong detection')}" if wrong else note


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the overlap of two boxes (left, top, width, height): intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    return intersection / (a[2] * a[3] + b[2] * b[3] - intersection) if intersection else 0.0


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decodes COCO's polygons, run lengths or compressed run lengths to a bool mask (H x W).

    Raises:
        UserError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "masks need pycocotools; install it with pip install 'moco-plugin[detectron2]'"
        ) from error
    if isinstance(segmentation, list):
        segmentation = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask.frPyObjects(segmentation, height, width)
    decoded: np.ndarray = mask.decode(segmentation).astype(bool)
    return decoded


def _draw(scene: Scene, objects: Sequence[dict[str, Any]]) -> Image.Image:
    """Draws boxes, class names, scores and tinted masks over an enlarged scene, the best on top."""
    width, height = scene.image.size
    scale = SIDE / max(width, height)
    size = (round(width * scale), round(height * scale))
    picture = scene.image.resize(size, Image.Resampling.LANCZOS)
    numbers = {category: i for i, category in enumerate(sorted(scene.classes))}
    objects = sorted(objects, key=lambda obj: obj.get("score", 1.0))
    for obj in objects:
        if "segmentation" in obj:
            mask = Image.fromarray(decode_mask(obj["segmentation"], height, width).astype(np.uint8) * 255)
            smooth = mask.resize(size, Image.Resampling.BICUBIC).point(lambda v: 115 if v >= 128 else 0)
            colour = COLOURS[numbers[obj["category_id"]] % len(COLOURS)]
            picture.paste(Image.new("RGB", size, colour), mask=smooth)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=23)
    for obj in objects:
        colour = COLOURS[numbers[obj["category_id"]] % len(COLOURS)]
        left, top, box_width, box_height = (scale * value for value in obj["bbox"])
        draw.rectangle((left, top, left + box_width, top + box_height), outline=colour, width=3)
    for obj in objects:  # after all boxes, so that none crosses a name
        colour = COLOURS[numbers[obj["category_id"]] % len(COLOURS)]
        left, top = (scale * value for value in obj["bbox"][:2])
        label = scene.classes[obj["category_id"]] + (f" {obj['score']:.2f}" if "score" in obj else "")
        label_width, label_height = draw.textlength(label, font) + 10, 29
        x = max(0, min(left, size[0] - label_width))
        y = top - label_height if top >= label_height else top
        draw.rectangle((x, y, x + label_width, y + label_height), fill=colour)
        draw.text((x + 5, y + label_height / 2), label, fill="#10141c", font=font, anchor="lm")
    return picture
