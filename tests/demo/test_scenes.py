"""Composed scenes: deterministic, true to their masks, and the same in both formats."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_plugin.demo.scenes import compose_scene, make_scenes
from moco_plugin.errors import UserError
from moco_plugin.sources.idx import load_idx_images
from tests.conftest import TEST, TRAIN
from tests.helpers.processes import Tool

SPLITS = ("train", "test")
IMAGES = np.full((4, 28, 28), 255, np.uint8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Path:
    """Twelve scenes, made with the tool."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    sources = f"--train {TRAIN}[0:80] --test {TEST}[0:80]".split()
    tool("make_scenes", out, *sources, *"--num-train 8 --num-test 4 --size 128 --seed 3".split())
    assert "exists already" in tool("make_scenes", out, *sources, code=2).stderr
    return out


def test_same_seed_same_bytes_and_a_larger_set_begins_alike(scenes: Path, tmp_path: Path) -> None:
    (*train, names), (*test, _) = (load_idx_images(f"{path}[0:80]") for path in (TRAIN, TEST))
    sources = tuple(train), tuple(test), names
    options = {"num_test": 4, "size": 128, "progress": False}
    again = make_scenes(tmp_path / "again", *sources, num_train=8, seed=3, **options)
    files = sorted(path.relative_to(scenes) for path in scenes.rglob("*") if path.is_file())
    assert len(files) == 12 * 2 + 4
    for file in files:
        assert (scenes / file).read_bytes() == (again / file).read_bytes(), file

    larger = make_scenes(tmp_path / "larger", *sources, num_train=9, seed=3, **options)
    other = make_scenes(tmp_path / "other", *sources, num_train=8, seed=4, **options)
    name = "JPEGImages/train_000007.jpg"
    assert (larger / name).read_bytes() == (scenes / name).read_bytes() != (other / name).read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_the_extents_of_the_masks(scenes: Path, split: str) -> None:
    content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
    listed = (scenes / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    assert [Path(image["file_name"]).stem for image in content["images"]] == listed
    counts = Counter(row["image_id"] for row in content["annotations"])
    assert all(1 <= counts[image["id"]] <= 6 for image in content["images"])
    for row in content["annotations"]:
        counts = row["segmentation"]["counts"]
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(row["segmentation"]["size"], order="F")
        rows, columns = np.nonzero(mask)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert row["bbox"] == [left, top, right - left, bottom - top] and row["area"] == mask.sum() > 50


def test_objects_are_of_the_given_images() -> None:
    big, small = np.full((1, 28, 28), 255, np.uint8), np.zeros((1, 28, 28), np.uint8)
    small[:, 12:16, 12:16] = 255
    random = np.random.default_rng(0)
    for source, low, high in ((big, 500, 4000), (small, 5, 200)):
        _, objects = compose_scene(source, np.array([7]), 160, random)
        whole = objects[-1]  # nothing lies on the last one
        assert low < whole.mask.sum() < high and whole.label == 7


def test_holes_are_filled_but_not_what_is_open() -> None:
    ring = np.zeros((1, 28, 28), np.uint8)
    ring[0, 4:24, 4:24] = 200
    ring[0, 10:18, 10:18] = 0
    arch = ring.copy()
    arch[0, 18:24, 10:18] = 0
    for image, filled in ((ring, True), (arch, False)):
        _, objects = compose_scene(image, np.array([0]), 160, np.random.default_rng(1))
        left, top, right, bottom = objects[-1].box
        middle = objects[-1].mask[(top + bottom) // 2, (left + right) // 2]
        assert middle == filled


@pytest.mark.parametrize(
    ("output", "change", "message"),
    [
        ("precious", {"overwrite": True}, "contains no scenes"),
        ("new", {"class_names": ["a", "b"]}, "labels go up to 3"),
        ("new", {"train": (IMAGES, np.arange(3))}, "3 labels for 4"),
        ("new", {"size": 20}, "too small"),
    ],
)
def test_refusals(output: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    source = (IMAGES, np.arange(4))
    with pytest.raises(UserError, match=message):
        make_scenes(tmp_path / output, **{"train": source, "test": source, "progress": False, **change})
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]  # and nothing half-written


def test_detectron2_reads_both_formats(scenes: Path) -> None:
    pytest.importorskip("detectron2")
    from moco_plugin.transfer.components.datasets import register_scenes  # noqa: I001  (before detectron2)
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register_scenes(scenes, "format")
    for split in SPLITS:
        both = [DatasetCatalog.get(f"format_{split}"), DatasetCatalog.get(f"format_voc_{split}")]
        names = [MetadataCatalog.get(f"{name}_{split}").thing_classes for name in ("format", "format_voc")]
        assert names[0] == names[1]
        for in_coco, in_voc in zip(*both, strict=True):
            assert in_coco["file_name"] == in_voc["file_name"]
            for a, b in zip(in_coco["annotations"], in_voc["annotations"], strict=True):
                assert a["category_id"] == b["category_id"]
                x, y, width, height = a["bbox"]
                assert b["bbox"] == [x, y, x + width, y + height]
