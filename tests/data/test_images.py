"""Image sets and what is wrong with them."""

import os
from pathlib import Path

import numpy as np
import pytest

from moco_plugin.data.datasets import CorruptImages, LabelledImages, TrainImages, check_labels
from moco_plugin.data.images import ImageSet
from moco_plugin.data.listing import read_entries
from moco_plugin.data.spec import Spec, parse_spec
from moco_plugin.errors import UserError
from tests.conftest import TEST, TRAIN
from tests.helpers.image_sets import names_of, save_images


def test_folders(tmp_path: Path) -> None:
    save_images(tmp_path, "cat/2.png", "cat/deep/1.png", "dog/0.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    images, flat = ImageSet(str(tmp_path)), ImageSet(f"{tmp_path}/cat/deep")
    assert names_of(images) == [f"{tmp_path}/{name}" for name in ("cat/2.png", "cat/deep/1.png", "dog/0.JPG")]
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 0, 1]
    assert flat.labels is None and len(ImageSet(f"{tmp_path}[1:]")) == 2


@pytest.mark.parametrize(
    ("text", "source", "part", "shares"),
    [
        ("a/b[3:7]", "a/b", slice(3, 7), None),
        ("a[:5]", "a", slice(None, 5), None),
        ("a[1]", "a[1]", slice(None), None),
        ("a[1:2][3:4]", "a[1:2]", slice(3, 4), None),
        ("a[:]", "a", slice(None), None),
        ("a[:80%]", "a", slice(None), (0.0, 0.8)),
        ("s3://a-{0..9}.tar[5:][20%:,seed=7]", "s3://a-{0..9}.tar", slice(5, None), (0.2, 1.0)),
    ],
)
def test_specs(text: str, source: str, part: slice, shares: tuple[float, float] | None) -> None:
    assert parse_spec(text) == Spec(source, part, shares, 7 if "seed" in text else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"FOLDER{part}", "expected rising shares from 0% to 100%")
            for part in ("[80%:20%]", "[:120%]", "[1.2.3%:]")
        ),
        *((f"FOLDER{part}", "selects no image; .* contains 1") for part in ("[1:]", "[:1%]")),
        ("FOLDER/empty", "contains no image at any depth"),
        ("FOLDER/absent", "found nothing, expected a folder of images"),
        ("FOLDER/a.parquet", "a Parquet file, which is not read.*moco-make-shards"),
        ("FOLDER/parquet", "a Parquet file, which is not read.*moco-make-shards"),
        ("[FOLDER, FOLDER/absent]", "absent: found nothing"),
        *((text, "is not a valid path") for text in ("a\0b", "x" * 300, "\ud800", "~no-such-user/x")),
        ("", "names no images"),
        ("[,]", "names no images"),
        ("/dev/zero", "found a file"),
    ],
)
def test_wrong_names(text: str, message: str, tmp_path: Path) -> None:
    save_images(tmp_path, "a.png")
    for path in ("empty/a.txt", "parquet/a.parquet", "a.parquet"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=message):
        ImageSet(text.replace("FOLDER", str(tmp_path)))


def write_list(folder: Path, *lines: str) -> str:
    save_images(folder / "a b", "cat 1.png", "owl.png", "owl 2.png")
    (folder / "list.txt").write_text("\n".join(["# a comment", "", *lines, ""]))
    return str(folder / "list.txt")


def test_list_keeps_its_order_and_may_have_spaces(tmp_path: Path) -> None:
    images = ImageSet(write_list(tmp_path, "a b/owl.png", "a b/cat 1.png", str(tmp_path / "a b" / "owl 2.png")))
    assert images.paths == [tmp_path / "a b" / name for name in ("owl.png", "cat 1.png", "owl 2.png")]
    assert images.labels is None and images.classes is None
    assert images.load(1) == ImageSet(str(tmp_path / "a b")).load(0)


@pytest.mark.parametrize("classes", [("cat", "owl"), ("9", "10"), ("house cat", "snowy owl")])
def test_list_with_labels(tmp_path: Path, classes: tuple[str, str]) -> None:
    names = ("a b/owl.png", "a b/cat 1.png", "a b/owl 2.png")
    spec = write_list(tmp_path, *(f"{name} \t{classes[i]}" for name, i in zip(names, (1, 0, 1), strict=True)))
    images, part = ImageSet(spec), ImageSet(f"{spec}[2:]")
    assert images.paths == [tmp_path / name for name in names]
    assert images.classes == part.classes == classes
    assert images.labels.tolist() == [1, 0, 1]
    assert part.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.txt", ["1.png 1", "2.png"], "line 4: '2.png' has no label and the first image has one"),
        ("a.txt", ["2.png", "1.png 1"], "line 4: '1.png 1' has a label and the first image has none"),
        (
            "a.txt",
            ["absent.png 1"],
            "1 of its 1 images are missing, .*absent.png first; expected 'path' or 'path label'",
        ),
        ("a.txt", [], "lists no image"),
        ("a.txt", [f"1.png a{i};b{i}" for i in range(40_000)], "lists 40000 images of 80000 classes"),
        ("a.csv", ["1.png,cat", "2.png,"], r"line 4: '2\.png,' has no label and the first image has one"),
        ("a.csv", ["1.png,cat,3"], "line 3: 3 cells; expected path, or path and label"),
    ],
    ids=range(7),
)
def test_invalid_lists(tmp_path: Path, name: str, lines: list[str], message: str) -> None:
    save_images(tmp_path, "1.png", "2.png")
    (tmp_path / name).write_text("\n".join(["# a comment", "", *lines]))
    with pytest.raises(UserError, match=message):
        ImageSet(str(tmp_path / name))


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


def test_classes_of_training_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {"train": "cat dog owl", "test": "owl dog", "other": "cat emu"} | {
        name: " ".join(map(str, range(12))) for name in ("numbers", "numbers 2")
    }
    for name, classes in folders.items():
        save_images(tmp_path / name, *(f"{label}/1.png" for label in classes.split()))
    sets = {name: ImageSet(str(tmp_path / name)) for name in folders}
    train, test = sets["train"], sets["test"]
    renumbered = check_labels(train, test)
    assert renumbered.labels.tolist() == [1, 2]
    assert renumbered.classes == train.classes and renumbered.load(0) == test.load(0)
    assert test.labels.tolist() == [0, 1] and test.classes == ("dog", "owl")
    assert check_labels(train, train) is train and check_labels(ImageSet(TRAIN), ImageSet(TEST))
    with pytest.raises(UserError, match=r"differ: only .*train has dog, owl; only .*other has emu"):
        check_labels(train, sets["other"])
    with pytest.raises(UserError, match="cat has no labels"):
        check_labels(train, ImageSet(f"{tmp_path}/train/cat"))
    capsys.readouterr()
    numbers, test = sets["numbers"], sets["numbers 2"]
    test.classes = tuple(sorted(numbers.classes))  # as an index of shards may have it
    test.labels = np.array([test.classes.index(numbers.classes[label]) for label in test.labels])
    assert check_labels(numbers, test).labels.tolist() == numbers.labels.tolist()
    assert capsys.readouterr().err == ""


def test_csv_lists(tmp_path: Path) -> None:
    save_images(tmp_path, "a, b.png", "1.png", "2.png")
    (tmp_path / "list.csv").write_text('path,label\n"a, b.png",hot dog\n1.png,cat\n2.png,cat\n')
    images = ImageSet(str(tmp_path / "list.csv"))
    assert images.classes == ("cat", "hot dog") and images.labels.tolist() == [1, 0, 0]
    (tmp_path / "list.csv").write_text("1.png\n2.png\n")
    assert len(ImageSet(str(tmp_path / "list.csv"))) == 2


def test_shares_are_disjoint_complete_and_of_each_class(tmp_path: Path) -> None:
    save_images(tmp_path, *(f"{'cat' if number % 3 else 'dög'}/{number:02}.png" for number in range(20)))
    whole, train, test, other = (ImageSet(f"{tmp_path}{part}") for part in ("", "[:80%]", "[80%:]", "[80%:,seed=1]"))
    names, first, second = map(names_of, (whole, train, test))
    assert sorted(first + second) == names and not set(first) & set(second)
    assert train.labels is not None and np.bincount(train.labels).tolist() == [10, 6]
    assert test.labels is not None and np.bincount(test.labels).tolist() == [3, 1]
    assert names_of(ImageSet(f"{tmp_path}[80%:]")) == second != names_of(other) and len(other) == 4
    assert len(ImageSet(f"{tmp_path}[:10][50%:]")) == 5


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_lists_of_several_labels(suffix: str, tmp_path: Path) -> None:
    save_images(tmp_path, "a.png", "b.png", "c.png")
    between = "," if suffix == ".csv" else " "
    path = tmp_path / f"list{suffix}"
    path.write_text(f"a.png{between}cat; dog\nb.png{between.strip()}\nc.png{between}bird\n", encoding="utf-8")
    images = ImageSet(str(path))
    assert images.classes == ("bird", "cat", "dog")
    assert images.labels.tolist() == [[False, True, True], [False] * 3, [True, False, False]]
    wider = images.with_classes(("ape", "bird", "cat", "dog")).labels
    assert wider is not None and wider[:, 1:].tolist() == images.labels.tolist() and not wider[:, 0].any()


def test_paths_of_a_list_may_be_relative_to_several_folders(tmp_path: Path) -> None:
    save_images(tmp_path, "one/a.png", "two/b.png")
    (tmp_path / "list").write_text("a.png 3\nb.png 1\n")
    entries = read_entries(tmp_path / "list", tmp_path / "one", tmp_path / "two")
    assert [entry[:2] for entry in entries] == [(tmp_path / "one" / "a.png", "3"), (tmp_path / "two" / "b.png", "1")]
    with pytest.raises(UserError, match=r"1 of its 2 images are missing.*two/a.png first.*relative to .*two"):
        read_entries(tmp_path / "list", tmp_path / "two")


def test_several_sources(tmp_path: Path) -> None:
    save_images(tmp_path / "one", "cat/0.png", "dog/0.png", "dog/1.png")
    save_images(tmp_path / "two", "ant/0.png", "cat/0.png")
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    both = ImageSet(f"[{one}[:2], {two}]")
    assert names_of(both) == [*names_of(ImageSet(one))[:2], *names_of(ImageSet(two))] == [str(p) for p in both.paths]
    assert both.classes == ("ant", "cat", "dog") and both.labels.tolist() == [1, 2, 0, 1]
    part = ImageSet(f"[{one},{two}][2:4]")
    assert part.labels.tolist() == [2, 0] and names_of(part) == [names_of(ImageSet(one))[2], names_of(ImageSet(two))[0]]
    assert part.identity() != both.identity() and part.load(0) == ImageSet(one).load(2)
    save_images(tmp_path / "flat", "0.png")
    assert ImageSet(f"[{one}, {tmp_path}/flat]").labels is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings_of_lists(encoding: str, tmp_path: Path) -> None:
    save_images(tmp_path, "1.png", "chât.png")
    (tmp_path / "list.txt").write_bytes("1.png été\r\nchât.png hiver\r\n".encode(encoding))
    images = ImageSet(str(tmp_path / "list.txt"))
    assert images.classes == ("hiver", "été") and images.labels.tolist() == [1, 0]


def test_lists_of_names_in_another_encoding(tmp_path: Path) -> None:
    name = os.fsdecode("chât.png".encode("cp1252"))
    save_images(tmp_path, "1.png", name)
    (tmp_path / "list.txt").write_bytes(b"1.png a\n" + os.fsencode(name) + b" b\n")
    assert names_of(ImageSet(str(tmp_path / "list.txt"))) == [f"{tmp_path}/1.png", f"{tmp_path}/{name}"]
