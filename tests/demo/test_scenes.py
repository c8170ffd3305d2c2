"""Composed scenes: deterministic, true to their masks, and the same in both formats."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from moco_plugin.demo.scenes import compose_scene, make_scenes, run_lengths
from moco_plugin.errors import UsageError, UserError
from moco_plugin.sources.idx import load_idx_images
from tests.conftest import TEST, TRAIN
from tests.helpers.processes import Tool

SPLITS = ("train", "test")


def decode(segmentation: dict[str, list[int]]) -> np.ndarray:
    values = np.repeat(np.arange(len(segmentation["counts"])) % 2, segmentation["counts"])
    return values.astype(bool).reshape(segmentation["size"], order="F")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Path:
    """Twelve scenes, made with the tool."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    tool(
        "make_scenes",
        out,
        *f"--train {TRAIN}[0:80] --test {TEST}[0:80] --num-train 8 --num-test 4 --size 128 --seed 3".split(),
    )
    return out


def coco(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def test_same_seed_same_bytes_and_a_larger_set_begins_alike(scenes: Path, tmp_path: Path) -> None:
    (train, train_labels, names), (test, test_labels, _) = (
        load_idx_images(f"{TRAIN}[0:80]"),
        load_idx_images(f"{TEST}[0:80]"),
    )
    sources = (train, train_labels), (test, test_labels), names
    options = {"num_test": 4, "size": 128, "progress": False}
    again = make_scenes(tmp_path / "again", *sources, num_train=8, seed=3, **options)
    files = sorted(path.relative_to(scenes) for path in scenes.rglob("*") if path.is_file())
    assert len(files) == 12 * 4 + 6
    for file in files:
        assert (scenes / file).read_bytes() == (again / file).read_bytes(), file

    larger = make_scenes(tmp_path / "larger", *sources, num_train=9, seed=3, **options)
    other = make_scenes(tmp_path / "other", *sources, num_train=8, seed=4, **options)
    name = "JPEGImages/train_000007.jpg"
    assert (larger / name).read_bytes() == (scenes / name).read_bytes() != (other / name).read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_the_masks_extents_and_both_formats_agree(scenes: Path, split: str) -> None:
    content = coco(scenes, split)
    names = {category["id"]: category["name"] for category in content["categories"]}
    listed = (scenes / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    assert [Path(image["file_name"]).stem for image in content["images"]] == listed
    for image in content["images"]:
        stem = Path(image["file_name"]).stem
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert 1 <= len(annotations) <= 6
        instances = np.asarray(Image.open(scenes / "SegmentationObject" / f"{stem}.png"))
        classes = np.asarray(Image.open(scenes / "SegmentationClass" / f"{stem}.png"))
        objects = ElementTree.parse(scenes / "Annotations" / f"{stem}.xml").findall("object")
        assert len(objects) == len(annotations)
        for number, (annotation, node) in enumerate(zip(annotations, objects, strict=True), start=1):
            mask = decode(annotation["segmentation"])
            rows, columns = np.nonzero(mask)
            left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
            assert annotation["bbox"] == [left, top, right - left + 1, bottom - top + 1]
            assert annotation["area"] == mask.sum() > 50
            assert np.array_equal(instances == number, mask)
            assert set(classes[mask]) == {annotation["category_id"]}
            assert node.findtext("name") == names[annotation["category_id"]]
            corners = [int(node.findtext(f"bndbox/{key}") or 0) for key in ("xmin", "ymin", "xmax", "ymax")]
            assert corners == [left + 1, top + 1, right + 1, bottom + 1]


def test_test_scenes_hold_test_images_only() -> None:
    # A full square and a small one: with little noise around, an object's area tells where it is from.
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


def test_run_lengths_start_with_ground() -> None:
    mask = np.array([[1, 0], [1, 1]], bool)
    assert run_lengths(mask) == {"size": [2, 2], "counts": [0, 2, 1, 1]}
    assert run_lengths(~mask) == {"size": [2, 2], "counts": [2, 1, 1]}


def test_refusals(scenes: Path, tmp_path: Path, tool: Tool) -> None:
    images = np.full((4, 28, 28), 255, np.uint8)
    source = (images, np.arange(4))
    with pytest.raises(UsageError, match="exists already"):
        make_scenes(scenes, source, source, progress=False)
    (tmp_path / "precious").mkdir()
    with pytest.raises(UsageError, match="holds no scenes"):
        make_scenes(tmp_path / "precious", source, source, overwrite=True, progress=False)
    with pytest.raises(UserError, match="labels go up to 3"):
        make_scenes(tmp_path / "new", source, source, ["a", "b"], progress=False)
    with pytest.raises(UserError, match="3 labels for 4"):
        make_scenes(tmp_path / "new", (images, np.arange(3)), source, progress=False)
    with pytest.raises(UsageError, match="too small"):
        make_scenes(tmp_path / "new", source, source, size=20, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]  # and nothing half-written
    assert "exists already" in tool("make_scenes", scenes, "--train", TRAIN, "--test", TEST, code=2).stderr


def test_detectron2_reads_both_formats(scenes: Path) -> None:
    pytest.importorskip("detectron2")
    from moco_plugin.transfer.components.datasets import register_scenes  # noqa: I001  (before detectron2)
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register_scenes(scenes, "format")
    for split in SPLITS:
        both = [DatasetCatalog.get(f"format_{split}"), DatasetCatalog.get(f"format_voc_{split}")]
        assert (
            MetadataCatalog.get(f"format_{split}").thing_classes
            == MetadataCatalog.get(f"format_voc_{split}").thing_classes
        )
        for in_coco, in_voc in zip(*both, strict=True):
            assert in_coco["file_name"] == in_voc["file_name"]
            for a, b in zip(in_coco["annotations"], in_voc["annotations"], strict=True):
                assert a["category_id"] == b["category_id"]
                x, y, width, height = a["bbox"]
                assert b["bbox"] == [x, y, x + width, y + height]
