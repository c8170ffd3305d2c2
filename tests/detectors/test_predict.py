"""Drawn predictions: in the right places, with names, and through the tool."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from moco_plugin.demo.scenes import make_scenes
from moco_plugin.detectors import predict
from moco_plugin.detectors.predict import class_metadata, draw, open_visualizer
from moco_plugin.tools.predict import main
from moco_plugin.transfer.components.datasets import register_scenes
from moco_plugin.transfer.config import fit_device, load_detector_config
from tests.detectors.samples import photo
from tests.helpers.predictions import perfect

CONFIG = "demo/scenes_R_18_FPN_quarter"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of the demo's, untrained, as training would write it."""
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    cfg = load_detector_config(CONFIG, ["SEED", "1"])
    fit_device(cfg)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return path


@pytest.mark.parametrize(
    "name", ["coco_2017_val", "keypoints_coco_2017_val", "voc_2007_test", "cityscapes_fine_sem_seg_val"]
)
def test_what_is_found_is_drawn_where_it_is(tiny_catalog: Path, name: str) -> None:
    entry = next(entry for entry in DatasetCatalog.get(name) if entry.get("annotations") != [])
    with Image.open(entry["file_name"]) as file:
        image = np.asarray(file.convert("RGB"))
    prediction = perfect(entry)
    drawn = draw(image, prediction, MetadataCatalog.get(name))
    height, width = image.shape[:2]
    scale = 640 / max(height, width)
    assert drawn.shape == (round(height * scale), round(width * scale), 3)
    plain = np.asarray(Image.fromarray(image).resize(drawn.shape[1::-1], Image.Resampling.NEAREST))
    changed = np.abs(drawn.astype(int) - plain).max(axis=2) > 30
    again = draw(image, prediction, MetadataCatalog.get(name))
    assert np.array_equal(again, drawn)
    if "sem_seg" in prediction:
        assert changed.mean() > 0.5  # all pixels have a class
        return
    instances = prediction["instances"]
    far = np.ones_like(changed)
    for left, top, right, bottom in (instances.pred_boxes.tensor * scale).round().int().tolist():
        edge = changed[top:bottom, max(0, left - 3) : left + 3].any(axis=1)
        assert edge.mean() > 0.9
        far[max(0, top - 60) : bottom + 60, max(0, left - 200) : right + 200] = False  # names stand outside of boxes
    assert changed[far].mean() < 0.01 if far.any() else True


def test_names_are_known_without_the_data_set() -> None:
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("coco_2017_val",)
    assert class_metadata(cfg).thing_classes[:2] == ["person", "bicycle"]
    assert class_metadata(cfg).stuff_classes == [str(number) for number in range(54)]  # COCO's things have none
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    assert class_metadata(cfg).thing_classes == ["0", "1", "2"]
    cfg.DATASETS.TEST = ("voc_2012_sem_seg_val",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 21
    assert class_metadata(cfg).stuff_classes[15] == "person" and class_metadata(cfg).stuff_colors[15] == [192, 128, 128]


def test_names_of_scenes_come_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.full((2, 28, 28), 255, np.uint8), np.arange(2)
    options = {"num_train": 1, "num_test": 1, "size": 64, "progress": False}
    root = make_scenes(tmp_path / "scenes", source, source, ["a", "b"], **options)
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    register_scenes(root, "drawn")
    cfg = get_cfg()
    cfg.DATASETS.TEST, cfg.MODEL.ROI_HEADS.NUM_CLASSES = ("drawn_test",), 2
    assert class_metadata(cfg).thing_classes == ["a", "b"]


def test_the_tool(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for number, name in enumerate(("one.png", "two.jpg")):
        photo(photos / name, number)
    common = ["--config-file", CONFIG, "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([*common, "--threshold", "0", str(photos)]) == 0
    assert "2 drawn into" in capsys.readouterr().out
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(drawn) == ["one.png", "two.png"]
    with Image.open(tmp_path / "out" / "two.png") as picture, Image.open(photos / "two.jpg") as plain:
        assert picture.size == (640, 480)
        assert np.any(np.asarray(picture) != np.asarray(plain.resize(picture.size, Image.Resampling.NEAREST)))

    assert main([*common, "--threshold", "1", str(photos)]) == 2  # kept
    assert "exists already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == drawn
    (photos / "three.png").write_bytes(b"no image")
    assert main([*common, "--threshold", "1", "--overwrite", str(photos)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 3 images cannot be decoded" in error and "three.png" in error
    assert (tmp_path / "out" / "one.png").read_bytes() != drawn["one.png"]  # nothing scores 1


def test_refusals(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(image)
    content = torch.load(weights, weights_only=True)["model"]
    backbone = {key: value for key, value in content.items() if key.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    run = str(tmp_path / "epoch=9-step=100.ckpt")
    torch.save({"state_dict": {}, "callbacks": {}, "loops": {}}, run)
    photo(tmp_path / "c" / "a.png", 0)
    out = ["--out", str(tmp_path / "out")]
    good = ["--config-file", CONFIG, "--weights", str(weights), *out]
    for arguments, message in (
        ([*good, str(tmp_path / "none.png")], "none.png does not exist"),
        ([*good, "--threshold", "5", image], "a score from 0 to 1, got 5.0"),
        ([*good, image, image.replace("a.png", "c/a.png")], "two of the images would be drawn to"),
        ([*good, "--config-file", "demo/none", image], "no config"),
        ([*good, "--weights", str(tmp_path / "none.pth"), image], "does not exist"),
        ([*good, "--weights", str(tmp_path / "backbone.pth"), image], "of the model's tensors random, "),
        ([*good, "--weights", "", image], "an empty --weights leaves"),
        ([*good, image, "--opts", "MODEL.NONE", "1"], "config override is wrong"),
        (["--weights", run, *out, image], "is of a pre-training run and detects nothing; train a detector from it by"),
    ):
        assert main(arguments) in (1, 2)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert message in line
    assert not (tmp_path / "out").exists()


def test_folders_are_mirrored_and_ids_are_those_of_a_file(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a/1.png", "a/b/1.png", "a/2.jpg", "a/2.png")
    for number, name in enumerate(names):
        photo(tmp_path / "photos" / name, number)
    images = [{"id": 70 + number, "file_name": name.replace("/", "\\")} for number, name in enumerate(names)]
    (tmp_path / "test.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    out = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "found.json"), "--threshold", "0"]
    command = ["--config-file", CONFIG, "--weights", str(weights), *out, str(tmp_path / "photos")]
    assert main([*command[:-1], "--coco", str(tmp_path / "test.json"), command[-1]]) == 0
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == ["a/1.png", "a/2.jpg.png", "a/2.png.png", "a/b/1.png"]
    found = json.loads((tmp_path / "found.json").read_text())
    with contextlib.redirect_stdout(None):
        truth = COCO(str(tmp_path / "test.json"))
        truth.loadRes(str(tmp_path / "found.json"))
    assert {row["image_id"] for row in found} == {70, 71, 72, 73}
    (tmp_path / "test.json").write_text(json.dumps({"images": images[:3], "annotations": [], "categories": []}))
    assert main([*command[:-1], "--overwrite", "--coco", str(tmp_path / "test.json"), command[-1]]) == 2
    assert "test.json does not list 1 of the 4 images: 2.png" in capsys.readouterr().err


def test_an_interrupted_call_goes_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        photo(tmp_path / "photos" / f"{number}.png", number)
    common = ["--config-file", CONFIG, "--weights", str(weights), "--threshold", "0", str(tmp_path / "photos")]

    def outputs(name: str) -> list[str]:
        return ["--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")]

    assert main([*outputs("whole"), *common]) == 0
    drawn: list[int] = []

    def draw_two(*arguments: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(predict, "draw", draw_two)
    assert main([*outputs("out"), *common]) not in (0, 1, 2)
    assert not (tmp_path / "out.json").exists() and len(list((tmp_path / "out").glob("*.png"))) == 2
    with (tmp_path / "out" / predict.JOURNAL).open("a") as file:
        file.write('["2.png", [')  # killed while it wrote
    assert main([*outputs("out"), *common]) == 0
    assert len(drawn) == 4  # two were not drawn again
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    pictures = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole")]
    assert pictures[0] == pictures[1]
    assert main([*outputs("out"), *common]) == 2 and "exists already" in capsys.readouterr().err


def test_names_are_drawn_whole(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    names = ["the name of a class that is longer than the picture is wide, so it is shrunk", "\u732b", "\U00060000"]
    metadata = class_metadata(cfg, {"thing_classes": names})
    said = capsys.readouterr().out
    assert metadata.thing_classes[2] == "#2" and "no font of this machine has" in said
    assert metadata.thing_classes[1] in ("\u732b", "#1")  # as the machine's fonts are
    boxes = Boxes(torch.tensor([[600.0, 2, 638, 40], [2.0, 440, 30, 478], [600, 440, 638, 478]]))
    found = Instances((480, 640), pred_boxes=boxes, scores=torch.ones(3), pred_classes=torch.arange(3))
    image = np.full((480, 640, 3), 255, np.uint8)
    drawn = draw(image, {"instances": found}, metadata)
    dark = (drawn < 100).all(axis=2)  # behind the names
    assert dark.any() and not dark[:, [0, -1]].any(axis=0).all()
    visualizer = open_visualizer(image, metadata)
    visualizer.draw_instance_predictions(found)
    predict._keep_inside(visualizer.output)
    for text in visualizer.output.ax.texts:
        area = text.get_window_extent(visualizer.output.canvas.get_renderer())
        assert area.x0 >= -1 and area.x1 <= 641 and area.y0 >= -1 and area.y1 <= 481
