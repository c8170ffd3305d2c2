"""Image sets and what is wrong with them."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_plugin.data.datasets import CorruptImages, LabelledImages, TrainImages, check_labels
from moco_plugin.data.idx import load_idx_images, read_idx, split_slice
from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UserError
from tests.conftest import TEST, TRAIN


def save_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path)


def test_nested_folder_has_labels_and_a_fixed_order(tmp_path: Path) -> None:
    save_images(tmp_path, "cat/2.png", "cat/deep/1.png", "dog/0.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    images = ImageSet(str(tmp_path))
    assert [images.name(i).removeprefix(f"{tmp_path}/") for i in range(3)] == [
        "cat/2.png",
        "cat/deep/1.png",
        "dog/0.JPG",
    ]
    assert images.classes == ("cat", "dog")
    assert images.labels is not None and images.labels.tolist() == [0, 0, 1]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save_images(tmp_path, "a.png", "b.png")
    assert ImageSet(str(tmp_path)).labels is None
    assert len(ImageSet(f"{tmp_path}[1:]")) == 1


def test_idx_file_with_slice() -> None:
    images, labels, classes = load_idx_images(f"{TRAIN}[10:30]")
    assert images.shape == (20, 28, 28)
    assert (
        labels is not None and labels.tolist() == read_idx(TRAIN.replace("images-idx3", "labels-idx1"))[10:30].tolist()
    )
    assert classes is not None and classes[9] == "Ankle boot"
    assert np.array_equal(np.asarray(ImageSet(f"{TRAIN}[10:30]").load(3))[..., 1], images[3])


@pytest.mark.parametrize(
    ("spec", "path", "part"),
    [("a/b[3:7]", "a/b", slice(3, 7)), ("a[:5]", "a", slice(None, 5)), ("a[1]", "a[1]", slice(None))],
)
def test_split_slice(spec: str, path: str, part: slice) -> None:
    assert split_slice(spec) == (Path(path), part)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG....", "not an idx file"),
        (b"\0\0\x08\x03" + np.array([2, 2, 2], ">u4").tobytes() + b"1234567", "holds 7 bytes where its header says 8"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-9], "cannot be read"),
    ],
)
def test_broken_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image at any depth"):
        ImageSet(str(tmp_path))
    with pytest.raises(UserError, match="found nothing, expected a folder of images"):
        ImageSet(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="selects no image"):
        ImageSet(f"{TRAIN}[600:]")


def write_list(folder: Path, *lines: str) -> str:
    save_images(folder / "a b", "cat 1.png", "owl.png", "owl 2.png")
    (folder / "list.txt").write_text("\n".join(["# a comment", "", *lines, ""]))
    return str(folder / "list.txt")


def test_list_keeps_its_order_and_may_have_spaces(tmp_path: Path) -> None:
    images = ImageSet(write_list(tmp_path, "a b/owl.png", "a b/cat 1.png", str(tmp_path / "a b" / "owl 2.png")))
    assert images.paths == [tmp_path / "a b" / name for name in ("owl.png", "cat 1.png", "owl 2.png")]
    assert images.labels is None and images.classes is None
    assert images.load(1) == ImageSet(str(tmp_path / "a b")).load(0)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (("owl", "cat", "owl"), ("cat", "owl"), [1, 0, 1]),
        (("10", "9", "10"), ("9", "10"), [1, 0, 1]),
        (("snowy owl", "house cat", "snowy owl"), ("house cat", "snowy owl"), [1, 0, 1]),
    ],
)
def test_list_with_labels(
    tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...], numbers: list[int]
) -> None:
    names = ("a b/owl.png", "a b/cat 1.png", "a b/owl 2.png")
    spec = write_list(tmp_path, *(f"{name} \t{label}" for name, label in zip(names, labels, strict=True)))
    images, part = ImageSet(spec), ImageSet(f"{spec}[2:]")
    assert images.paths == [tmp_path / name for name in names]
    assert images.classes == classes and images.labels is not None and images.labels.tolist() == numbers
    assert part.classes == classes and part.labels is not None and part.labels.tolist() == numbers[2:]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a b/owl.png 1", "a b/cat 1.png"], "line 4: 'a b/cat 1.png' has no label and the first image has one"),
        (["a b/cat 1.png", "a b/owl.png 1"], "line 4: 'a b/owl.png 1' has a label and the first image has none"),
        (["absent.png 1"], "1 of its 1 images are missing, .*absent.png first; expected 'path' or 'path label'"),
        ([], "lists no image"),
    ],
)
def test_lists_that_cannot_be_right(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageSet(write_list(tmp_path, *lines))


def test_corrupt_image_is_named_and_replaced_in_training_left_out_in_evaluation(tmp_path: Path) -> None:
    save_images(tmp_path, "0.png", "1.png", "2.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    images = ImageSet(str(tmp_path))
    train = TrainImages(images, lambda image, _: (int(image[0, 0, 0]), None), seed=0)
    assert [(train[i][0], train[i][2]) for i in range(3)] == [(0, ""), (2, str(tmp_path / "1.png")), (2, "")]
    assert LabelledImages(images, lambda image: image)[1] == (None, -1, str(tmp_path / "1.png"))


def test_one_percent_may_be_corrupt(capsys: pytest.CaptureFixture[str]) -> None:
    corrupt = CorruptImages(total=100)
    corrupt.add(["", "a.png", ""])
    corrupt.add(["a.png"])  # seen again: neither counted nor named twice
    assert capsys.readouterr().err == "skipped: a.png cannot be decoded (1 so far)\n"
    with pytest.raises(UserError, match=r"2 of 100 images cannot be decoded, more than 1%, a.png among them"):
        corrupt.add(["b.png"])


def test_labels_must_match(tmp_path: Path) -> None:
    save_images(tmp_path / "one", "cat/0.png", "dog/0.png")
    save_images(tmp_path / "two", "cat/0.png", "owl/0.png")
    save_images(tmp_path / "flat", "0.png")
    sets = {name: ImageSet(str(tmp_path / name)) for name in ("one", "two", "flat")}
    check_labels(sets["one"], sets["one"])
    with pytest.raises(UserError, match=r"differ: only .*one has dog; only .*two has owl"):
        check_labels(sets["one"], sets["two"])
    with pytest.raises(UserError, match="flat has no labels"):
        check_labels(sets["one"], sets["flat"])
    check_labels(ImageSet(TRAIN), ImageSet(TEST))


def test_csv_lists(tmp_path: Path) -> None:
    save_images(tmp_path, "a, b.png", "1.png", "2.png")
    (tmp_path / "list.csv").write_text('path,label\n"a, b.png",hot dog\n1.png,cat\n2.png,cat\n')
    images = ImageSet(str(tmp_path / "list.csv"))
    assert images.classes == ("cat", "hot dog") and images.labels is not None and images.labels.tolist() == [1, 0, 0]
    (tmp_path / "list.csv").write_text("1.png\n2.png\n")
    assert len(ImageSet(str(tmp_path / "list.csv"))) == 2
    (tmp_path / "list.csv").write_text("1.png,cat,3\n")
    with pytest.raises(UserError, match="line 1: 3 cells; expected path, or path and label"):
        ImageSet(str(tmp_path / "list.csv"))


def test_test_sets_with_fewer_classes(tmp_path: Path) -> None:
    for folder in ("train/cat", "train/dog", "train/owl", "test/owl", "test/dog"):
        (tmp_path / folder).mkdir(parents=True)
        save_images(tmp_path / folder, "1.png")
    train, test = ImageSet(str(tmp_path / "train")), ImageSet(str(tmp_path / "test"))
    check_labels(train, test)
    assert test.labels is not None and test.labels.tolist() == [1, 2] and test.classes == train.classes
