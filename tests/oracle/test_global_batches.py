"""Detectors on one process and on several: the same images in the same batches, scaled, flipped and labelled alike."""

import functools
import json
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from moco_plugin.detectors.dataset import Sources, prepare
from moco_plugin.errors import UsageError
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.train_loader import global_batches
from moco_plugin.transfer.trainer import Trainer
from tests.helpers.processes import Tool
from tests.transfer.conftest import one_thread, tiny_datasets  # noqa: F401  (fixtures)

SCRIPT = Path(__file__).parent / "record_batches.py"
BATCH, STEPS, PRECISE = 4, 3, 2
NETWORK = f"""
    SOLVER.IMS_PER_BATCH {BATCH} SOLVER.MAX_ITER {STEPS} SOLVER.STEPS () SOLVER.WARMUP_ITERS 1 SOLVER.BASE_LR 1e-4
    TEST.PRECISE_BN.NUM_ITER {PRECISE} INPUT.MIN_SIZE_TRAIN (48,56,64,72) INPUT.MIN_SIZE_TEST 64
    TEST.DETECTIONS_PER_IMAGE 5 MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 10
    MODEL.BACKBONE.NAME""".split()
C4 = [*NETWORK, "build_any_width_resnet_backbone"]
FPN = """build_any_width_resnet_fpn_backbone
    MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16""".split()
FPN = [*NETWORK, *FPN]
Call = dict[str, Any]


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO files and their images, upright and not, with polygons and run lengths; five to train on, three to test on."""
    root = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    for name, count in (("train", 9), ("test", 3)):
        images, annotations = [], []
        for number in range(count):
            width, height = ((64, 48), (48, 64))[number % 3 == 0]
            file = f"{name}_{number}.png"
            Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(root / file)
            images.append({"id": number, "file_name": file, "width": width, "height": height})
            for part in range(1 + number % 2):
                x, y = 4 + 3 * number, 6 + 20 * part
                runs = {"size": [height, width], "counts": [height * 10, height * 5, height * (width - 15)]}
                annotations.append(
                    {
                        "id": 10 * number + part + 1,
                        "image_id": number,
                        "category_id": 1 + part,
                        "bbox": [x, y, 16, 18],
                        "area": 288,
                        "iscrowd": 0,
                        "segmentation": runs if number == 4 else [[x, y, x + 16, y, x + 16, y + 18, x, y + 18]],
                    }
                )
        categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


def recorded(folder: Path) -> list[list[Call]]:
    """What the model was given, by process and call."""
    return [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(folder.iterdir(), key=lambda file: int(file.stem))
    ]


def training(processes: list[list[Call]]) -> list[tuple[int | None, list[Any]]]:
    """The batches of all processes, one after the other; the iteration is None for those of precise batch norm."""
    calls = [[call for call in process if call["trains"]] for process in processes]
    for together in zip(*calls, strict=True):
        assert len({call["iteration"] for call in together}) == 1
        assert len({len(call["images"]) for call in together}) == 1
    return [
        (together[0]["iteration"], [image for call in together for image in call["images"]])
        for together in zip(*calls, strict=True)
    ]


def evaluated(processes: list[list[Call]]) -> list[Any]:
    """The images of evaluation, sorted by their files."""
    images = [image for process in processes for call in process if not call["trains"] for image in call["images"]]
    return sorted(images, key=lambda image: str(image["file_name"]))


def assert_same(one: Path, two: Path, test_images: int, fields: set[str]) -> None:
    """Compare the records of a run on one process with those of the same run on two."""
    single, double = recorded(one), recorded(two)
    assert (len(single), len(double)) == (1, 2)
    expected = training(single)
    assert [iteration for iteration, _ in expected] == [*range(STEPS), *[None] * PRECISE]
    assert training(double) == expected
    images = [image for _, batch in expected for image in batch]
    assert all(len(batch) == BATCH for _, batch in expected) and all(fields <= set(i["instances"]) for i in images)
    assert len({tuple(image["instances"]["size"]) for image in images}) > 3  # they are scaled at random
    files = [image["file_name"] for image in evaluated(single)]
    assert len(files) == len(set(files)) == test_images
    assert evaluated(double) == evaluated(single)
    assert all(any(not call["trains"] for call in process) for process in double)


@pytest.fixture(scope="module")
def own_runs(own_data: Path, tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Path:
    """A detector on own data, trained on one process and on two: ``1`` and ``2``, and the records ``r1`` and ``r2``."""
    root = tmp_path_factory.mktemp("runs")
    data = ["--train-json", own_data / "train.json", "--test-json", own_data / "test.json"]
    for processes in (1, 2):
        out, workers = ["--out", root / f"{processes}"], ["DATALOADER.NUM_WORKERS", f"{2 * (processes - 1)}"]
        tool(SCRIPT, "transfer", root / f"r{processes}", *data, *out, *FPN, *workers, processes=processes)
    return root


def test_transfer_on_own_data(own_runs: Path) -> None:
    assert_same(own_runs / "r1", own_runs / "r2", 3, {"gt_boxes", "gt_classes", "gt_masks"})
    ((single,),) = [recorded(own_runs / "r1")]
    for call in single:
        assert len({image["width"] > image["height"] for image in call["images"]}) == 1


def test_train_net_on_voc(tiny_datasets: Path, tmp_path: Path, tool: Tool) -> None:  # noqa: F811
    for processes in (1, 2):
        out = ["OUTPUT_DIR", tmp_path / f"{processes}", "DATALOADER.NUM_WORKERS", f"{2 - processes}"]
        environment = {"DETECTRON2_DATASETS": str(tiny_datasets)}
        tool(
            SCRIPT, "train_net", tmp_path / f"r{processes}", *VOC, "SEED", "3", *out, processes=processes, **environment
        )
    assert_same(tmp_path / "r1", tmp_path / "r2", 7, {"gt_boxes", "gt_classes"})


def test_evaluation_finds_the_same(own_runs: Path, tmp_path: Path, tool: Tool) -> None:
    trained = ["--config-file", own_runs / "1/trial_1/config.yaml", "--eval-only", "MODEL.WEIGHTS"]
    trained += [own_runs / "1/trial_1/model_final.pth", "OUTPUT_DIR"]
    for processes in (1, 2):
        record = tmp_path / f"r{processes}"
        tool(SCRIPT, "train_net", record, *trained, tmp_path / f"{processes}", processes=processes)
    assert (
        evaluated(recorded(tmp_path / "r1"))
        == evaluated(recorded(tmp_path / "r2"))
        == evaluated(recorded(own_runs / "r1"))
    )
    for name in ("inference/coco_instances_results.json", "results.json"):
        one, two = (json.loads((tmp_path / f"{processes}" / name).read_text()) for processes in (1, 2))
        assert one and one == two
    assert one == json.loads((own_runs / "1/trial_1/results.json").read_text())


VOC = ["--config-file", "voc/pascal_voc_R_50_C4_24k_random", *C4]
HEADS = "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,) MODEL.SEM_SEG_HEAD.CONVS_DIM 16".split()
DETECTORS = {
    "c4": VOC,
    "mask": ["--config-file", "coco/coco_R_50_FPN_1x_random", *FPN],
    "keypoint": ["--config-file", "coco/coco_keypoint_R_50_FPN_2x_random", *FPN, *HEADS],
    "retinanet": [
        *["--config-file", "coco/coco_retinanet_R_50_FPN_1x_random", *NETWORK, "build_retinanet_resnet_fpn_backbone"],
        *"MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 16".split(),
    ],
    "fcn": [
        *["--config-file", "voc/pascal_voc_2012_fcn_R_50_30k_random", *C4, *HEADS],
        *"MODEL.RESNETS.RES5_DILATION 1 INPUT.CROP.SIZE (65,65)".split(),
    ],
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("detector", DETECTORS)
def test_killed_and_resumed(
    tiny_datasets: Path,  # noqa: F811
    tmp_path: Path,
    tool: Tool,
    processes: int,
    detector: str,
) -> None:
    settings = ["--resume", *DETECTORS[detector], *"SEED 3 SOLVER.MAX_ITER 5 DATALOADER.NUM_WORKERS 1".split()]
    settings += ["SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "2", "OUTPUT_DIR"]
    run = functools.partial(tool, processes=processes, DETECTRON2_DATASETS=str(tiny_datasets))
    run(SCRIPT, "train_net", tmp_path / "whole", *settings, tmp_path / "1")
    run(SCRIPT, "train_net", tmp_path / "killed", *settings, tmp_path / "2", code=-signal.SIGKILL, KILLED_AT="3")
    run(SCRIPT, "train_net", tmp_path / "resumed", *settings, tmp_path / "2")
    whole, resumed = recorded(tmp_path / "whole"), recorded(tmp_path / "resumed")
    for calls, later in zip(whole, resumed, strict=True):
        assert later == calls[-len(later) :] and later[0]["iteration"] == 3
    assert (tmp_path / "1/results.json").read_text() == (tmp_path / "2/results.json").read_text()
    one, two = (torch.load(tmp_path / f"{run}/model_final.pth", weights_only=True) for run in (1, 2))
    for state in (one, two):
        del state["moco_plugin"]  # holds OUTPUT_DIR
    torch.testing.assert_close(one, two, rtol=0, atol=0)


Load = Callable[..., list[list[Any]]]


@pytest.fixture
def load(own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what the loaders of so many processes give, joined."""
    monkeypatch.setattr(comm, "all_gather", lambda data: [data])
    name = prepare(tmp_path, Sources(own_data / "train.json", None, own_data / "test.json")).names[0]
    require_dataset(name)

    def load(processes: int, batches: int = 6, start: int = 0, period: int | None = None, **changes: Any) -> Any:
        settings = {"DATASETS.TRAIN": (name,), "SOLVER.IMS_PER_BATCH": 4, "INPUT.MIN_SIZE_TRAIN": (48, 64), "SEED": 0}
        settings["INPUT.MASK_FORMAT"] = "bitmask"
        settings |= {"DATALOADER.NUM_WORKERS": 0, **{key.replace("__", "."): value for key, value in changes.items()}}
        cfg: CfgNode = load_detector_config("coco/coco_R_50_FPN_1x_random", [])
        cfg.merge_from_list([part for pair in settings.items() for part in pair])
        parts = []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(comm, "get_world_size", lambda: processes)
            loader = Trainer.build_train_loader(cfg)
            loader.start, loader.period = start, period
            parts.append(list(islice(loader, batches)))
        return [
            [(image["file_name"], image["image"].numpy().tobytes()) for part in together for image in part]
            for together in zip(*parts, strict=True)
        ]

    return load


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("grouped", [True, False])
def test_processes_loader_processes_and_iterations(load: Load, grouped: bool) -> None:
    group = {"DATALOADER__ASPECT_RATIO_GROUPING": grouped}
    expected = load(1, **group)
    assert all(len(batch) == 4 for batch in expected)
    if not grouped:  # each image once, before the second time
        assert len({file for file, _ in [place for batch in expected for place in batch][:9]}) == 9
    assert load(2, **group) == load(4, **group) == expected
    assert load(2, DATALOADER__NUM_WORKERS=3, **group) == expected
    assert load(2, 2, start=4, **group) == expected[4:]
    assert load(1, 5, period=2, **group) == [expected[step % 2] for step in range(5)]
    assert load(1, SEED=1, **group) != expected and load(1, SEED=-1, **group) != expected
    factors = {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER__REPEAT_THRESHOLD": 2.0}
    assert load(1, **group, **factors) == load(2, **group, **factors)
    pixels = {image for batch in load(1, 20, **group) for image in batch}
    assert len(pixels) > 20  # of nine images, in two sizes, flipped or not


def test_batches_have_one_orientation_and_keep_the_order() -> None:
    wide = [True, False, False, True, True]
    order = [0, 1, 2, 3, 4] * 3
    assert list(global_batches(order, wide, 2)) == [[1, 2], [0, 3], [4, 0], [1, 2], [3, 4], [1, 2], [0, 3]]
    assert list(global_batches(order, [], 2)) == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1], [2, 3]]


def test_batches_that_cannot_be_spread(load: Load) -> None:
    with pytest.raises(UsageError, match="4 images per batch cannot be spread evenly over 3 processes"):
        load(3)
