"""Semantic segmentation on own data: label images of all kinds, and invalid ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from moco_plugin.detectors.dataset import Sources
from moco_plugin.detectors.resampling import read_score
from moco_plugin.detectors.semantic import prepare_semantic
from moco_plugin.errors import UserError
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.mapper import Mapper
from tests.helpers.processes import Tool

SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) TEST.PRECISE_BN.ENABLED False DATALOADER.NUM_WORKERS 1".split()


@pytest.fixture
def labels(tmp_path: Path, photos: Path) -> Path:
    """Label images of the photos: of a palette or grey, with ignored pixels."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.iterdir())):
        array = np.zeros((48, 64), np.uint8)
        array[8:28, 8:24], array[:2] = 1 + number % 2, 255
        image = Image.fromarray(array)
        if number % 2:
            image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + 253 * [0, 0, 0])
        image.save(folder / f"{path.stem}.png")
    return folder


def test_label_images_are_trained(tmp_path: Path, photos: Path, labels: Path, tool: Tool) -> None:
    (labels / "classes.txt").write_text("background\ncät\ndog\n")
    out = tmp_path / "out"
    small = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.RES5_DILATION", "1"]
    data = ["--train-labels", labels, "--train-images", photos, "--out", out]
    shown = tool("transfer", *data, *SHORT, *small, "INPUT.CROP.SIZE", "(33, 33)").stdout
    assert "8 training images, 3 classes: background, cät, dog" in shown and "mIoU" in shown
    score = read_score("sem_seg", out / "data/test.json", out / "trial_1")(np.ones((1, 2)))
    measured = json.loads((out / "results.json").read_text())["trials"][0]["metrics"]["sem_seg/mIoU"]
    assert score == pytest.approx([measured])
    tool("predict", "--weights", out / "trial_1" / "model_final.pth", "--out", tmp_path / "pictures", photos)
    assert len(list((tmp_path / "pictures").iterdir())) == 10


@pytest.mark.parametrize("kind", ["1 bit", "16 bits", "mask", "one name", "turned", "turned, labels as stored"])
def test_label_images_of_other_kinds(kind: str, tmp_path: Path, photos: Path, labels: Path) -> None:
    """Training and test see the same labels, upright."""
    expected = []
    for path in sorted(photos.iterdir()):
        array = np.zeros((48, 64), np.uint8)
        array[8:28, 8:24] = 1
        shown = array
        if kind.startswith("turned"):
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.open(path).convert("RGB").save(path, "JPEG", exif=exif)
            shown = np.rot90(array, -1)
        file = np.ascontiguousarray(array if kind.endswith("stored") else shown)
        picture = Image.fromarray(file * (255 if kind in ("mask", "one name") else 1))
        picture = Image.fromarray(file.astype(bool)) if kind == "1 bit" else picture
        picture = Image.fromarray(file.astype(np.uint16)) if kind == "16 bits" else picture
        picture.save(labels / f"{path.stem}.png")
        expected.append(shown)
    if kind == "one name":
        (labels / "classes.txt").write_text("crack\n")
    data = prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True))
    names = {"mask": ("background", "object"), "one name": ("background", "crack")}
    assert data.classes == names.get(kind, ("0", "1"))
    assert any("0 is background, and 255 the class" in note for note in data.notes) == (kind in names)
    for name in data.names:
        require_dataset(name)
        for entry in DatasetCatalog.get(name):
            sample = Mapper(is_train=True, augmentations=[], image_format="RGB")(entry)  # as detectron2 in training
            with Image.open(entry["sem_seg_file_name"]) as tested:  # as detectron2's evaluator
                assert np.array_equal(np.array(tested), sample["sem_seg"].numpy())
            assert np.array_equal(sample["sem_seg"].numpy(), expected[0]) and sample["image"].shape[1:] == shown.shape


def test_images_without_a_partner_are_left_out(tmp_path: Path, photos: Path, labels: Path) -> None:
    (labels / "bild ä 0.png").unlink()
    Image.new("L", (64, 48)).save(labels / "other.png")
    data = prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True))
    assert data.classes == ("0", "1", "2") and (data.images, data.test_images) == (7, 2)
    assert "left out 1 label images without an image: other.png" in data.notes
    assert "left out 1 images without a label image: bild ä 0" in data.notes


@pytest.mark.parametrize(
    ("image", "names", "sentence"),
    [
        (Image.new("L", (32, 48)), "", r"1\.png has 32 x 48 pixels, and its image 64 x 48"),
        (Image.new("RGB", (64, 48)), "", r"1\.png is an array of 48 x 64 x 3 uint8; expected H x W integers"),
        (
            Image.fromarray(np.full((48, 64), 300, np.uint16)),
            "",
            "has the label 300; expected 0 to 254, and 255 to ignore",
        ),
        (Image.new("L", (64, 48), 1), "background\n", "has the label [12]; expected 0 to 0, and 255 to ignore"),
        (None, "", "all pixels of .* have the label 0, or 255, which is ignored"),
    ],
)
def test_invalid_label_images(
    image: Image.Image | None, names: str, sentence: str, tmp_path: Path, photos: Path, labels: Path
) -> None:
    for path in labels.iterdir() if image is None else [labels / "bild ä 1.png"]:
        (image or Image.new("L", (64, 48))).save(path)
    if names:
        (labels / "classes.txt").write_text(names)
    with pytest.raises(UserError, match=sentence):
        prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True))


@pytest.mark.parametrize("seed", range(3))
def test_held_out_label_images_have_each_class_and_no_copy_is_trained_on(
    seed: int, tmp_path: Path, photos: Path, labels: Path
) -> None:
    for number in (3, 6):  # a rare class
        path = labels / f"bild ä {number}.png"
        array = np.array(Image.open(path))
        array[30:40] = 3
        Image.fromarray(array).save(path)
    data = prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True, seed=seed))
    entries = json.loads(data.test.read_text())["images"]
    found = [set(np.unique(Image.open(entry["sem_seg_file_name"])).tolist()) for entry in entries]
    assert set().union(*found) == {0, 1, 2, 3, 255} and not any("are not tested" in note for note in data.notes)

    test_photos, test_labels = tmp_path / "test photos", tmp_path / "test labels"
    for number in (0, 1, 2):  # one is a training image
        for folder, name in ((test_photos, f"bild ä {number}.jpg"), (test_labels, f"bild ä {number}.png")):
            folder.mkdir(exist_ok=True)
            shutil.copy((photos if folder == test_photos else labels) / name, folder / name)
            if number and folder == test_photos:
                Image.new("RGB", (64, 48), (number, seed, 0)).save(folder / name)
    sources = Sources(labels, photos, test_labels, test_photos, semantic=True)
    notes = prepare_semantic(tmp_path / "data", sources).notes
    assert "1 images are in both sets, and not trained on: bild ä 0.jpg" in notes
    assert any("classes have pixels in the training set alone: they are not tested: 3" in note for note in notes)
    with pytest.raises(UserError, match="10 of the 10 test images are training images"):
        prepare_semantic(tmp_path / "data", Sources(labels, photos, labels, photos, semantic=True))
