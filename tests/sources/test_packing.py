"""Packing of images into tar shards: what is shrunk, and what is left where packing is killed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.tools.make_shards import main
from tests.helpers.image_sets import names_of, save_images


def test_large_images_are_shrunk_and_others_kept(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (400, 200)), ("b.jpg", (60, 90)), ("c.png", (50, 120))):
        Image.new("RGB", size, (10, 200, 30)).save(folder / name)
    (folder / "d.jpg").write_bytes(b"broken")
    assert main([str(folder), str(tmp_path / "small"), "--short-side", "100"]) == 0
    images = ImageSet(str(tmp_path / "small-0000.tar"))
    assert [image and image.size for image in map(images.load, range(4))] == [(200, 100), (60, 90), (50, 120), None]
    assert [images.name(i).rpartition(".")[2] for i in range(4)] == ["jpg", "jpg", "png", "jpg"]
    assert images.source.read(1) == (folder / "b.jpg").read_bytes()
    assert main([str(folder), str(tmp_path / "none"), "--short-side", "0"]) == 2


def test_large_images_keep_their_depth(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    values = np.linspace(0, 4000, 200 * 300 * 3).astype(np.uint16).reshape(200, 300, 3)
    cv2.imwrite(str(folder / "a.png"), values)
    Image.fromarray(values[..., 0]).save(folder / "b.tif")
    tifffile.imwrite(folder / "c.tif", np.repeat(values, 3, axis=2).astype(np.float32) / 4000, planarconfig="contig")
    assert main([str(folder), str(tmp_path / "small"), "--short-side", "100"]) == 0
    for index, channels in enumerate((3, 1, 9)):
        spec = f"{tmp_path}/small-0000.tar[{index}:{index + 1}]"
        (small,) = [ImageSet(spec, [0, 1] if index == 2 else [0, 4000], channels).try_load_array(0)[0]]
        assert small is not None and small.shape[:2] == (100, 150)
        assert small.min() < 5 and small.max() > 250 and np.all(np.diff(small.astype(int), axis=0) >= 0)


@pytest.mark.parametrize("before", [3, 20], ids=["fewer", "more"])
def test_a_set_that_was_stopped_at_any_moment_is_the_old_or_the_new_one(tmp_path: Path, before: int) -> None:
    photos = save_images(tmp_path / "photos", *(f"{name}/{index}.png" for name in ("cat", "dog") for index in range(6)))
    arguments = [str(photos), "", "--overwrite", "--images-per-shard"]
    seen = set()
    for moment in range(30):
        folder = tmp_path / str(moment)
        arguments[1] = str(folder / "photos")
        assert main([*arguments, str(before)]) == 0
        old = names_of(ImageSet(str(folder)))
        if not (child := os.fork()):
            steps = iter(range(moment))

            def dies(function: Any, steps: Iterator[int] = steps) -> Any:
                def call(*args: Any, **options: Any) -> Any:
                    if next(steps, None) is None:
                        os._exit(9)
                    return function(*args, **options)

                return call

            for name in ("unlink", "rename", "replace", "rmdir", "write_text"):
                setattr(Path, name, dies(getattr(Path, name)))
            main([*arguments, "5"])
            os._exit(0)
        done = os.waitpid(child, 0)[1] == 0
        images = ImageSet(str(folder))
        assert len(images) == 12 and all(images.load(index) for index in range(12))
        tars = len(list(folder.glob("*.tar")))
        assert (tars == 3) != (names_of(images) == old) and not list(folder.glob("*.packed"))
        seen.add(tars)
        if done:
            break
    assert done and len(seen) == 2
