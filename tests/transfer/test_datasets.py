"""Data sets as they are published: detectron2 reads the tiny ones, and perfect predictions get 100."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from moco_plugin.data.decode import decode_labels
from moco_plugin.errors import UsageError, UserError
from moco_plugin.tools.check_datasets import main as check
from moco_plugin.transfer.components import dataset_files, datasets
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.tasks import TASKS as ALL_TASKS
from moco_plugin.transfer.trainer import build_evaluator
from tests.helpers.predictions import bitmask, perfect, xyxy
from tests.helpers.processes import Tool
from tests.transfer.conftest import catalog_of

TASKS = {name: task.datasets for name, task in ALL_TASKS.items() if not name.startswith("scenes_")}
TESTED = sorted({names[-1] for task, names in TASKS.items() if task != "coco_densepose"})


@pytest.fixture
def copied(tiny_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny data sets once more, to be damaged, under the names of the real ones."""
    converted = shutil.ignore_patterns("SegmentationClassAug")  # by a test that read train_aug
    shutil.copytree(tiny_datasets, tmp_path / "tiny", ignore=converted)
    yield from catalog_of(tmp_path / "tiny", monkeypatch)


def test_every_task_has_its_tiny_data_sets(tiny_catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [task for task in TASKS if task != "coco_densepose"]
    for name in sorted({name for task in whole for name in TASKS[task]}):
        require_dataset(name)
        assert len(DatasetCatalog.get(name)) > 0
    assert check(whole) == 0
    shown = capsys.readouterr().out
    assert "not complete" not in shown and "missing" not in shown
    assert "coco_c4_1x, coco_c4_2x, coco_fpn_1x" in shown  # the same data sets are shown once
    assert "voc_2007_test                        found\n" in shown


@pytest.mark.parametrize("name", TESTED)
def test_perfect_predictions_get_100(
    tiny_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    entries = DatasetCatalog.get(name)
    if name.startswith("cityscapes_fine_instance"):  # judged by the label images, which the polygons bound
        from detectron2.data.datasets.cityscapes import load_cityscapes_instances

        metadata = MetadataCatalog.get(name)
        entries = load_cityscapes_instances(metadata.image_dir, metadata.gt_dir, from_json=False, to_polygons=False)
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for entry in entries:
        evaluator.process([entry], [perfect(entry)])
    results = evaluator.evaluate()
    expected = {
        "voc_2007_test": {"bbox": ["AP", "AP50", "AP75"]},
        "coco_2017_val": {"bbox": ["AP", "AP50", "AP75"], "segm": ["AP", "AP50", "AP75"]},
        "keypoints_coco_2017_val": {"bbox": ["AP"], "keypoints": ["AP", "AP50", "AP75"]},
        "lvis_v0.5_val": {"bbox": ["AP", "AP50"], "segm": ["AP", "AP50", "AP75"]},
        "cityscapes_fine_instance_seg_val": {"segm": ["AP", "AP50"]},
        "cityscapes_fine_sem_seg_val": {"sem_seg": ["IoU"]},
        "voc_2012_sem_seg_val": {"sem_seg": ["mIoU", "pACC"]},
    }
    for task, metrics in expected[name].items():
        assert {key: results[task][key] for key in metrics} == pytest.approx(dict.fromkeys(metrics, 100.0))
    assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])  # nothing in the working directory


def test_coco_keypoints_and_lvis_agree(tiny_catalog: Path) -> None:
    names = ("coco_2017_val", "keypoints_coco_2017_val", "lvis_v0.5_val")
    coco, people, lvis = ({entry["file_name"]: entry for entry in DatasetCatalog.get(name)} for name in names)
    assert coco.keys() == lvis.keys()
    for file, in_coco in coco.items():
        size = in_coco["height"], in_coco["width"]
        assert size == Image.open(file).size[::-1]
        for a, b in zip(in_coco["annotations"], lvis[file]["annotations"], strict=True):
            rows, columns = np.nonzero(bitmask(b, *size))
            assert xyxy(a) == xyxy(b) == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if not a["iscrowd"]:  # those keep holes, which polygons cannot
                assert np.array_equal(bitmask(a, *size), bitmask(b, *size))
    for file, entry in people.items():
        boxes = [xyxy(a) for a in coco[file]["annotations"] if a["category_id"] == 0]
        assert [xyxy(a) for a in entry["annotations"]] == boxes
        for a in entry["annotations"]:
            points = np.array(a["keypoints"]).reshape(17, 3)
            visible = points[points[:, 2] == 2].astype(int)
            assert a["iscrowd"] or bitmask(a, entry["height"], entry["width"])[visible[:, 1], visible[:, 0]].all()


def test_voc_boxes_and_segmentations_agree(tiny_catalog: Path) -> None:
    metadata = MetadataCatalog.get("voc_2012_sem_seg_val")
    detection = {entry["file_name"]: entry["annotations"] for entry in DatasetCatalog.get("voc_2012_val")}
    for entry in DatasetCatalog.get("voc_2012_sem_seg_val"):
        labels = decode_labels(entry["sem_seg_file_name"])
        objects = decode_labels(entry["sem_seg_file_name"].replace("Class", "Object"))
        assert 0 < np.mean(labels == metadata.ignore_label) < 0.3
        for number, a in enumerate(detection[entry["file_name"]], start=1):
            assert set(labels[objects == number]) == {a["category_id"] + 1}
            rows, columns = np.nonzero(objects == number)  # inside the box: the border is void
            left, top, right, bottom = xyxy(a)
            assert left <= columns.min() <= columns.max() < right and top <= rows.min() <= rows.max() < bottom
    assert metadata.stuff_classes[:2] == ["background", "aeroplane"] and len(metadata.stuff_classes) == 21
    assert metadata.stuff_colors[1] == [128, 0, 0] and metadata.stuff_colors[15] == [192, 128, 128]


def test_train_aug_is_voc_train_and_sbd_without_voc_val(copied: Path) -> None:
    name, lists = "voc_2012_sem_seg_train_aug", ("VOC2012/ImageSets/Segmentation", "benchmark_RELEASE/dataset")
    train, val, more, more_val = (
        set((copied / folder / f"{split}.txt").read_text().split()) for folder in lists for split in ("train", "val")
    )
    more |= more_val
    entries = DatasetCatalog.get(name)
    ids = [entry["image_id"] for entry in entries]
    assert ids == sorted((train | more) - val) and len(ids) == 6 + 3 and more & val and more & train
    assert all(Path(entry["file_name"]).is_file() for entry in entries)
    folders = {entry["image_id"]: Path(entry["sem_seg_file_name"]).parent.name for entry in entries}
    assert folders == {key: "SegmentationClass" if key in train else "SegmentationClassAug" for key in ids}
    boxes = {entry["image_id"]: entry["annotations"] for entry in DatasetCatalog.get("voc_2012_trainval")}
    for entry in entries:
        labels = decode_labels(entry["sem_seg_file_name"])
        assert set(np.unique(labels)) - {0, 255} == {a["category_id"] + 1 for a in boxes[entry["image_id"]]}

    # the label images alone, as they are passed around, are as good as SBD's own files
    shutil.rmtree(copied / "benchmark_RELEASE")
    require_dataset(name)
    assert DatasetCatalog.get(name) == entries


def test_broken_labels_of_sbd_are_named(copied: Path) -> None:
    (copied / "benchmark_RELEASE" / "dataset" / "cls" / "2009_000002.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(UserError, match=r"2009_000002\.mat is not a label file of SBD's"):
        DatasetCatalog.get("voc_2012_sem_seg_train_aug")


def test_label_images_need_a_folder_that_can_be_written(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="SegmentationClassAug, which cannot be written; make it writable"):
        DatasetCatalog.get("voc_2012_sem_seg_train_aug")


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("voc_2007_test", "VOC2007/Annotations", r"is missing: .*VOC2007/Annotations; get it from http"),
        ("voc_2012_sem_seg_train_aug", "benchmark_RELEASE", r"benchmark_RELEASE/dataset/train\.txt.*benchmark\.tgz"),
        ("coco_2017_val", "coco/val2017", r"is missing: .*coco/val2017; .*val2017\.zip"),
        ("keypoints_coco_2017_val", "coco/val2017", r"is missing: .*coco/val2017; .*val2017\.zip"),
        ("lvis_v0.5_val", "lvis/lvis_v0.5_val.json", r"lvis_v0\.5_val\.json; get it from https://www\.lvisdataset"),
        ("cityscapes_fine_sem_seg_val", "cityscapes/gtFine/val/*/*labelTrainIds.png", "csCreateTrainIdLabelImgs"),
    ],
)
def test_what_a_data_set_lacks_is_named(copied: Path, name: str, lost: str, message: str) -> None:
    require_dataset(name)
    for path in copied.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message) as error:
        require_dataset(name)
    assert "\n" not in str(error.value)


def test_absent_data_sets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in catalog_of(tmp_path, monkeypatch):
        for task, names in TASKS.items():
            for name in names:
                assert dataset_files.missing_files(name), name
                assert dataset_files.source(name).startswith("http"), name
                if task != "coco_densepose":  # registered by its project
                    with pytest.raises(UserError, match=f"is missing: .*{root}.*DETECTRON2_DATASETS"):
                        require_dataset(name)
        with pytest.raises(UsageError, match="did you mean 'voc_2012_sem_seg_train"):
            require_dataset("voc_2012_sem_seg_trian")


def test_missing_package_is_named(tiny_catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package lvis, which is not installed; run"):
        require_dataset("lvis_v0.5_val")


def test_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MetadataCatalog.data, "odd", MetadataCatalog.get("odd").set(evaluator_type="odd"))
    with pytest.raises(UsageError, match="evaluated as 'odd'; known here are cityscapes_instance"):
        build_evaluator(get_cfg(), "odd")


def test_check_datasets_tool(tiny_datasets: Path, capsys: pytest.CaptureFixture[str], tool: Tool) -> None:
    shown = tool("check_datasets", "--root", tiny_datasets, "lvis", "coco_densepose", code=1).stdout
    assert "lvis_1x, lvis_2x: complete" in shown and "coco_densepose: not complete" in shown
    assert "missing  " in shown and "densepose_train2014.json" in shown and "DENSEPOSE_DATASETS.md" in shown
    assert check(["vocc4"]) == 2 and check(["--root", "/no/such/folder"]) == 2
    errors = capsys.readouterr().err
    assert "no task 'vocc4'; did you mean 'voc_c4'" in errors and "/no/such/folder is not a folder" in errors
