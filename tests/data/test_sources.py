"""Image sets in zip archives, shares of a set, and lists of several labels per image."""

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
from moco_plugin.errors import UsageError, UserError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def packed(path: Path, names: list[str], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, png(number))
    return path


def unpacked(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


NAMES = [f"photos/{'cat' if number % 3 else 'dög'}/{number:02}.png" for number in range(20)]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_read_as_its_folder(compression: int, tmp_path: Path) -> None:
    archive = packed(
        tmp_path / "photos.zip", [*NAMES, "__MACOSX/photos/cat/._1.png", "photos/a.txt"], compression=compression
    )
    folder = ImageSet(str(unpacked(tmp_path / "all", NAMES) / "photos"))
    images = ImageSet(str(archive))
    assert len(images) == 20 and images.classes == folder.classes == ("cat", "dög")
    assert np.array_equal(images.labels, folder.labels)
    for index in range(20):
        assert np.array_equal(images.try_load_array(index)[0], folder.try_load_array(index)[0])
    part = ImageSet(f"{archive}[5:9]")
    assert len(part) == 4 and part.name(0) == images.name(5) and part.labels[0] == images.labels[5]


def test_folder_zip_and_list_agree_on_the_order_of_images_and_classes(tmp_path: Path) -> None:
    names = [f"all/{name}/{place}.png" for name in ("10", "01", "1", "2") for place in ("a/1", "a-b/1")]
    folder = ImageSet(str(unpacked(tmp_path, names) / "all"))
    archive = ImageSet(str(packed(tmp_path / "all.zip", names)))
    (tmp_path / "all.txt").write_text("".join(f"{path} {path.parts[-3]}\n" for path in folder.paths))
    listed = ImageSet(str(tmp_path / "all.txt"))
    assert folder.classes == archive.classes == listed.classes == ("01", "1", "2", "10")
    for images in (archive, listed):
        assert np.array_equal(images.labels, folder.labels)
        for index in range(8):
            assert np.array_equal(images.try_load_array(index)[0], folder.try_load_array(index)[0])


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
    with pytest.raises(UserError, match=r"a\.zip holds no image"):
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


def test_shares_are_disjoint_complete_and_of_each_class(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, NAMES) / "photos"
    whole = ImageSet(str(folder))
    train, test = ImageSet(f"{folder}[:80%]"), ImageSet(f"{folder}[80%:]")
    names = [[images.name(index) for index in range(len(images))] for images in (whole, train, test)]
    assert sorted(names[1] + names[2]) == names[0] and not set(names[1]) & set(names[2])
    assert np.bincount(train.labels).tolist() == [10, 6] and np.bincount(test.labels).tolist() == [3, 1]
    assert [ImageSet(f"{folder}[80%:]").name(0)] == names[2][:1]
    other = ImageSet(f"{folder}[80%:,seed=1]")
    assert len(other) == 4 and [other.name(index) for index in range(4)] != names[2]
    middle = ImageSet(f"{packed(tmp_path / 'a.zip', NAMES)}[25%:75%]")
    assert len(middle) == 10 and middle.load(0) is not None
    for wrong in ("[80%:20%]", "[:120%]"):
        with pytest.raises(UsageError, match="expected rising shares from 0% to 100%"):
            ImageSet(f"{folder}{wrong}")


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_lists_of_several_labels(suffix: str, tmp_path: Path) -> None:
    unpacked(tmp_path, ["a.png", "b.png", "c.png"])
    between = "," if suffix == ".csv" else " "
    path = tmp_path / f"list{suffix}"
    path.write_text(f"a.png{between}cat; dog\nb.png{between.strip()}\nc.png{between}bird\n", encoding="utf-8")
    images = ImageSet(str(path))
    assert images.classes == ("bird", "cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [[False, True, True], [False] * 3, [True, False, False]]


def test_one_label_and_none_is_still_refused(tmp_path: Path) -> None:
    unpacked(tmp_path, ["a.png", "b.png"])
    (tmp_path / "list.csv").write_text("a.png,cat\nb.png,\n")
    with pytest.raises(UserError, match=r"line 2: 'b\.png,' has no label and the first image has one"):
        ImageSet(str(tmp_path / "list.csv"))
