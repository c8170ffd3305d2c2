"""Boxes, masks and the notes below detection pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from moco_plugin.data.scenes import run_lengths
from moco_plugin.report.detections import Scene, decode_mask, detections_figure, iou


def test_iou_by_hand() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (20, 0, 10, 10)) == 0
    assert iou((3, 4, 5, 6), (3, 4, 5, 6)) == 1


def test_every_coding_of_a_mask() -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((12, 10), bool)
    mask[2:7, 3:9] = True
    compressed = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    for segmentation in (run_lengths(mask), text, [[3, 2, 9, 2, 9, 7, 3, 7]]):
        assert (decode_mask(segmentation, 12, 10) == mask).all()


def found(score: float, category: int = 1, x: float = 0) -> dict[str, object]:
    return {"image_id": 7, "category_id": category, "bbox": [x, 0, 10, 10], "score": score}


@pytest.mark.parametrize(
    ("detections", "note"),
    [
        ([], "none of score 0.3 or more<"),
        ([found(0.2), found(0.1)], "none of score 0.3 or more; the best 2 are shown<"),
        ([found(0.9)], "1 of 2 objects found<"),
        ([found(0.9), found(0.8)], "1 of 2 objects found, 1 wrong detection<"),  # an object counts once
        ([found(0.9, category=2)], "0 of 2 objects found, 1 wrong detection<"),
        ([found(0.9), found(0.6, x=20)], "2 of 2 objects found<"),
        ([{**found(0.9), "image_id": 8}], "none of score 0.3 or more<"),
    ],
)
def test_notes_count_what_is_right(detections: list[dict[str, object]], note: str) -> None:
    objects = [{"category_id": 1, "bbox": [x, 0, 10, 10]} for x in (0, 20)]
    scene = Scene(Image.new("RGB", (40, 20)), 7, objects, {1: "hat", 2: "shoe"})
    assert f"<span>{note}" in detections_figure([scene], {"MoCo": detections})
