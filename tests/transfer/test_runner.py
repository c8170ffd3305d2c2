"""Transfer experiments through the runner: trials, what is kept, what is computed from them, what is refused."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_plugin.errors import UsageError
from moco_plugin.files import sha256
from moco_plugin.runs.run_folder import locked
from moco_plugin.tools.transfer import main
from moco_plugin.transfer import launch
from moco_plugin.transfer.config import load_detector_config, wants_densepose
from moco_plugin.transfer.launch import Machines
from moco_plugin.transfer.runner import check_batch
from moco_plugin.transfer.tasks import TASKS
from tests.helpers.checkpoints import official
from tests.helpers.processes import Tool

# a quarter of a ResNet-18 in the VOC C4 detector, on small images
NETWORK = (
    "MODEL.BACKBONE.NAME build_any_width_resnet_backbone MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 16"
)
TINY = f"""
    {NETWORK} MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TEST 10 SOLVER.MAX_ITER 2 SOLVER.STEPS ()
    SOLVER.CHECKPOINT_PERIOD 1 TEST.PRECISE_BN.NUM_ITER 1 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (64,)
    INPUT.MIN_SIZE_TEST 64
""".split()
TWO_IMAGES = "--gpus 1 --images-per-batch 2".split()
Run = Callable[..., str]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the released code's layout: MoCo v2, 200 epochs."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth.tar"
    torch.save(official("resnet18", channels=[16, 32, 64, 128]), path)
    return path


@pytest.fixture(scope="module")
def run(tiny_datasets: Path, weights: Path, tool: Tool) -> Run:
    """Run so many trials in a folder; return what is printed, or the errors of a run that fails."""

    def run(out: Path, trials: int, *changes: str, code: int = 0) -> str:
        experiment = ["--task", "voc_c4", "--weights", weights, "--trials", f"{trials}", "--out", out, *TWO_IMAGES]
        result = tool("transfer", *experiment, *TINY, *changes, code=code, DETECTRON2_DATASETS=str(tiny_datasets))
        return result.stderr if code else result.stdout

    return run


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of two trials, only to be read, and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "voc"
    return out, run(out, 2)


@pytest.fixture
def killed(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The same when the second trial has been killed after its first step."""
    out = tmp_path / "voc"
    shutil.copytree(finished[0], out)
    result = read(out / "results.json")
    del result["trials"][1]
    (out / "results.json").write_text(json.dumps(result))
    for file in ("results.json", "model_final.pth"):
        (out / "trial_2" / file).unlink()
    (out / "trial_2" / "last_checkpoint").write_text("model_0000000.pth")
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_means_and_spread_are_those_of_the_trials(finished: tuple[Path, str], weights: Path) -> None:
    out, shown = finished
    result = read(out / "results.json")
    trials = [read(out / f"trial_{n}" / "results.json")["voc_2007_test"]["bbox"] for n in (1, 2)]
    means = []
    for name in ("AP50", "AP", "AP75"):
        values = [trial[name] for trial in trials]
        assert [trial["metrics"][f"bbox/{name}"] for trial in result["trials"]] == values
        mean, std = result["mean"][f"bbox/{name}"], result["std"][f"bbox/{name}"]
        assert (mean, std) == pytest.approx((sum(values) / 2, statistics.stdev(values)))
        means.append(f"{mean:.1f} ± {std:.1f}")
    lines = shown.splitlines()  # the row stands under the paper's for the same weights
    (index,) = [i for i, line in enumerate(lines) if re.match("MoCo v2 IN-1M, 200 epochs +paper", line)]
    assert lines[index].split()[-3:] == ["82.4", "57.0", "63.6"]
    assert lines[index + 1].split("here")[1].split() == [*" ".join(means).split(), "2", "[1]"]


def test_results_say_what_was_run(finished: tuple[Path, str], weights: Path) -> None:
    out, shown = finished
    result = read(out / "results.json")
    assert [trial["seed"] for trial in result["trials"]] == [1, 2] and result["requested_trials"] == 2
    assert result["weights_sha256"] == result["pretraining"]["source_sha256"] == sha256(weights)
    assert result["settings"]["SOLVER"]["BASE_LR"] == 0.0025 and set(result["versions"]) >= {"torch"}
    assert "images per batch 16 to 2: learning rate 0.02 to 0.0025, warm-up 100 to 800" in shown
    drawn = sorted(path.name for path in (out / "predictions").iterdir())
    assert len(drawn) == 8 and sum(name.endswith("_truth.png") for name in drawn) == 4


def test_a_killed_trial_is_resumed_and_another_added(killed: Path, finished: tuple[Path, str], run: Run) -> None:
    before = sha256(killed / "trial_1" / "model_final.pth")
    shown = run(killed, 3)
    assert "trial 1 of 3: finished earlier" in shown and sha256(killed / "trial_1" / "model_final.pth") == before
    assert "Starting training from iteration 1" in (killed / "trial_2" / "log.txt").read_text()
    result = read(killed / "results.json")
    whole, resumed = (torch.load(out / "trial_2" / "model_final.pth") for out in (finished[0], killed))
    torch.testing.assert_close(resumed["model"], whole["model"], rtol=0, atol=0)
    assert [trial["trial"] for trial in result["trials"]] == [1, 2, 3] and result["requested_trials"] == 3
    assert result["trials"][:2] == read(finished[0] / "results.json")["trials"]  # as if it had not been killed


def test_a_failed_trial_ends_the_run(killed: Path, run: Run) -> None:
    (killed / "trial_2" / "model_0000000.pth").write_bytes(b"broken")
    assert "trial 2 stopped with exit code 1, its message is above" in run(killed, 2, code=1)
    assert [trial["trial"] for trial in read(killed / "results.json")["trials"]] == [1]


def test_trials_of_other_settings_are_kept(finished: tuple[Path, str], run: Run) -> None:
    before = sha256(finished[0] / "trial_1" / "model_final.pth")
    assert "SOLVER.BASE_LR was 0.0025, now 0.1" in run(finished[0], 2, "SOLVER.BASE_LR", "0.1", code=2)
    assert sha256(finished[0] / "trial_1" / "model_final.pth") == before


def test_overwrite_starts_over(tiny_catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "trial_4").mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    arguments = ["--task", "voc_c4", "--init", "random", "--trials", "1", "--out", str(out), *TWO_IMAGES]
    assert main([*arguments, *TINY]) == 2  # a folder of a trial without results.json
    assert main(["--overwrite", *arguments, *TINY, "TEST.AUG.ENABLED", "False"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ".lock mine.txt predictions results.json trial_1".split()
    result = read(out / "results.json")
    assert result["weights_sha256"] == "" and result["std"]["bbox/AP"] is None
    assert result["mean"] == result["trials"][0]["metrics"]


def test_tasks_are_what_their_configs_say() -> None:
    for task in TASKS.values():
        for init, name in task.configs.items():
            if "densepose" not in name:
                cfg = load_detector_config(name, [])
                assert tuple(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))) == task.datasets
                assert not wants_densepose(cfg)
            assert ("_moco" in name) == (init == "moco")
        for row in task.published:
            assert len(row.values) == len(task.metrics) and row.init in task.configs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task voc_c5", "did you mean 'voc_c4'"),
        ("", "--task"),
        ("--task scenes_c4 --init supervised", "random or moco"),
        ("--task voc_c4", "--weights"),
        ("RANDOM --weights W", "without weights"),
        ("--task voc_c4 --weights /no/such.pth", "/no/such.pth"),
        ("RANDOM --trials 0", "--trials is 0"),
        ("RANDOM --images-per-batch 0", "--images-per-batch is 0"),
        ("RANDOM --images-per-batch -4", "--images-per-batch is -4"),
        ("RANDOM SOLVER.IMS_PER_BATCH 0", "SOLVER.IMS_PER_BATCH is 0"),
        ("RANDOM --images-per-batch 4 SOLVER.IMS_PER_BATCH 4", "both"),
        ("RANDOM --gpus 64", "(--gpus) is 64"),
        ("RANDOM --num-machines 2", "--dist-url"),
        ("RANDOM SOLVER.MAX_ITERS 4", "SOLVER.MAX_ITER"),
        ("RANDOM SEED 4", "--trials"),
        ("RANDOM SOLVER.MAX_ITER 4 --trials 2", "put options first"),
        ("RANDOM MODEL.ROI_HEADS.NUM_CLASSES 80", "has 20 classes"),
        ("--task coco_retinanet_1x --init random MODEL.RETINANET.NUM_CLASSES 20", "has 80 classes"),
        ("--task voc_semantic --init random MODEL.SEM_SEG_HEAD.NUM_CLASSES 20", "has 21 classes"),
        ("--task voc_c4 --weights FILE", "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 16"),  # not 50
        (f"--task voc_c4 --weights FILE {NETWORK} INPUT.FORMAT BGR", "INPUT.FORMAT is BGR"),
        (f"--task voc_c4 --init supervised --weights FILE {NETWORK}", "INPUT.FORMAT is BGR"),
    ],
)
def test_mistakes_end_in_one_sentence(
    tiny_catalog: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    words = arguments.replace("RANDOM", "--task voc_c4 --init random").replace("FILE", str(weights)).split()
    assert main(["--out", str(tmp_path / "out"), *words]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not [*tmp_path.glob("out/trial_*"), *tmp_path.glob("out/results.json")]


def test_folder_of_another_run_is_kept(tiny_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "voc_c4", "--init", "random", "--out", str(tmp_path), *TWO_IMAGES, *TINY]
    (tmp_path / "results.json").write_text('{"top1": 1}')
    assert main(arguments) == 2
    assert "not of a transfer run" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"top1": 1}'
    with locked(tmp_path):
        assert main(arguments) == 2
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert not list(tmp_path.glob("trial_*"))


def test_processes_start_without_a_main_module_that_prepares_detectron2() -> None:
    """As from a notebook; detectron2's worker then asks for the GPUs, which are not there."""
    code = "from moco_plugin.transfer.launch import Machines, launch; launch(print, Machines(gpus=2))"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "AssertionError: cuda is not available" in result.stderr


def test_batch_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "default_gpus", lambda: 8)
    cfg = load_detector_config("voc/pascal_voc_R_50_C4_24k_moco")
    check_batch(cfg, Machines(8, 2, 1, "tcp://host:1"))
    with pytest.raises(UsageError, match="16 images per batch cannot be spread evenly over 6 processes"):
        check_batch(cfg, Machines(6))
    with pytest.raises(UsageError, match="--machine-rank is 2"):
        check_batch(cfg, Machines(8, 2, 2, "tcp://host:1"))
    arguments = "--num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://host:1"
    assert Machines(8, 2, 1, "tcp://host:1").arguments() == arguments and Machines(2).arguments() == "--num-gpus 2"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_trial_too(name: str, tiny_datasets: Path, tmp_path: Path) -> None:
    tool = [sys.executable, Path(__file__).parents[2] / "tools" / "transfer.py", "--task", "voc_c4", "--init", "random"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tiny_datasets)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*tool, "--out", tmp_path / "out", *TWO_IMAGES, *TINY, "SOLVER.MAX_ITER", "100000"]
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        while not (tmp_path / "out" / "trial_1" / "model_0000000.pth").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)  # until the trial has closed its end, too
    assert process.returncode == 128 + getattr(signal, name), errors
    assert f"stopped by {name}; the same command resumes the trial from its last checkpoint" in errors
