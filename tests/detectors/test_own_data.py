"""Detection on own data: preparation, recipe, and the comparison through the tools."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from pycocotools.mask import decode, frPyObjects

from moco_plugin.data.decode import decode as decode_image
from moco_plugin.detectors.recipe import choose_recipe
from moco_plugin.errors import UsageError, UserError
from moco_plugin.transfer.components.coco import read_coco
from moco_plugin.transfer.components.datasets import keypoint_metadata, require_dataset
from moco_plugin.transfer.components.mask_head import PartialMaskHead
from moco_plugin.transfer.mapper import Mapper
from moco_plugin.transfer.trainer import build_evaluator
from tests.detectors.own_coco import Content, Prepared, coco
from tests.detectors.samples import photo
from tests.helpers.processes import Tool


def test_coco_files_are_split_and_registered_by_their_path(photos: Path, prepared: Prepared) -> None:
    data = prepared()
    assert data.classes == ("cat", "hot dog") and data.masks and (data.images, data.test_images) == (8, 2)
    assert data.notes == (
        "train.json is read as a COCO file",
        "1 of 11 objects are crowds (iscrowd): not trained on",
        "test set: 2 of the 10 images, held out by seed 0, a share of each class",
    )
    for name, count in zip(data.names, (8, 2), strict=True):
        require_dataset(name)
        entries = DatasetCatalog.get(name)
        assert len(entries) == count and all(Path(entry["file_name"]).parent == photos for entry in entries)
        assert {row["category_id"] for entry in entries for row in entry["annotations"]} <= {0, 1}
    first, again, other = (prepared(seed=seed).test.read_text() for seed in (0, 0, 1))
    assert first == again != other


def test_invalid_objects_are_left_out_and_counted(prepared: Prepared) -> None:
    def spoil(content: Content) -> None:
        content["images"].append({"id": 1, "file_name": "gone.jpg", "width": 9, "height": 9})
        first = content["annotations"][0]
        content["annotations"] += [
            {**first, "id": 901, "bbox": [70, 8, 5, 5], "segmentation": []},
            {**first, "id": 902, "bbox": [8, 8, 0, 5], "segmentation": None},
            {**content["annotations"][1], "id": 903, "bbox": [50, 40, 100, 100], "segmentation": []},
            {**first, "id": 904, "segmentation": [[1, 2, 3, 4]]},
            *({**first, "id": number} for number in range(1000, 1030)),
        ]
        content["categories"].append({"id": 40, "name": "zebra"})

    data = prepared(spoil)
    assert "left out 1 of 11 images, which are missing: gone.jpg" in data.notes
    for text in (
        "2 boxes of less than a pixel, or outside of their image (first annotation 12 of",
        "; 1 objects with an invalid mask",
        "1 of 3 classes have no object: zebra",
        "1 of 41 objects have no mask: they are trained as boxes",
    ):
        assert any(text in note for note in data.notes)
    boxes = [row["bbox"] for file in (data.train, data.test) for row in json.loads(file.read_text())["annotations"]]
    assert [50, 40, 14, 8] in boxes and len(boxes) == 42


def test_broken_images_are_left_out_up_to_a_share(photos: Path, prepared: Prepared) -> None:
    for number, path in enumerate(sorted(photos.iterdir())):
        path.write_bytes(path.read_bytes()[:400])
        if number == 1:
            data = prepared()
            assert data.images + data.test_images == 8
            assert any("left out 2 of 10 images: bild ä 0.jpg cannot be decoded" in note for note in data.notes)
    with pytest.raises(UserError, match=r"10 of 10 images of .* cannot be used: bild ä 0.jpg cannot be decoded"):
        prepared()


def test_the_training_set_is_no_test_set(tmp_path: Path, photos: Path, prepared: Prepared) -> None:
    file, copy = coco(tmp_path / "test.json", photos), Path(shutil.copytree(photos, tmp_path / "copy"))
    for images in (photos, copy):
        with pytest.raises(UserError, match=r"10 of the 10 test images are training images \(bild ä 0.jpg, "):
            prepared(test=file, test_images=images)
    for number in range(2, 10):
        photo(copy / f"bild ä {number}.jpg", 100 + number)
    data = prepared(test=file, test_images=copy)
    assert (data.images, data.test_images) == (8, 10)
    assert "2 images are in both sets, and not trained on: bild ä 0.jpg, bild ä 1.jpg" in data.notes


def test_each_class_has_its_share_in_the_held_out_images(prepared: Prepared) -> None:
    def rare(content: Content) -> None:
        content["categories"] += [{"id": 20, "name": "owl"}, {"id": 21, "name": "yak"}]
        for number, kind in ((4, 20), (7, 20), (9, 21)):
            content["annotations"].append(
                {**content["annotations"][number], "id": 900 + kind + number, "category_id": kind}
            )

    for seed in range(8):
        data = prepared(rare, seed=seed)
        parts = [json.loads(path.read_text())["annotations"] for path in (data.train, data.test)]
        kinds = [Counter(row["category_id"] for row in part if not row["iscrowd"]) for part in parts]
        assert kinds[0][20] == kinds[1][20] == 1 and kinds[0][21] == 1
        assert "1 of 4 classes have objects in the training set alone: they are not tested: yak" in data.notes


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_annotations_of_images_that_exif_turns(photos: Path, orientation: int, prepared: Prepared) -> None:
    """Tools that do not turn an image state its stored size; their annotations are then turned with the image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.zeros((48, 64, 3), np.uint8)
    array[8:28, 8:24] = 255
    for number, path in enumerate(photos.iterdir()):
        array[40:, 40:] = number
        Image.fromarray(array).save(path, exif=exif)
    content = json.loads(prepared().train.read_text())
    files = {row["id"]: row for row in content["images"]}
    for row in content["annotations"]:
        image = files[row["image_id"]]
        seen = np.asarray(decode_image(Path(image["file_name"]), ""))[:, :, 0] > 128
        assert seen.shape == (image["height"], image["width"]) == ((48, 64) if orientation == 3 else (64, 48))
        if orientation == 3:  # the size does not tell; tools that show images turn them
            continue
        left, top, width, height = map(round, row["bbox"])
        assert seen[top : top + height, left : left + width].mean() > 0.9 and (width, height) == (20, 16)
        assert seen.sum() == pytest.approx(320, rel=0.1)
        if isinstance(row["segmentation"], dict) and not row["iscrowd"]:
            mask = decode(frPyObjects(row["segmentation"], *row["segmentation"]["size"]))
            assert mask.shape == seen.shape and mask.sum() == 48 * 5


def test_test_files_have_the_classes_of_the_training_file(tmp_path: Path, photos: Path, prepared: Prepared) -> None:
    def renumber(content: Content) -> None:
        for row in content["categories"]:
            row["id"] += 1
        for row in content["annotations"]:
            row["category_id"] += 1

    others = tmp_path / "others"
    for number in range(10):
        photo(others / f"bild ä {number}.jpg", 100 + number)
    data = prepared(test=coco(tmp_path / "a.json", photos, renumber), test_images=others)
    assert {row["category_id"] for row in json.loads(data.test.read_text())["annotations"]} == {3, 17}
    other = coco(tmp_path / "b.json", photos, lambda c: c["categories"][0].update(name="dog"))
    with pytest.raises(UserError, match=r"b.json has 1 classes that .*train.json does not have: dog"):
        prepared(test=other, test_images=others)


def test_all_run_lengths_of_crowds_are_objects(prepared: Prepared) -> None:
    def brush(content: Content) -> None:
        for row in content["annotations"]:
            row["iscrowd"] = int(isinstance(row["segmentation"], dict))

    data = prepared(brush)
    assert any(note.startswith("all 5 run-length masks are marked as crowds") for note in data.notes)
    assert not any(row["iscrowd"] for row in json.loads(data.train.read_text())["annotations"])


def test_the_limit_of_detections_follows_from_the_data(prepared: Prepared) -> None:
    def crowded(content: Content) -> None:
        content["annotations"] += [{**content["annotations"][1], "id": 1000 + n} for n in range(199)]

    data = prepared(crowded)
    recipe = choose_recipe("fpn", data, None, 1)
    assert recipe.settings["TEST.DETECTIONS_PER_IMAGE"] == 300
    assert recipe.settings["MODEL.RPN.POST_NMS_TOPK_TEST"] == 1000
    assert any("up to 200 objects in an image: up to 300 are looked for" in sentence for sentence in recipe.sentences)
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    require_dataset(data.names[1])
    assert build_evaluator(cfg, data.names[1])._max_dets_per_image == [1, 10, 300]


NOT_WRITABLE = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # detectron2's


@NOT_WRITABLE
def test_training_test_and_predictions_see_one_picture(photos: Path, prepared: Prepared) -> None:
    """Of 16 bits, with a range, in detectron2's training and test loaders as in the predictions."""
    for number, path in enumerate(sorted(photos.iterdir())):
        path.unlink()
        Image.fromarray(np.full((48, 64), 1000 + 100 * number, np.uint16)).save(path.with_suffix(".png"))
    data = prepared(value_range=(1000, 2000))
    recipe = choose_recipe("fpn", data, None, 1)
    assert recipe.settings["INPUT.VALUE_RANGE"] == [1000, 2000]
    cfg = get_cfg()
    cfg.merge_from_list([part for pair in recipe.settings.items() for part in pair])
    for train, name in zip((True, False), data.names, strict=True):
        require_dataset(name)
        mapper = Mapper(cfg, train)
        for entry in DatasetCatalog.get(name):
            value = round((int(Path(entry["file_name"]).stem[-1]) * 100) * 255 / 1000)
            image = mapper(entry)["image"]
            assert image.float().mean().item() == pytest.approx(value, abs=0.6) and image.shape[0] == 3
            assert np.asarray(decode_image(Path(entry["file_name"]), "", cfg.INPUT.VALUE_RANGE)).mean() == value


@NOT_WRITABLE
def test_objects_without_a_mask_add_nothing_to_the_loss_of_masks(prepared: Prepared) -> None:
    def some(content: Content) -> None:
        for row in content["annotations"][::2]:
            row["segmentation"] = []

    data = prepared(some)
    settings = choose_recipe("fpn", data, None, 1).settings
    assert settings["MODEL.ROI_MASK_HEAD.NAME"] == "PartialMaskHead" and settings["MODEL.MASK_ON"]
    cfg = get_cfg()
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    require_dataset(data.names[0])
    entries = DatasetCatalog.get(data.names[0])
    mapped = [Mapper(cfg, True)(entry)["instances"] for entry in entries]
    assert [part.has("gt_has_mask") for part in mapped] == ["segmentation" not in e["annotations"][0] for e in entries]
    assert not any(part.gt_has_mask.any() for part in mapped if part.has("gt_has_mask"))
    torch.manual_seed(0)
    head = PartialMaskHead(ShapeSpec(channels=4, height=7, width=7), num_classes=2, conv_dims=[4, 4])
    boxes, masks = Boxes(torch.tensor([[8.0, 8, 24, 28]] * 2)), BitMasks(torch.ones(2, 48, 64))
    image = Instances((48, 64), proposal_boxes=boxes, gt_classes=torch.zeros(2, dtype=torch.long), gt_masks=masks)
    image.gt_has_mask = torch.tensor([True, False])
    features = torch.randn(2, 4, 7, 7)
    with EventStorage():
        loss = head(features, [image])["loss_mask"]
        image.gt_has_mask[:] = True
        assert torch.equal(loss, head(features[:1], [image[:1]])["loss_mask"])
        image.gt_has_mask[:] = False
        assert head(features, [image])["loss_mask"] == 0


def test_recipe_follows_the_data(prepared: Prepared) -> None:
    data = prepared()
    recipe = choose_recipe("fpn", data, None, 1)
    assert recipe.settings["MODEL.ROI_HEADS.NUM_CLASSES"] == 2 and recipe.settings["MODEL.MASK_ON"] is True
    assert recipe.settings["SOLVER.MAX_ITER"] == 300 and recipe.settings["SOLVER.BASE_LR"] == 0.0025
    assert recipe.settings["MODEL.RPN.POST_NMS_TOPK_TEST"] == 300
    assert "8 training images, 2 classes: cat, hot dog" in recipe.sentences[0]
    assert len(recipe.task.metrics) == 6
    assert len(choose_recipe("fpn", data, None, 1, ["MODEL.MASK_ON", "False"]).task.metrics) == 3
    retina = choose_recipe("retinanet", data, None, 1)
    assert "MODEL.RETINANET.NUM_CLASSES" in retina.settings and len(retina.task.metrics) == 3
    assert choose_recipe("timm:convnext_tiny", data, None, 1).settings["MODEL.TIMM.NAME"] == "convnext_tiny"
    with pytest.raises(UsageError, match=r"--model is 'fpm'; expected fpn, c4.*did you mean 'fpn'"):
        choose_recipe("fpm", data, None, 1)


SHORT = (
    "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) TEST.PRECISE_BN.ENABLED False DATALOADER.NUM_WORKERS 1 INPUT.MIN_SIZE_TRAIN (64,) "
    "INPUT.MIN_SIZE_TEST 64 TEST.DETECTIONS_PER_IMAGE 3"
).split()


def test_comparison_through_the_tools(tmp_path: Path, photos: Path, tool: Tool) -> None:
    """From photos to the comparison's table, and pictures from the model file alone."""
    small = ["data.image_size=32", "schedule.steps=2", "schedule.interval=step", "trainer.accelerator=cpu"]
    tool("pretrain", "method=moco", f"data.root={photos}", *small, f"out={tmp_path / 'run'}")
    weights, out = tmp_path / "run/checkpoints/last.ckpt", tmp_path / "out"
    data = ["--train-json", coco(tmp_path / "train.json", photos), "--train-images", photos]
    command = [*data, "--weights", weights, "--compare", "--supervised", weights, "--trials", "1", "--out", out]
    shown = tool("transfer", *command, *SHORT).stdout
    assert "8 training images, 2 classes: cat, hot dog" in shown and "not compared; give --continued" in shown
    assert "batch 2, learning rate 0.0025, 2 steps, 0.5 epochs; as typed: SOLVER.MAX_ITER 2, SOLVER.STEPS" in shown
    assert re.search(r"\n3 trainings of 2 steps follow, about .* in all \(.* s a step, .* s a test image\)", shown)
    verdict = "MoCo on your images against random weights: cannot tell from 1 trial and 2 test images"
    assert verdict in shown or "No start reaches any box AP" in shown
    rows = [line.split("  ")[0] for line in shown.splitlines()]
    assert {"random weights", "supervised (ImageNet)", "MoCo on your images"} <= set(rows)
    page = (out / "comparison.html").read_text()
    assert "Does pre-training pay?" in page and "2 steps, 0.5 epochs; as typed" in page
    model = out / "moco/trial_1/model_final.pth"
    found = tmp_path / "found.json"
    pictures = ["--out", tmp_path / "pictures", "--json", found, "--threshold", "0.01", photos / "bild ä 3.jpg"]
    tool("predict", "--weights", model, *pictures)
    assert (tmp_path / "pictures/bild ä 3.png").is_file()
    assert {row["category_id"] for row in json.loads(found.read_text())} <= {3, 17}
    refused = tool("transfer", *data, "--weights", weights, "--model", "c4", "--out", tmp_path / "c4", code=2).stderr
    assert "contains a resnet18, which does not fit --model c4; choose --model fpn" in refused
    both = ["--weights", weights, "--init", "random", "--out", tmp_path / "random"]
    refused = tool("transfer", *data, *both, code=2).stderr
    assert f"starts without weights, and --weights is {weights}; leave one out" in refused


def with_keypoints(content: Content) -> None:
    for row in content["annotations"]:
        row["keypoints"] = [10, 10, 2, 20, 10, 2, 15, 20, 1]
    for row in content["categories"]:
        row["keypoints"], row["skeleton"] = ["left_ear", "right_ear", "tail"], [[1, 3], [2, 3]]


def test_keypoints_are_trained(tmp_path: Path, photos: Path, tool: Tool, prepared: Prepared) -> None:
    file = coco(tmp_path / "train.json", photos, with_keypoints)
    out = tmp_path / "out"
    small = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    data = ["--train-json", file, "--train-images", photos, "--out", out]
    shown = tool("transfer", *data, *SHORT, *small).stdout
    assert "boxes and masks and 3 keypoints" in shown and "keypoint AP50" in shown
    metadata = keypoint_metadata(read_coco(out / "data" / "train.json"))
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

    own = prepared(one_without)
    assert own.keypoints == 3 and "1 of 11 objects do not have 3 keypoints: they are trained without" in own.notes
