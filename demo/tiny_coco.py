"""Scenes in the layouts of COCO 2017, with keypoints of people, and of LVIS v0.5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from moco_plugin.demo.scenes import CocoRows, SceneObject
from moco_plugin.demo.tiny_scenes import TinyScene

PERSON = 1  # COCO's category id
LICENSES = [{"id": 1, "name": "unknown", "url": ""}]
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

    Classes are assigned round-robin, except that the first look of objects is always a person. The last object of the
    first image is a crowd with run lengths.

    Args:
        root: The folder ``coco``.
        split: ``train2017`` or ``val2017``.
        scenes: The images.
        categories: Id and name of COCO's classes.
        num_looks: Number of looks of objects.
    """
    (root / split).mkdir(parents=True)
    ids = list(categories)
    rows, people = CocoRows(), CocoRows()
    for index, scene in enumerate(scenes):
        image_id = _add_image(rows, split, scene)
        Image.fromarray(scene.image).save(root / split / rows.images[-1]["file_name"], quality=95)
        for obj in scene.objects:
            crowd = index == 0 and obj is scene.objects[-1]
            category = PERSON if obj.label % num_looks == 0 else ids[obj.label % len(ids)]
            row = rows.add_object(image_id, category, obj, **({"iscrowd": 1} if crowd else polygons(obj)))
            if category == PERSON:
                points = [0] * 3 * len(KEYPOINTS) if crowd else keypoints(obj)
                visible = sum(value > 0 for value in points[2::3])
                people.annotations.append({**row, "keypoints": points, "num_keypoints": visible})
    people.images = rows.images
    classes = [{"supercategory": "object", "id": key, "name": name} for key, name in categories.items()]
    person = {**classes[ids.index(PERSON)], "keypoints": list(KEYPOINTS), "skeleton": SKELETON}
    for kind, part, known in (("instances", rows, classes), ("person_keypoints", people, [person])):
        about = {"description": "composed scenes in the format of COCO 2017", "year": 2017}
        part.write(root / "annotations" / f"{kind}_{split}.json", known, info=about, licenses=LICENSES)


def write_lvis(path: Path, split: str, scenes: Sequence[TinyScene], categories: Sequence[Mapping[str, Any]]) -> None:
    """Write LVIS's annotations of a COCO split: every object has its own class among the 1230.

    Args:
        path: ``lvis/lvis_v0.5_train.json`` or ``lvis/lvis_v0.5_val.json``.
        split: COCO's split, ``train2017`` or ``val2017``.
        scenes: The images, as they were given to :func:`write_coco`.
        categories: LVIS's classes with ``id``, ``name``, ``synset``, ``synonyms``, ``def`` and ``frequency``.
    """
    ids = [category["id"] for category in categories]
    rows, used = CocoRows(), {key: list[int]() for key in ids}
    for scene in scenes:
        here = [ids[obj.label % len(ids)] for obj in scene.objects]
        # the next class is known not to be in the image; of its last one not all may be marked
        absent = [ids[(scene.objects[-1].label + 1) % len(ids)]]
        more = {"neg_category_ids": absent, "not_exhaustive_category_ids": here[-1:]}
        image_id = _add_image(rows, split, scene, **more)
        for category, obj in zip(here, scene.objects, strict=True):
            rows.add_object(image_id, category, obj, **polygons(obj))
            used[category].append(image_id)
    classes = [
        {**category, "image_count": len(set(used[category["id"]])), "instance_count": len(used[category["id"]])}
        for category in categories
    ]
    about = {"description": "composed scenes in the format of LVIS v0.5", "version": "0.5"}
    rows.write(path, classes, info=about, licenses=LICENSES)


def _add_image(rows: CocoRows, split: str, scene: TinyScene, **more: Any) -> int:
    name = f"{len(rows.images) + 1:012d}.jpg"
    url = f"http://images.cocodataset.org/{split}/{name}"  # LVIS derives the folder from it
    about = {"license": 1, "coco_url": url, "date_captured": "2013-11-14 16:28:13", "flickr_url": ""}
    return int(rows.add_image(name, scene.image, **about, **more))


def polygons(obj: SceneObject) -> dict[str, Any]:
    """Return the segmentation and the area of an object's mask without its holes; see ``mask_polygons``."""
    parts = mask_polygons(obj.mask)
    flat = [part.astype(float).ravel().tolist() for part in parts]
    return {"segmentation": flat, "area": sum(map(cv2.contourArea, parts))}


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the outlines of a mask along the edges of its pixels; holes are filled.

    COCO's rasterisation of the polygons is the mask without its holes.

    Args:
        mask: bool, H x W.

    Returns:
        One polygon per connected part, the largest first: corners (int32, M x 2) as x and y from 0 to W and H.
    """
    count, parts = cv2.connectedComponents(np.kron(mask, np.ones((2, 2), np.uint8)), connectivity=4)
    found = []
    for part in range(1, count):
        alone = (parts == part).astype(np.uint8)  # each pixel is 2 x 2: its edges are between their centres
        outline = (cv2.findContours(alone, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0][:, 0] + 1) // 2
        found.append(outline[(outline != np.roll(outline, 1, axis=0)).any(axis=1)])
    return sorted(found, key=cv2.contourArea, reverse=True)


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
