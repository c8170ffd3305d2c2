"""Tiny data sets: deterministic, in the published layouts, with annotations that match the images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from moco_plugin.demo.tiny_cityscapes import write_cityscapes
from moco_plugin.demo.tiny_coco import keypoints, mask_polygons
from moco_plugin.demo.tiny_datasets import make_tiny_datasets
from moco_plugin.demo.tiny_scenes import Looks, compose_split, group_looks, read_photos
from moco_plugin.demo.voc_files import label_maps
from moco_plugin.errors import UserError
from moco_plugin.sources.idx import load_idx_images
from moco_plugin.tools import make_scenes
from moco_plugin.tools.make_tiny_datasets import main
from tests.conftest import TEST, TRAIN

CITYSCAPES = [
    {"id": 7, "trainId": 0, "name": "road", "color": (128, 64, 128), "isthing": 0},
    {"id": 11, "trainId": 2, "name": "building", "color": (70, 70, 70), "isthing": 0},
    {"id": 23, "trainId": 10, "name": "sky", "color": (70, 130, 180), "isthing": 0},
    {"id": 24, "trainId": 11, "name": "person", "color": (220, 20, 60), "isthing": 1},
    {"id": 26, "trainId": 13, "name": "car", "color": (0, 0, 142), "isthing": 1},
]


@pytest.fixture(scope="module")
def looks() -> tuple[Looks, Looks]:
    """Fashion-MNIST's ten classes, for training and for testing."""
    train, test = (group_looks(*load_idx_images(f"{spec}[0:100]")[:2]) for spec in (TRAIN, TEST))
    return train, test


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, looks: tuple[Looks, Looks]) -> Path:
    out = tmp_path_factory.mktemp("data") / "tiny"
    return make_tiny_datasets(out, *looks, num_train=4, num_test=3, size=96, seed=1, progress=False)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(tiny: Path, looks: tuple[Looks, Looks], tmp_path: Path) -> None:
    options = {"num_train": 4, "num_test": 3, "size": 96, "progress": False}
    again = make_tiny_datasets(tmp_path / "again", *looks, seed=1, **options)
    assert files(again) == files(tiny)
    make_tiny_datasets(again, *looks, seed=2, overwrite=True, **options)
    picture = "coco/train2017/000000000001.jpg"
    assert files(again).keys() == files(tiny).keys() and files(again)[picture] != files(tiny)[picture]


def test_layouts_are_the_published_ones(tiny: Path) -> None:
    """So that detectron2 and its evaluators find everything; tests/transfer reads all of it."""
    names = set(files(tiny))
    fine = "cityscapes/gtFine/val/frankfurt/frankfurt_000002_000019_gtFine_"
    assert names >= {fine + kind for kind in ("polygons.json", "instanceIds.png", "labelTrainIds.png", "color.png")}
    assert "VOC2012/SegmentationObject/2008_000003.png" in names
    assert "VOC2012/SegmentationClass/2009_000001.png" not in names  # SBD's to give
    lists = {
        split: (tiny / f"VOC2012/ImageSets/Main/{split}.txt").read_text().split()
        for split in ("train", "val", "trainval")
    }
    assert len(lists["train"]) == 4 + 2 and len(lists["val"]) == 3
    assert lists["trainval"] == sorted(lists["train"] + lists["val"])
    with Image.open(tiny / "VOC2012/SegmentationClass/2007_000001.png") as image:
        colours = np.array(image.getpalette()).reshape(256, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]] and colours[255] == [224, 224, 192]


def test_sbd_contains_segmentations_outlines_and_classes(tiny: Path) -> None:
    sbd = tiny / "benchmark_RELEASE" / "dataset"
    for name in (sbd / "train.txt").read_text().split():
        classes = loadmat(sbd / "cls" / f"{name}.mat")["GTcls"][0, 0]
        instances = loadmat(sbd / "inst" / f"{name}.mat")["GTinst"][0, 0]
        present = set(classes["CategoriesPresent"].ravel().tolist())
        assert present == set(np.unique(classes["Segmentation"]).tolist()) - {0}
        assert classes["Boundaries"].shape == (20, 1)
        for number in range(1, 21):
            outline = classes["Boundaries"][number - 1, 0].toarray() > 0
            assert outline.any() == (number in present)
            assert (classes["Segmentation"][outline] == number).all()
        for number, category in enumerate(instances["Categories"].ravel(), start=1):
            assert set(classes["Segmentation"][instances["Segmentation"] == number]) == {category}


def test_every_class_of_voc_is_in_seven_scenes(looks: tuple[Looks, Looks]) -> None:
    scenes = compose_split(looks[0], 7, 96, [0])
    numbers = [obj.label for scene in scenes for obj in scene.objects]
    assert numbers == list(range(len(numbers))) and len(numbers) >= 21
    seen = {number for scene in scenes for number in np.unique(label_maps(scene.shape, scene.objects, 20)[0])}
    assert seen == set(range(21))


@pytest.mark.parametrize(("kinds", "groups"), [(1, 1), (4, 2), (7, 5), (10, 10), (13, 10)])
def test_looks_divide_the_class_counts(kinds: int, groups: int) -> None:
    images = [np.full((4, 4), number, np.uint8) for number in range(2 * kinds)]
    grouped = group_looks(images, np.arange(2 * kinds) % kinds + 5).groups
    assert len(grouped) == groups and sum(map(len, grouped)) == 2 * kinds
    assert len(group_looks(images, None).groups) == 1


def test_polygons_are_the_masks_without_holes() -> None:
    square = np.zeros((6, 7), bool)
    square[1:5, 2:6] = True
    square[2, 3] = False  # a hole
    square[0, 0] = True  # a part of its own
    assert [np.sort(polygon, 0).tolist() for polygon in mask_polygons(square)] == [
        [[2, 1], [2, 1], [6, 5], [6, 5]],
        [[0, 0], [0, 0], [1, 1], [1, 1]],
    ]
    assert len(mask_polygons(np.eye(2, dtype=bool))) == 2  # pixels that touch at a corner stay apart
    random = np.random.default_rng(0)
    for _ in range(20):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8), dtype=np.uint8))
        mask = np.asarray(coarse.resize((48, 36), Image.Resampling.BICUBIC)) > 128
        polygons = mask_polygons(mask)
        shapes = [polygon.astype(float).ravel().tolist() for polygon in polygons]
        rasterised = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shapes, *mask.shape))).astype(bool)
        assert rasterised[mask].all() and sum(map(cv2.contourArea, polygons)) == rasterised.sum()


def test_cityscapes_labels_are_drawn_as_its_own_scripts_do(looks: tuple[Looks, Looks], tmp_path: Path) -> None:
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation")
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    bands = [category["color"] for category in CITYSCAPES[:3]]
    scenes = compose_split(looks[0], 2, 96, [3], bands)
    write_cityscapes(tmp_path, "train", "ulm", scenes, CITYSCAPES)
    for number in range(2):
        stem = tmp_path / "gtFine/train/ulm" / f"ulm_{number:06d}_000019_gtFine"
        truth = annotation.Annotation()
        truth.fromJsonFile(f"{stem}_polygons.json")
        for kind, expected in (
            ("labelIds", createLabelImage(truth, "ids")),
            ("labelTrainIds", createLabelImage(truth, "trainIds")),
            ("color", createLabelImage(truth, "color")),
            ("instanceIds", createInstanceImage(truth, "ids")),
        ):
            with Image.open(f"{stem}_{kind}.png") as drawn:
                assert np.array_equal(np.asarray(drawn), np.asarray(expected)), kind
                assert drawn.size == (192, 96)
    instances = np.asarray(Image.open(tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"))
    for obj in scenes[1].objects:
        inside = instances[obj.mask]
        values, counts = np.unique(inside[inside >= 1000] // 1000, return_counts=True)
        assert values[counts.argmax()] == (24, 26)[obj.label % 2]
    first = json.loads((tmp_path / "gtFine/train/ulm/ulm_000000_000019_gtFine_polygons.json").read_text())
    labels = [obj["label"] for obj in first["objects"]]
    assert labels[:3] == ["sky", "building", "road"] and labels[-1] == "ego vehicle"
    assert labels[-2] in ("persongroup", "cargroup")


def test_keypoints_lie_in_the_box(looks: tuple[Looks, Looks]) -> None:
    for obj in compose_split(looks[0], 1, 96, [4])[0].objects:
        points = np.array(keypoints(obj)).reshape(17, 3)
        left, top, right, bottom = obj.box
        assert (points[:, 0] >= left).all() and (points[:, 0] < right).all()
        assert (points[:, 1] >= top).all() and (points[:, 1] < bottom).all()
        assert ((points[:, 2] == 2) == obj.mask[points[:, 1], points[:, 0]]).all()


def write_photos(folder: Path) -> None:
    random = np.random.default_rng(0)
    for kind, colour in (("apples", (200, 30, 30)), ("pears", (30, 200, 30))):
        (folder / kind).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGBA", (60 + 20 * number, 50))
            ImageDraw.Draw(image).ellipse((10, 5, 40 + 5 * number, 45), fill=(*colour, 255))
            image.save(folder / kind / f"{number}.png")
        noise = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / kind / "opaque.png")
    (folder / "pears" / "broken.png").write_bytes(b"\x89PNG")


def test_photos_with_transparency_are_objects_too(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    *splits, kinds = read_photos(tmp_path / "photos")
    assert kinds == [folder.name for folder in sorted((tmp_path / "photos").iterdir())]
    train, test = (group_looks(*split) for split in splits)
    assert [len(group) for group in (*train.groups, *test.groups)] == [2, 2, 2, 2]
    assert train.groups[0][0].shape == (41, 31, 4)  # cropped to the opaque part
    scene = compose_split(train, 1, 96, [0])[0]
    for obj in scene.objects:
        colour = scene.image[obj.mask].mean(axis=0)
        assert colour.argmax() == obj.label % 2 and colour.max() > 150
        assert 20 < max(obj.box[2] - obj.box[0], obj.box[3] - obj.box[1]) <= 63
    (tmp_path / "plain" / "kind").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain" / "kind" / "a.png")
    with pytest.raises(UserError, match="PNG files with transparency"):
        read_photos(tmp_path / "plain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("precious --images photos --overwrite", "contains no tiny data sets, so it was kept"),
        ("new --images photos --train x", "give either --train and --test, or --images"),
        ("new --train x", "give either"),
        ("new --images photos --num-train 3", "4 training and 2 test images or more"),
        ("new --images photos --size 40", "too small for the objects"),
        ("new --images none", "found nothing"),
    ],
)
def test_refusals(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    (tmp_path / "precious").mkdir()
    assert main(arguments.split()) in (1, 2)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "precious"]


def test_photos_make_scenes(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    given = f"{tmp_path}/made --photos {tmp_path}/photos --num-train 3 --num-test 0 --size 80".split()
    assert make_scenes.main(given) == 0
    train, test = (
        json.loads((tmp_path / f"made/annotations/instances_{n}.json").read_text()) for n in ("train", "test")
    )
    assert [category["name"] for category in train["categories"]] == ["apples", "pears"]
    assert len(train["images"]) == 3 and train["annotations"] and not test["images"]
    assert make_scenes.main([*given, "--overwrite", "--train", TRAIN]) == 2


def test_the_tool(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    small = f"{tmp_path}/made --images {tmp_path}/photos --num-train 4 --num-test 2 --size 96".split()
    assert main(small) == 0
    instances = json.loads((tmp_path / "made/coco/annotations/instances_val2017.json").read_text())
    assert len(instances["images"]) == 2 and len(instances["categories"]) == 80
    assert main(small) == 2
