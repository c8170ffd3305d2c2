"""Invalid COCO files end in one sentence."""

import copy
from pathlib import Path
from typing import Any

import pytest

from moco_plugin.errors import UserError
from tests.helpers.annotations import check

COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 90,
            "bbox": [0, 0, 30, 20],
            "iscrowd": 1,
            "segmentation": {"size": [20, 30], "counts": [0, 600]},
        },
    ],
}


def test_valid_file_passes(tmp_path: Path) -> None:
    check(COCO, tmp_path)
    check(COCO, tmp_path, ["cat", "dog"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bbox", [1, 2, 3], "Expected `array` of length 4, got 3 - at `$.annotations[0].bbox`"),
        ("bbox", [1, 2, "3", 4], "Expected `float`, got `str` - at `$.annotations[0].bbox[2]`"),
        ("bbox", [1, 2, float("nan"), 4], "bbox[2]"),
        ("bbox", [1, 2, -3, 4], "Expected `float` >= 0.0 - at `$.annotations[0].bbox[2]`"),
        ("bbox", None, "bbox"),
        ("segmentation", [[1, 2]], "Expected `array` of length >= 6 - at `$.annotations[0].segmentation[0]`"),
        ("segmentation", [[1, 2, 3, 4, 5, 6, 7]], "annotation 1 of 2 has an invalid polygon"),
        ("segmentation", [["a"] * 6], "segmentation[0][0]"),
        ("segmentation", "x", "segmentation"),
        ("segmentation", {"size": [2**40, 2**40], "counts": "x"}, "has a mask of size"),
        ("segmentation", {"size": [20, 30], "counts": [0, 10**12]}, "invalid run-length encoding"),
        ("segmentation", {"size": [20, 30], "counts": [-1, 601]}, "segmentation.counts[0]"),
        ("image_id", 8, "an image that the file does not list ('8')"),
        ("image_id", [7], "image_id"),
        ("category_id", 4, "a category that the file does not list"),
    ],
)
def test_invalid_annotation_is_named(key: str, value: Any, message: str, tmp_path: Path) -> None:
    content = copy.deepcopy(COCO)
    content["annotations"][0][key] = value
    with pytest.raises(UserError) as refused:
        check(content, tmp_path)
    assert message in str(refused.value) and str(tmp_path / "coco.json") in str(refused.value)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"images": 1, "annotations": [], "categories": []}'])
def test_file_that_is_not_coco(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not (a )?valid (COCO file|JSON)"):
        check(content, tmp_path)


def test_other_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has other classes than data set .* they differ in dog, horse"):
        check(COCO, tmp_path, ["cat", "horse"])
