"""Invalid objects and COCO files, missing values, and numbers as text."""

import json
from pathlib import Path
from typing import Any

import pytest

from moco_plugin.errors import UserError
from tests.detectors.own_coco import Change, Content, Prepared


def first(**change: Any) -> Change:
    return lambda content: content["annotations"][0].update(change)


RLE = {"size": [48, 64]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (first(image_id=4), "objects of images that the file does not list"),
        (first(category_id=4), "objects of categories that the file does not list"),
        (first(bbox=[8, 8, -16, 20]), "objects with a box that is not four finite numbers"),
        (first(bbox=[8, 8, 16]), "objects with a box that is not"),
        (first(bbox=[8, 8, float("nan"), 20]), "objects with values that are not numbers"),
        (first(bbox=[8, 8, 1e308, 1e308]), "objects with a box that is not"),
        (first(bbox="8 8 16 20"), "objects with values that are not numbers"),
        (first(segmentation=[[1, 2, 3, 4]]), "objects with an invalid mask"),
        (first(segmentation=[[0, 0, 9e8, 0, 9e8, 9e8]]), "objects with an invalid mask"),
        (first(segmentation={**RLE, "counts": [10, 20]}), "objects with run lengths that do not fit"),
        (first(segmentation={**RLE, "counts": [-1, 64 * 48 + 1]}), "objects with run lengths that do not fit"),
        (first(segmentation={**RLE, "counts": "no runs"}), "objects with run lengths that do not fit"),
        (first(segmentation={**RLE, "counts": "oooooooo" * 9}), "objects with run lengths that do not fit"),
        (first(segmentation={"size": [40000, 40000], "counts": [1 << 40]}), "objects with run lengths that do not"),
        (first(segmentation={**RLE, "counts": [1 << 62]}), "objects with run lengths that do not fit"),
        (first(keypoints="10 10 2"), "objects with values that are not numbers"),
    ],
)
def test_one_odd_object_is_left_out_and_many_are_refused(prepared: Prepared, change: Change, reason: str) -> None:
    data = prepared(change)
    (note,) = [note for note in data.notes if note.startswith("left out: 1 ")]
    assert reason in note and data.images + data.test_images == 10

    def many(content: Content) -> None:
        change(content)
        content["annotations"] += [{**content["annotations"][0], "id": number} for number in range(1000, 1004)]
        content["annotations"][1]["bbox"] = [70, 70, 5, 5]

    with pytest.raises(
        UserError, match=rf"train.json: 5 {reason}.*; 1 boxes of less than a pixel.*; at most 10% may be"
    ):
        prepared(many)


@pytest.mark.parametrize(
    "change",
    [
        first(area=None),
        first(iscrowd=None),
        first(iscrowd="0"),
        first(segmentation=None),
        first(bbox=["8", "8", "16", "20"], area="320", category_id="3", image_id="100"),
        first(bbox=None),
        first(keypoints=None),
        lambda c: c["images"][0].update(width=None, height=None),
        lambda c: c["images"][0].update(width="64", height="48"),
        lambda c: c["categories"][0].update(keypoints=None, supercategory=None),
    ],
)
def test_null_is_absent_and_numbers_may_be_text(prepared: Prepared, change: Change) -> None:
    data = prepared(change)
    rows = [row for file in (data.train, data.test) for row in json.loads(file.read_text())["annotations"]]
    assert len(rows) == 11 and not any("left out" in note for note in data.notes) and data.masks
    assert sum(row["bbox"] == [8, 8, 16, 20] for row in rows) >= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append({**c["images"][0]}), "several images of the id 100; expected one each"),
        (lambda c: c["categories"].append({"id": 3, "name": "dog"}), "several categories of the id 3; expected"),
        (lambda c: c["categories"].append({"id": 4, "name": "cat"}), "several classes of the name cat; expected"),
        (lambda c: [i.update(width=10) for i in c["images"]], "bild ä 0.jpg has 64 x 48 pixels, not 10 x 48 as train"),
        (lambda c: c.update(images=c["images"][:1], annotations=c["annotations"][:1]), "lists 1 images"),
        (lambda c: c.update(annotations=[]), "has no object to train on"),
        (lambda c: [i.update(file_name="no.jpg") for i in c["images"][:6]], r"of which 6 are missing \(no.jpg, looked"),
        (lambda c: c.pop("categories"), "is not a COCO file"),
        (lambda c: c["images"][0].pop("file_name"), "the images of .*missing required field `file_name`"),
        (lambda c: c.update(annotations={"a": 1}), "the annotations of .*Expected `array`, got `object`"),
    ],
)
def test_invalid_data_are_refused(tmp_path: Path, prepared: Prepared, change: Change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(change)
    assert not (tmp_path / "data").exists()
