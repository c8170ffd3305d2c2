"""Small images on disk, and the comparison of image sets."""

from pathlib import Path

import numpy as np
from PIL import Image

from moco_plugin.data.images import ImageSet


def save_images(folder: Path, *names: str) -> Path:
    """Write images of 8 x 6 pixels whose red is their position, and return the folder."""
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (index, 0, 0)).save(folder / name)
    return folder


def names_of(images: ImageSet) -> list[str]:
    return [images.name(index) for index in range(len(images))]


def assert_same(found: ImageSet, expected: ImageSet) -> None:
    assert len(found) == len(expected) and found.classes == expected.classes
    assert found.labels is not None and np.array_equal(found.labels, expected.labels)
    for index in range(len(found)):
        assert found.load(index) == expected.load(index) is not None
        assert np.array_equal(found.try_load_array(index)[0], expected.try_load_array(index)[0])
