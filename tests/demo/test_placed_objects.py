"""Pictures of objects at random places and sizes."""

from pathlib import Path

import numpy as np

from moco_plugin.data.images import ImageSet
from moco_plugin.demo.objects import SIDE, place_objects
from tests.conftest import TEST, TRAIN
from tests.helpers.processes import Tool


def test_objects_are_whole_and_everywhere() -> None:
    square = np.zeros((40, 28, 28), np.uint8)
    square[:, 10:18, 10:18] = 200
    pictures = place_objects(square, 3)
    assert pictures.shape == (40, SIDE, SIDE) and pictures.dtype == np.uint8
    assert np.array_equal(place_objects(square[:5], 3), pictures[:5])  # a larger set begins with the smaller one
    assert not np.array_equal(place_objects(square, 4), pictures)
    areas = (pictures > 100).sum(axis=(1, 2))
    assert areas.min() >= 9 and areas.max() <= 144 and areas.max() > 3 * areas.min()
    seen = pictures.max(axis=0) > 100
    assert seen.any(axis=0).sum() > SIDE / 2 and seen.any(axis=1).sum() > SIDE / 2


def test_the_tool_writes_them_with_labels(tmp_path: Path, tool: Tool) -> None:
    out = tmp_path / "fashion-objects"
    arguments = ["--objects", out, "--train", f"{TRAIN}[0:30]", "--test", f"{TEST}[0:20]"]
    assert "30 training and 20 test pictures written" in tool("make_scenes", *arguments).stdout
    placed, plain = ImageSet(f"{out}/t10k-images-idx3-ubyte"), ImageSet(f"{TEST}[0:20]")
    assert placed.array is not None and placed.array.shape == (20, SIDE, SIDE)
    assert np.array_equal(placed.labels, plain.labels) and placed.classes is not None
    assert "exists already" in tool("make_scenes", *arguments, code=2).stderr
