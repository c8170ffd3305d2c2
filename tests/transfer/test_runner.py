"""Transfer experiments through the runner: trials, what is kept, what is computed from them, what is refused."""

import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_plugin.errors import Stopped, UsageError
from moco_plugin.files import sha256
from moco_plugin.runs.run_folder import locked
from moco_plugin.schema import find_config
from moco_plugin.tools.train_net import main as train_net
from moco_plugin.tools.transfer import main
from moco_plugin.transfer import launch, runner
from moco_plugin.transfer.config import wants_densepose
from moco_plugin.transfer.launch import Machines
from moco_plugin.transfer.tasks import TASKS
from moco_plugin.transfer.config import load_detector_config
from tests.helpers.checkpoints import official
from tests.transfer.conftest import catalog_of

# a quarter of a ResNet-18 in the VOC C4 detector, on small images
NETWORK = [
    "MODEL.BACKBONE.NAME",
    "build_any_width_resnet_backbone",
    "MODEL.RESNETS.DEPTH",
    "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "16",
]
TINY = [
    *NETWORK,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "8",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "10",
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.STEPS",
    "()",
    "TEST.PRECISE_BN.NUM_ITER",
    "1",
    "DATALOADER.NUM_WORKERS",
    "0",
    "INPUT.MIN_SIZE_TRAIN",
    "(64,)",
    "INPUT.MIN_SIZE_TEST",
    "64",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the released code's layout: MoCo v2, 200 epochs."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth.tar"
    torch.save(official("resnet18", channels=[16, 32, 64, 128]), path)
    return path


class Trials:
    """Trains in this process; a trial that is to be cut off ends after one step, as if killed."""

    def __init__(self) -> None:
        self.cut_off: set[int] = set()
        self.started: list[int] = []

    def train(self, config: str, overrides: list[str], machines: Machines) -> int:
        arguments = ["--config-file", config, "--resume", *machines.arguments(), *overrides]
        number = int(arguments[arguments.index("SEED") + 1])
        self.started.append(number)
        if number in self.cut_off:
            assert train_net([*arguments, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]) == 0
            return 137
        return train_net(arguments)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    trials = Trials()
    monkeypatch.setattr(runner, "_train", trials.train)
    return trials


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_trials_cut_off_resumed_and_added(
    tiny_catalog: Path, weights: Path, tmp_path: Path, trials: Trials, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "voc"

    def run(count: int, code: int = 0) -> str:
        arguments = ["--task", "voc_c4", "--weights", str(weights), "--trials", str(count), "--out", str(out)]
        assert main([*arguments, "--gpus", "1", "--images-per-batch", "2", *TINY]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    trials.cut_off = {2}
    assert "trial 2 stopped with exit code 137" in run(2, code=1)
    assert [trial["trial"] for trial in read(out / "results.json")["trials"]] == [1]
    assert read(out / "results.json")["requested_trials"] == 2

    first = sha256(out / "trial_1" / "model_final.pth")
    trials.cut_off = set()
    shown = run(2)
    assert "trial 1 of 2: finished earlier" in shown and trials.started == [1, 2, 2]
    assert "Starting training from iteration 1" in (out / "trial_2" / "log.txt").read_text()
    assert "images per batch 16 to 2: learning rate 0.02 to 0.0025, warm-up 100 to 800" in shown

    shown = run(3)
    assert trials.started == [1, 2, 2, 3] and sha256(out / "trial_1" / "model_final.pth") == first
    result = read(out / "results.json")
    names = ("AP50", "AP", "AP75")
    values = {
        name: [read(out / f"trial_{n}" / "results.json")["voc_2007_test"]["bbox"][name] for n in (1, 2, 3)]
        for name in names
    }
    for name in names:
        assert [trial["metrics"][f"bbox/{name}"] for trial in result["trials"]] == values[name]
        assert result["mean"][f"bbox/{name}"] == pytest.approx(sum(values[name]) / 3)
        assert result["std"][f"bbox/{name}"] == pytest.approx(statistics.stdev(values[name]))
    assert [trial["seed"] for trial in result["trials"]] == [1, 2, 3]
    assert result["weights_sha256"] == sha256(weights) and result["requested_trials"] == 3
    assert result["pretraining"]["source_sha256"] == sha256(weights)
    assert result["settings"]["SOLVER"]["BASE_LR"] == 0.0025 and set(result["versions"]) >= {"torch"}

    # the row, under the paper's for the same weights
    lines = shown.splitlines()
    (place,) = [i for i, line in enumerate(lines) if re.match("MoCo v2 IN-1M, 200 epochs +paper", line)]
    assert lines[place].split()[-3:] == ["82.4", "57.0", "63.6"]
    means = [f"{sum(values[name]) / 3:.1f} ± {statistics.stdev(values[name]):.1f}" for name in names]
    assert lines[place + 1].split("here")[1].split() == [*" ".join(means).split(), "3", "[1]"]

    # what a model of the first trial finds
    drawn = sorted(path.name for path in (out / "predictions").iterdir())
    assert len(drawn) == 8 and sum(name.endswith("_truth.png") for name in drawn) == 4

    for changed, message in (
        (["SOLVER.MOMENTUM", "0.8"], "SOLVER.MOMENTUM was 0.9, now 0.8"),
        (["SOLVER.BASE_LR", "0.1"], "SOLVER.BASE_LR was 0.0025"),
    ):
        arguments = ["--task", "voc_c4", "--weights", str(weights), "--out", str(out), "--images-per-batch", "2"]
        assert main([*arguments, *TINY, *changed]) == 2
        assert message in capsys.readouterr().err
    assert sha256(out / "trial_1" / "model_final.pth") == first


def test_overwrite_starts_over(tiny_catalog: Path, tmp_path: Path, trials: Trials) -> None:
    out = tmp_path / "run"
    (out / "trial_4").mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    arguments = ["--task", "voc_c4", "--init", "random", "--trials", "1", "--out", str(out), *TINY]
    assert main(arguments) == 2  # a folder of a trial without results.json
    arguments[0:0] = ["--overwrite", "--images-per-batch", "2"]
    assert main([*arguments, "TEST.AUG.ENABLED", "False"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "mine.txt",
        "predictions",
        "results.json",
        "trial_1",
    ]
    result = read(out / "results.json")
    assert result["weights_sha256"] == "" and result["std"]["bbox/AP"] is None
    assert result["mean"] == result["trials"][0]["metrics"]


def test_tasks_are_what_their_configs_say() -> None:
    names = set()
    for task in TASKS.values():
        for init, name in task.configs.items():
            path = find_config(name, "detectron2")
            names.add(path)
            if "densepose" not in name:
                cfg = load_detector_config(name, [])
                assert tuple(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))) == task.datasets
                assert not wants_densepose(cfg)
            assert ("_moco" in name) == (init == "moco")
        for row in task.published:
            assert len(row.values) == len(task.metrics) and row.init in task.configs
    shipped = {
        path
        for folder in ("voc", "coco", "lvis", "cityscapes", "demo")
        for path in find_config("Base-RCNN-C4-BN", "detectron2").parent.glob(f"{folder}/*.yaml")
        if not path.name.startswith("Base")
    }
    assert names == shipped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "voc_c5"], "did you mean 'voc_c4'"),
        ([], "--task"),
        (["--task", "scenes_c4", "--init", "supervised"], "random or moco"),
        (["--task", "voc_c4"], "--weights"),
        (["--task", "voc_c4", "--init", "random", "--weights", "W"], "without weights"),
        (["--task", "voc_c4", "--weights", "/no/such.pth"], "/no/such.pth"),
        (["--task", "voc_c4", "--init", "random", "--trials", "0"], "--trials is 0"),
        (["--task", "voc_c4", "--init", "random", "--images-per-batch", "0"], "--images-per-batch is 0"),
        (["--task", "voc_c4", "--init", "random", "--images-per-batch", "-4"], "--images-per-batch is -4"),
        (["--task", "voc_c4", "--init", "random", "SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0"),
        (["--task", "voc_c4", "--init", "random", "--images-per-batch", "4", "SOLVER.IMS_PER_BATCH", "4"], "both"),
        (["--task", "voc_c4", "--init", "random", "--gpus", "64"], "(--gpus) is 64"),
        (["--task", "voc_c4", "--init", "random", "--num-machines", "2"], "--dist-url"),
        (["--task", "voc_c4", "--init", "random", "SOLVER.MAX_ITERS", "4"], "SOLVER.MAX_ITER"),
        (["--task", "voc_c4", "--init", "random", "SEED", "4"], "--trials"),
        (["--task", "voc_c4", "--init", "random", "SOLVER.MAX_ITER", "4", "--trials", "2"], "put options first"),
        (["--task", "voc_c4", "--init", "random", "MODEL.ROI_HEADS.NUM_CLASSES", "80"], "has 20 classes"),
        (["--task", "coco_retinanet_1x", "--init", "random", "MODEL.RETINANET.NUM_CLASSES", "20"], "has 80 classes"),
        (["--task", "voc_semantic", "--init", "random", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "20"], "has 21 classes"),
        (["--task", "voc_c4", "--weights", "WEIGHTS"], "backbone tensors filled from"),  # a ResNet-18 for ResNet-50
        (["--task", "voc_c4", "--weights", "WEIGHTS", *NETWORK, "INPUT.FORMAT", "BGR"], "INPUT.FORMAT is BGR"),
        (["--task", "voc_c4", "--init", "supervised", "--weights", "WEIGHTS", *NETWORK], "INPUT.FORMAT is BGR"),
    ],
)
def test_mistakes_end_in_one_sentence(
    tiny_catalog: Path,
    weights: Path,
    tmp_path: Path,
    trials: Trials,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    options = [str(weights) if word == "WEIGHTS" else word for word in arguments]
    assert main(["--out", str(tmp_path / "out"), *options]) in (1, 2)
    errors = capsys.readouterr().err
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert message in line
    assert trials.started == [] and not (tmp_path / "out" / "results.json").exists()


def test_train_net_counts_classes_too(tiny_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config-file", "coco/coco_keypoint_R_50_FPN_2x_random", "OUTPUT_DIR", str(tmp_path / "run")]
    assert train_net([*arguments, "MODEL.ROI_HEADS.NUM_CLASSES", "80"]) == 1
    assert "keypoints_coco_2017_train has 1 classes; pass MODEL.ROI_HEADS.NUM_CLASSES 1" in capsys.readouterr().err


def test_absent_data_sets_are_named(
    tiny_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "datasets"
    half.mkdir()
    (half / "VOC2007").symlink_to(tiny_datasets / "VOC2007")
    catalog = catalog_of(half, monkeypatch)
    next(catalog)
    try:
        assert main(["--task", "voc_c4", "--init", "random", "--out", str(tmp_path / "o")]) == 1
    finally:
        list(catalog)
    line = capsys.readouterr().err
    assert "'voc_2012_trainval'" in line and str(half / "VOC2012" / "ImageSets" / "Main" / "trainval.txt") in line


def test_folder_of_something_else_is_kept(
    tiny_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text('{"top1": 1}')
    assert main(["--task", "voc_c4", "--init", "random", "--out", str(tmp_path)]) == 2
    assert "not of a transfer run" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"top1": 1}'


def test_processes_start_without_a_main_module_that_prepares_detectron2() -> None:
    """As from a notebook; detectron2's worker then asks for the GPUs, which are not there."""
    code = """
from moco_plugin.transfer.launch import Machines, launch
launch(print, Machines(gpus=2))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "AssertionError: cuda is not available" in result.stderr


def test_batch_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "default_gpus", lambda: 8)
    cfg = load_detector_config("voc/pascal_voc_R_50_C4_24k_moco", [])
    runner._check_batch(cfg, Machines(8, 2, 1, "tcp://host:1"))
    with pytest.raises(UsageError, match="16 images per batch cannot be spread evenly over 6 processes"):
        runner._check_batch(cfg, Machines(6))
    with pytest.raises(UsageError, match="--machine-rank is 2"):
        runner._check_batch(cfg, Machines(8, 2, 2, "tcp://host:1"))
    assert Machines(8, 2, 1, "tcp://host:1").arguments() == [
        "--num-gpus",
        "8",
        "--num-machines",
        "2",
        "--machine-rank",
        "1",
        "--dist-url",
        "tcp://host:1",
    ]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_ends_the_trial_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(signal, name)
    pid = tmp_path / "pid"

    def trial(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pid.write_text(str(os.getpid()))
        os.kill(os.getppid(), number)
        signal.pause()

    monkeypatch.setattr(runner, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(runner, "_trial", trial)
    inherited = signal.signal(number, signal.SIG_DFL)  # nohup ignores one of them
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        runner._train("", [], Machines())
    assert stopped.value.exit_code == 128 + number and signal.getsignal(number) == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    signal.signal(number, inherited)


def test_a_trial_runs_in_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert runner._train("voc/no_such_config", [], Machines()) == 2
    assert "error: " in capfd.readouterr().err


def test_second_runner_in_a_folder_is_refused(
    tiny_catalog: Path, weights: Path, tmp_path: Path, trials: Trials, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", "voc_c4", "--weights", str(weights), "--trials", "1", "--out", str(tmp_path / "voc")]
    with locked(tmp_path / "voc"):
        assert main([*arguments, "--gpus", "1", "--images-per-batch", "2", *TINY]) == 2
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err and trials.started == []
