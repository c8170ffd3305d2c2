"""Scenes in the layouts of COCO 2017, with keypoints of people, and of LVIS v0.5."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moco_plugin.demo.polygons import mask_polygons, signed_area
from moco_plugin.demo.scenes import SceneObject, run_lengths
from moco_plugin.demo.tiny_scenes import TinyScene

PERSON = 1  # COCO's category id
# where COCO's 17 keypoints of a standing person are, as parts of the width and height of the box
KEYPOINTS = {
    "nose": (0.5, 0.08),
    "left_eye": (0.55, 0.06),
    "right_eye": (0.45, 0.06),
    "left_ear": (0.6, 0.08),
    "right_ear": (0.4, 0.08),
    "left_shoulder": (0.72, 0.2),
    "right_shoulder": (0.28, 0.2),
    "left_elbow": (0.82, 0.38),
    "right_elbow": (0.18, 0.38),
    "left_wrist": (0.88, 0.55),
    "right_wrist": (0.12, 0.55),
    "left_hip": (0.62, 0.55),
    "right_hip": (0.38, 0.55),
    "left_knee": (0.62, 0.76),
    "right_knee": (0.38, 0.76),
    "left_ankle": (0.62, 0.96),
    "right_ankle": (0.38, 0.96),
}
_EDGES = "16-14 14-12 17-15 15-13 12-13 6-12 7-13 6-7 6-8 7-9 8-10 9-11 2-3 1-2 1-3 2-4 3-5 4-6 5-7"
SKELETON = [[int(number) for number in edge.split("-")] for edge in _EDGES.split()]


def write_coco(
    root: Path, split: str, scenes: Sequence[TinyScene], categories: Mapping[int, str], num_looks: int
) -> None:
    """Write the images of a split, ``instances_{split}.json`` and ``person_keypoints_{split}.json``.

    Classes are assigned round-robin, but the first look of objects is always a person, so that there are enough
    of these. The last object of the first image is marked as a crowd, by its run lengths.

    Args:
        root: The folder ``coco``.
        split: ``train2017`` or ``val2017``.
        scenes: The images.
        categories: Id and name of COCO's classes.
        num_looks: Number of looks that objects have.
    """
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    ids = list(categories)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        images.append(_image(split, number, scene))
        Image.fromarray(scene.image).save(root / split / images[-1]["file_name"], quality=95)
        for obj in scene.objects:
            crowd = number == 0 and obj is scene.objects[-1]
            category = PERSON if obj.label % num_looks == 0 else ids[obj.label % len(ids)]
            annotation = _annotation(len(annotations) + 1, images[-1]["id"], category, obj)
            annotation["iscrowd"] = int(crowd)
            if crowd:
                annotation["segmentation"] = run_lengths(obj.mask)
            annotations.append(annotation)
            if category == PERSON:
                points = [0] * 3 * len(KEYPOINTS) if crowd else keypoints(obj)
                visible = sum(value > 0 for value in points[2::3])
                people.append({**annotation, "keypoints": points, "num_keypoints": visible})
    common = {
        "info": {"description": "composed scenes in the format of COCO 2017", "year": 2017},
        "licenses": [{"id": 1, "name": "unknown", "url": ""}],
        "images": images,
    }
    classes: list[dict[str, Any]] = [
        {"supercategory": "object", "id": number, "name": name} for number, name in categories.items()
    ]
    person = {**classes[ids.index(PERSON)], "keypoints": list(KEYPOINTS), "skeleton": SKELETON}
    for kind, listed, known in (("instances", annotations, classes), ("person_keypoints", people, [person])):
        _write(root / "annotations" / f"{kind}_{split}.json", {**common, "annotations": listed, "categories": known})


def write_lvis(path: Path, split: str, scenes: Sequence[TinyScene], categories: Sequence[Mapping[str, Any]]) -> None:
    """Write LVIS's annotations of a COCO split: every object has its own class among the 1230.

    Args:
        path: ``lvis/lvis_v0.5_train.json`` or ``lvis/lvis_v0.5_val.json``.
        split: COCO's split, ``train2017`` or ``val2017``.
        scenes: The images, as they were given to :func:`write_coco`.
        categories: LVIS's classes with ``id``, ``name``, ``synset``, ``synonyms``, ``def`` and ``frequency``.
    """
    ids = [category["id"] for category in categories]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: dict[int, list[int]] = {number: [] for number in ids}
    for number, scene in enumerate(scenes):
        image = _image(split, number, scene)
        here = [ids[obj.label % len(ids)] for obj in scene.objects]
        # the next class is known not to be in the image; of its last one not all may be marked
        image["neg_category_ids"] = [ids[(scene.objects[-1].label + 1) % len(ids)]]
        image["not_exhaustive_category_ids"] = [here[-1]]
        images.append(image)
        for category, obj in zip(here, scene.objects, strict=True):
            annotations.append(_annotation(len(annotations) + 1, image["id"], category, obj))
            used[category].append(image["id"])
    content = {
        "info": {"description": "composed scenes in the format of LVIS v0.5", "version": "0.5"},
        "licenses": [{"id": 1, "name": "unknown", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {**category, "image_count": len(set(used[category["id"]])), "instance_count": len(used[category["id"]])}
            for category in categories
        ],
    }
    path.parent.mkdir(exist_ok=True)
    _write(path, content)


def _image(split: str, number: int, scene: TinyScene) -> dict[str, Any]:
    height, width = scene.shape
    name = f"{number + 1:012d}.jpg"
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/{split}/{name}",  # LVIS derives the folder from it
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": "",
        "id": number + 1,
    }


def _annotation(number: int, image_id: int, category: int, obj: SceneObject) -> dict[str, Any]:
    left, top, right, bottom = obj.box
    polygons = mask_polygons(obj.mask)
    return {
        "segmentation": [polygon.astype(float).ravel().tolist() for polygon in polygons],
        "area": sum(map(signed_area, polygons)),
        "image_id": image_id,
        "bbox": [left, top, right - left, bottom - top],
        "category_id": category,
        "id": number,
    }


def keypoints(obj: SceneObject) -> list[int]:
    """Return the keypoints of a standing figure in an object's box.

    Returns:
        x, y and visibility of each of the 17 keypoints: 2 where the object is, 1 (hidden) elsewhere.
    """
    left, top, right, bottom = obj.box
    points = []
    for across, down in KEYPOINTS.values():
        x, y = int(left + across * (right - left)), int(top + down * (bottom - top))
        points += [x, y, 1 + int(obj.mask[y, x])]
    return points


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, default=_number) + "\n")


def _number(value: Any) -> int | float:
    return value.item() if isinstance(value, np.generic) else float(value)
