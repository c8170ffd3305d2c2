"""Shards of images that are encoded once more."""

from pathlib import Path

from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.tools.make_shards import main


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
