"""Detection on own data: formats, what is left out or refused, the recipe, and the comparison through the tools."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from moco_plugin.detectors.dataset import Sources, prepare
from moco_plugin.detectors.formats import read_detection_data
from moco_plugin.detectors.recipe import choose_recipe
from moco_plugin.detectors.semantic import prepare_semantic
from moco_plugin.errors import UsageError, UserError
from moco_plugin.transfer.components.datasets import keypoint_metadata, require_dataset
from moco_plugin.transfer.mapper import Mapper
from tests.helpers.processes import Tool

Content = dict[str, Any]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (64, 48), (25 * number, 90, 200 - 9 * number)).save(folder / f"bild ä {number}.jpg")
    return folder


def coco(path: Path, photos: Path, change: Callable[[Content], Any] = lambda content: None) -> Path:
    """Write a COCO file of ids that are not contiguous, with polygons, run lengths and a crowd."""
    images = [
        {"id": 100 + 7 * number, "file_name": file.name, "width": 64, "height": 48}
        for number, file in enumerate(sorted(photos.iterdir()))
    ]
    annotations: list[Content] = []
    for number, image in enumerate(images):
        polygon = [[8, 8, 24, 8, 24, 28, 8, 28]]
        runs = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}
        annotations.append(
            {
                "id": 5 * number + 1,
                "image_id": image["id"],
                "category_id": (3, 17)[number % 2],
                "bbox": [8, 8, 16, 20],
                "area": 320,
                "iscrowd": 0,
                "segmentation": polygon if number % 3 else runs,
            }
        )
    annotations.append({**annotations[0], "id": 900, "iscrowd": 1, "segmentation": runs})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 17, "name": "hot dog"}],
    }
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_coco_files_are_split_and_registered_by_their_path(tmp_path: Path, photos: Path) -> None:
    data = prepare(tmp_path / "data", Sources(coco(tmp_path / "train.json", photos), photos))
    assert data.classes == ("cat", "hot dog") and data.masks and (data.images, data.test_images) == (8, 2)
    assert data.notes == ("test set: 2 of the 10 images, held out by seed 0",)
    for name, count in zip(data.names, (8, 2), strict=True):
        require_dataset(name)
        entries = DatasetCatalog.get(name)
        assert len(entries) == count and all(Path(entry["file_name"]).parent == photos for entry in entries)
        assert {row["category_id"] for entry in entries for row in entry["annotations"]} <= {0, 1}
    again = prepare(tmp_path / "again", Sources(tmp_path / "train.json", photos))
    assert again.test.read_text() == data.test.read_text()
    other = prepare(tmp_path / "other", Sources(tmp_path / "train.json", photos, seed=1))
    assert other.test.read_text() != data.test.read_text()


def test_what_cannot_be_trained_on_is_left_out_and_counted(tmp_path: Path, photos: Path) -> None:
    def spoil(content: Content) -> None:
        content["images"].append({"id": 1, "file_name": "gone.jpg", "width": 9, "height": 9})
        content["annotations"] += [
            {**content["annotations"][0], "id": 901, "bbox": [70, 8, 5, 5]},
            {**content["annotations"][0], "id": 902, "bbox": [8, 8, 0, 5]},
            {**content["annotations"][1], "id": 903, "bbox": [50, 40, 100, 100], "segmentation": []},
        ]
        content["categories"].append({"id": 40, "name": "zebra"})

    data = prepare(tmp_path / "data", Sources(coco(tmp_path / "train.json", photos, spoil), photos))
    assert data.notes[0] == "left out 1 of 11 images, which are missing: gone.jpg"
    assert data.notes[1] == "left out 2 boxes of less than a pixel, or outside of the image, in bild ä 0.jpg"
    assert data.notes[2] == "1 of 3 classes have no object in train.json: zebra"
    assert "1 of 11 objects have no mask, so only boxes are trained" in data.notes[4] and not data.masks
    boxes = [row["bbox"] for file in (data.train, data.test) for row in json.loads(file.read_text())["annotations"]]
    assert [50, 40, 14, 8] in boxes and len(boxes) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append({**c["images"][0]}), "several images of the id 100"),
        (lambda c: c["annotations"][0].update(image_id=4), "annotation 1 of 11 is of an image that the file does not"),
        (lambda c: c["annotations"][0].update(category_id=4), "annotation 1 of 11 is of a category"),
        (lambda c: c["images"][0].update(width=10), "bild ä 0.jpg has 10 x 48 pixels; it has 64 x 48"),
        (lambda c: c.update(images=c["images"][:1], annotations=c["annotations"][:1]), "lists 1 images"),
        (lambda c: c.update(annotations=[]), "has no object to train on"),
        (lambda c: [i.update(file_name="none.jpg") for i in c["images"]], r"of which 10 are missing \(none.jpg\)"),
        (lambda c: c.pop("categories"), "is not a COCO file"),
    ],
)
def test_data_that_cannot_be_right(
    tmp_path: Path, photos: Path, change: Callable[[Content], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", Sources(coco(tmp_path / "train.json", photos, change), photos))
    assert not (tmp_path / "data").exists()


def test_test_files_have_the_classes_of_the_training_file(tmp_path: Path, photos: Path) -> None:
    train = coco(tmp_path / "train.json", photos)
    other_ids = coco(tmp_path / "a.json", photos, lambda c: _renumber(c))
    data = prepare(tmp_path / "data", Sources(train, photos, other_ids, photos))
    assert {row["category_id"] for row in json.loads(data.test.read_text())["annotations"]} == {3, 17}
    other = coco(tmp_path / "b.json", photos, lambda c: c["categories"][0].update(name="dog"))
    with pytest.raises(UserError, match=r"b.json has 1 classes that .*train.json has not: dog"):
        prepare(tmp_path / "data", Sources(train, photos, other, photos))


def _renumber(content: Content) -> None:
    for row in content["categories"]:
        row["id"] += 1
    for row in content["annotations"]:
        row["category_id"] += 1


def test_voc_and_yolo_folders(tmp_path: Path, photos: Path) -> None:
    voc = tmp_path / "voc"
    (voc / "Annotations").mkdir(parents=True)
    (voc / "JPEGImages").symlink_to(photos)
    yolo = tmp_path / "yolo"
    (yolo / "labels").mkdir(parents=True)
    (yolo / "images").symlink_to(photos)
    (yolo / "data.yaml").write_text("names: {0: cat, 1: hot dog}\n")
    for file in photos.iterdir():
        (voc / "Annotations" / f"{file.stem}.xml").write_text(
            f"<annotation><filename>{file.name}</filename><object><name>cat</name><difficult>0</difficult><bndbox>"
            "<xmin>9</xmin><ymin>9</ymin><xmax>24</xmax><ymax>28</ymax></bndbox></object></annotation>"
        )
        (yolo / "labels" / f"{file.stem}.txt").write_text("1 0.25 0.375 0.25 0.416667\n0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    found = read_detection_data(voc)
    assert len(found["images"]) == 10 and found["annotations"][0]["bbox"] == [8, 8, 16, 20]
    data = prepare(tmp_path / "data", Sources(yolo))
    first, second = json.loads(data.train.read_text())["annotations"][:2]
    assert first["bbox"] == pytest.approx([8, 8, 16, 20], abs=1e-3) and data.classes == ("cat", "hot dog")
    assert second["segmentation"] == [pytest.approx([6.4, 4.8, 32, 4.8, 32, 24])]
    (yolo / "labels" / "bild ä 0.txt").write_text("0 0.1 0.1\n")
    with pytest.raises(UserError, match=r"bild ä 0.txt has the line '0 0.1 0.1'; expected a class and four numbers"):
        read_detection_data(yolo)
    (voc / "Annotations" / "bild ä 0.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match="is not a VOC annotation file"):
        read_detection_data(voc)
    with pytest.raises(UserError, match=r"is not detection data; expected a COCO .json file"):
        read_detection_data(photos)


def test_recipe_follows_the_data(tmp_path: Path, photos: Path) -> None:
    data = prepare(tmp_path / "data", Sources(coco(tmp_path / "train.json", photos), photos))
    recipe = choose_recipe("fpn", data, None, 1)
    assert recipe.settings["MODEL.ROI_HEADS.NUM_CLASSES"] == 2 and recipe.settings["MODEL.MASK_ON"] is True
    assert recipe.settings["SOLVER.MAX_ITER"] == 300 and recipe.settings["SOLVER.BASE_LR"] == 0.0025
    assert "8 training images, 2 classes: cat, hot dog" in recipe.sentences[0]
    retina = choose_recipe("retinanet", data, None, 1)
    assert "MODEL.RETINANET.NUM_CLASSES" in retina.settings and len(retina.task.metrics) == 3
    assert choose_recipe("timm:convnext_tiny", data, None, 1).settings["MODEL.TIMM.NAME"] == "convnext_tiny"
    with pytest.raises(UsageError, match=r"--model is 'fpm'; expected fpn, c4.*did you mean 'fpn'"):
        choose_recipe("fpm", data, None, 1)


def test_comparison_through_the_tools(tmp_path: Path, photos: Path, tool: Tool) -> None:
    """From photos to the comparison's table, and pictures from the model file alone."""
    small = ["data.image_size=32", "schedule.steps=2", "schedule.interval=step", "trainer.accelerator=cpu"]
    tool("pretrain", "method=moco", f"data.root={photos}", *small, f"out={tmp_path / 'run'}")
    weights, out = tmp_path / "run/checkpoints/last.ckpt", tmp_path / "out"
    data = ["--train-json", coco(tmp_path / "train.json", photos), "--train-images", photos]
    short = "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64".split()
    short += ["TEST.PRECISE_BN.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0", "TEST.DETECTIONS_PER_IMAGE", "3"]
    command = [*data, "--weights", weights, "--compare", "--supervised", weights, "--trials", "1", "--out", out]
    shown = tool("transfer", *command, *short).stdout
    assert "8 training images, 2 classes: cat, hot dog" in shown and "not compared; give --continued" in shown
    assert "3 trainings follow, and the eta shown is that of one\n" in shown
    rows = [line.split("  ")[0] for line in shown.splitlines()]
    assert {"random weights", "supervised (ImageNet)", "MoCo on your images"} <= set(rows)
    page = (out / "comparison.html").read_text()
    assert "Does pre-training pay?" in page and "There are only 2 test images" in page
    model = out / "moco/trial_1/model_final.pth"
    found = tmp_path / "found.json"
    pictures = ["--out", tmp_path / "pictures", "--json", found, "--threshold", "0.01", photos / "bild ä 3.jpg"]
    tool("predict", "--weights", model, *pictures)
    assert (tmp_path / "pictures/bild ä 3.png").is_file()
    assert {row["category_id"] for row in json.loads(found.read_text())} <= {3, 17}
    refused = tool("transfer", *data, "--weights", weights, "--model", "c4", "--out", tmp_path / "c4", code=2).stderr
    assert "holds a resnet18, which --model c4 cannot be built on; choose --model fpn" in refused


SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) TEST.PRECISE_BN.ENABLED False DATALOADER.NUM_WORKERS 1".split()


def with_keypoints(content: Content) -> None:
    for row in content["annotations"]:
        row["keypoints"] = [10, 10, 2, 20, 10, 2, 15, 20, 1]
    for row in content["categories"]:
        row["keypoints"], row["skeleton"] = ["left_ear", "right_ear", "tail"], [[1, 3], [2, 3]]


def test_keypoints_are_trained(tmp_path: Path, photos: Path, tool: Tool) -> None:
    file = coco(tmp_path / "train.json", photos, with_keypoints)
    out = tmp_path / "out"
    small = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "3"]
    data = ["--train-json", file, "--train-images", photos, "--out", out]
    shown = tool("transfer", *data, *SHORT, *small, *sizes).stdout
    assert "boxes and masks and 3 keypoints" in shown and "keypoint AP50" in shown
    metadata = keypoint_metadata(json.loads((out / "data" / "train.json").read_text()))
    assert metadata["keypoint_flip_map"] == [("left_ear", "right_ear")]
    assert [rule[:2] for rule in metadata["keypoint_connection_rules"]] == [("left_ear", "tail"), ("right_ear", "tail")]
    found = tmp_path / "found.json"
    model = out / "trial_1" / "model_final.pth"
    pictures = ["--out", tmp_path / "pictures", "--json", found, "--threshold", "0.01", photos / "bild ä 3.jpg"]
    tool("predict", "--weights", model, *pictures)
    assert all(len(row["keypoints"]) == 9 for row in json.loads(found.read_text()))

    def one_without(content: Content) -> None:
        with_keypoints(content)
        del content["annotations"][0]["keypoints"]

    prepared = prepare(tmp_path / "data", Sources(coco(tmp_path / "some.json", photos, one_without), photos))
    assert not prepared.keypoints and "1 of 10 objects have not 3 of them" in prepared.notes[-1]


@pytest.fixture
def labels(tmp_path: Path, photos: Path) -> Path:
    """Label images of the photos: of a palette or grey, with ignored pixels."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for number, photo in enumerate(sorted(photos.iterdir())):
        array = np.zeros((48, 64), np.uint8)
        array[8:28, 8:24], array[:2] = 1 + number % 2, 255
        image = Image.fromarray(array)
        if number % 2:
            image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + 253 * [0, 0, 0])
        image.save(folder / f"{photo.stem}.png")
    return folder


def test_label_images_are_trained(tmp_path: Path, photos: Path, labels: Path, tool: Tool) -> None:
    (labels / "classes.txt").write_text("background\ncät\ndog\n")
    out = tmp_path / "out"
    small = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.RES5_DILATION", "1"]
    data = ["--train-labels", labels, "--train-images", photos, "--out", out]
    shown = tool("transfer", *data, *SHORT, *small, "INPUT.CROP.SIZE", "(33, 33)").stdout
    assert "8 training images, 3 classes: background, cät, dog" in shown and "mIoU" in shown
    tool("predict", "--weights", out / "trial_1" / "model_final.pth", "--out", tmp_path / "pictures", photos)
    assert len(list((tmp_path / "pictures").iterdir())) == 10


@pytest.mark.parametrize("kind", ["1 bit", "16 bits", "mask", "one name", "turned", "turned, labels as stored"])
def test_label_images_of_other_kinds(kind: str, tmp_path: Path, photos: Path, labels: Path) -> None:
    """They are trained and tested as the numbers that they mean, upright."""
    expected = []
    for photo in sorted(photos.iterdir()):
        array = np.zeros((48, 64), np.uint8)
        array[8:28, 8:24] = 1
        shown = array
        if kind.startswith("turned"):
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.open(photo).convert("RGB").save(photo, "JPEG", exif=exif)
            shown = np.rot90(array, -1)
        file = np.ascontiguousarray(array if kind.endswith("stored") else shown)
        picture = Image.fromarray(file * (255 if kind in ("mask", "one name") else 1))
        picture = Image.fromarray(file.astype(bool)) if kind == "1 bit" else picture
        picture = Image.fromarray(file.astype(np.uint16)) if kind == "16 bits" else picture
        picture.save(labels / f"{photo.stem}.png")
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


def test_label_images_that_cannot_be_right(tmp_path: Path, photos: Path, labels: Path) -> None:
    data = prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True))
    assert data.classes == ("0", "1", "2") and (data.images, data.test_images) == (8, 2)
    (labels / "bild ä 0.png").unlink()
    Image.new("L", (64, 48)).save(labels / "other.png")
    notes = prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True)).notes
    assert "left out 1 label images without an image: other.png" in notes
    assert "left out 1 images without a label image: bild ä 0" in notes

    def refused(image: Image.Image, sentence: str) -> None:
        image.save(labels / "bild ä 1.png")
        with pytest.raises(UserError, match=sentence):
            prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True))

    refused(Image.new("L", (32, 48)), r"1\.png has 32 x 48 pixels, and its image 64 x 48")
    refused(Image.new("RGB", (64, 48)), r"1\.png is of mode RGB; expected one whole number per pixel")
    refused(Image.fromarray(np.full((48, 64), 300, np.uint16)), r"has the label 300; expected 0 to 254")
    (labels / "classes.txt").write_text("background\n")
    refused(Image.new("L", (64, 48)), r"has the label [12], and there are 1 names")
    (labels / "classes.txt").unlink()
    for path in labels.iterdir():
        Image.new("L", (64, 48)).save(path)
    with pytest.raises(UserError, match=r"all pixels of .* have the label 0, or 255, which is ignored"):
        prepare_semantic(tmp_path / "data", Sources(labels, photos, semantic=True))
