"""Image sets in zip archives, in idx files, and in what another package opens."""

import gzip
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from moco_plugin.data.datasets import LabelledImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import UserError
from moco_plugin.sources.idx import load_idx_images, read_idx
from tests.conftest import TRAIN
from tests.helpers.image_sets import assert_same, save_images


def packed(path: Path, names: list[str], **options: int) -> Path:
    """A zip of the images that ``save_images`` would write."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for index, name in enumerate(names):
            file = io.BytesIO()
            Image.new("RGB", (8, 6), (index, 0, 0)).save(file, "png")
            archive.writestr(name, file.getvalue())
    return path


NAMES = [f"photos/{'cat' if number % 3 else 'dög'}/{number:02}.png" for number in range(20)]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_read_as_its_folder(compression: int, tmp_path: Path) -> None:
    archive = packed(
        tmp_path / "photos.zip", [*NAMES, "__MACOSX/photos/cat/._1.png", "photos/a.txt"], compression=compression
    )
    images = ImageSet(str(archive))
    assert len(images) == 20 and images.classes == ("cat", "dög")
    assert_same(images, ImageSet(str(save_images(tmp_path / "all", *NAMES) / "photos")))
    part = ImageSet(f"{archive}[5:9]")
    assert len(part) == 4 and part.name(0) == images.name(5) and part.labels[0] == images.labels[5]
    middle = ImageSet(f"{archive}[25%:75%]")
    assert len(middle) == 10 and middle.load(0) is not None


def test_folder_zip_and_list_agree_on_the_order_of_images_and_classes(tmp_path: Path) -> None:
    names = [f"all/{name}/{place}.png" for name in ("10", "01", "1", "2") for place in ("a/1", "a-b/1")]
    folder = ImageSet(str(save_images(tmp_path, *names) / "all"))
    (tmp_path / "all.txt").write_text("".join(f"{path} {path.parts[-3]}\n" for path in folder.paths))
    assert folder.classes == ("01", "1", "2", "10")
    assert_same(ImageSet(str(packed(tmp_path / "all.zip", names))), folder)
    assert_same(ImageSet(str(tmp_path / "all.txt")), folder)


def test_loader_processes_read_a_zip(tmp_path: Path) -> None:
    images = ImageSet(str(packed(tmp_path / "a.zip", NAMES)))
    images.load(0)  # opened before the processes are forked
    loader = DataLoader(LabelledImages(images, evaluation_transform(8, 1.0)), batch_size=5, num_workers=3)
    shown = [int(value) for batch, _, _ in loader for value in batch[:, 0, 0, 0]]
    assert shown == [np.asarray(images.load(index))[0, 0, 0] for index in range(20)]


def test_damaged_and_hostile_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04" + os.urandom(200))
    with pytest.raises(UserError, match=r"a\.zip cannot be read as a zip archive"):
        ImageSet(str(path))
    packed(path, ["a.txt"])
    with pytest.raises(UserError, match=r"a\.zip contains no image"):
        ImageSet(str(path))
    packed(path, ["a.png", "b.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT")] ^= 255  # stored, so the checksum is wrong
    path.write_bytes(bytes(data))
    image, name = ImageSet(str(path)).try_load(0)
    assert image is None and "a.png" in name and "CRC" in name
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/a.png", bytes(1 << 20))
    assert ImageSet(str(path)).try_load(0)[0] is None


def test_idx_file_with_slice() -> None:
    images, labels, classes = load_idx_images(f"{TRAIN}[10:30]")
    part = ImageSet(f"{TRAIN}[10:30]")
    assert images.shape == (20, 28, 28) and np.array_equal(images, part.array)
    assert np.array_equal(labels, read_idx(TRAIN.replace("images-idx3", "labels-idx1"))[10:30])
    assert np.array_equal(labels, part.labels) and classes == part.classes and classes[9] == "Ankle boot"
    assert np.array_equal(np.asarray(part.load(3))[..., 1], images[3]) and part.name(3).endswith(" image 13")
    for read in (ImageSet, load_idx_images):
        with pytest.raises(UserError, match=r"selects no image; .* contains 600"):
            read(f"{TRAIN}[600:]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG....", "not an idx file"),
        (b"\0\0\x08\x03" + np.array([2, 2, 2], ">u4").tobytes() + b"1234567", "has 7 bytes, and its header 8"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-9], "cannot be read"),
    ],
)
def test_broken_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_another_package_adds_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md describes it: a distribution on the path whose entry point names a function."""
    (tmp_path / "other_source.py").write_text(
        "import numpy as np\n"
        "from moco_plugin.data.source import ArraySource\n"
        "def open_squares(source):\n"
        "    if source.startswith('squares://'):\n"
        "        return ArraySource(source, np.arange(16, dtype=np.uint8).reshape(4, 2, 2), np.array([0, 1, 0, 1]))\n"
    )
    info = tmp_path / "other_source-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-source\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moco_plugin.sources]\nsquares = other_source:open_squares\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    images = ImageSet("squares://small[1:]")
    assert images.labels.tolist() == [1, 0, 1]
    assert np.array_equal(images.try_load_array(0)[0], [[4, 5], [6, 7]]) and images.name(0) == "squares://small image 1"
