"""Interrupted runs end bit for bit as uninterrupted ones, in the configurations that people run."""

import csv
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_plugin.tools.make_shards import main as make_shards
from tests.helpers.processes import Tool, start_tool

KEEP = Path(__file__).with_name("keep_checkpoints.py")
TINY = (
    "backbone=resnet18 backbone_args.channels=[8,16,24,32] data.image_size=32 data.batch_size=8 method_args.dim=16 "
    "schedule.epochs=3 save_every=3 trainer.log_every_n_steps=1 trainer.accelerator=cpu"
).split()
CLASSIFY = "data.batch_size=8 schedule.epochs=3 schedule.milestones=[1] save_every=3 trainer.accelerator=cpu".split()
SETTINGS = {
    "moco": [*TINY, "method=moco", "method_args.queue_size=32"],
    "v3": [*TINY, "method=moco_v3", "method_args.hidden_dim=32", "schedule.warmup_epochs=1"],
    "linear": CLASSIFY,
    "finetune": CLASSIFY,
}


@dataclass(frozen=True)
class Case:
    """A command whose runs are compared; several processes are those of torchrun."""

    kind: str
    workers: int = 1
    source: str = "photos"
    processes: int = 1
    settings: str = ""


CASES = [
    Case("moco", workers=0),
    Case("moco"),
    Case("moco", workers=2),
    Case("moco", source="shards"),
    Case("moco", settings="views.engine=device"),
    Case("moco", settings="views.engine=reference"),
    Case("moco", workers=2, settings="trainer.accumulate_grad_batches=2 save_every=2"),
    Case("moco", processes=2),
    Case("v3"),
    Case("v3", 2, "shards", 2, "trainer.accumulate_grad_batches=2 save_every=2"),
    Case("linear", workers=0),
    Case("linear"),
    Case("linear", 2, "shards", settings="trainer.accumulate_grad_batches=2 save_every=2"),
    Case("linear", processes=2),
    Case("finetune"),
    Case("finetune", 2, "shards"),
    Case("finetune", processes=2),
]
KILLS = 4  # of each case


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 JPEG files of two classes, of different sizes; batches of 8 leave four over."""
    folder = tmp_path_factory.mktemp("resume") / "photos"
    generator = np.random.default_rng(0)
    for number in range(44):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (6, 5 + number % 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48 + number % 7, 40), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path) -> Path:
    folder = photos.parent / "shards"
    assert make_shards([str(photos), str(folder / "photos")]) == 0
    return folder


@pytest.fixture(scope="module")
def encoder(photos: Path, tool: Tool) -> Path:
    """A checkpoint to classify with."""
    out = photos.parent / "encoder"
    tool("pretrain", *SETTINGS["moco"], f"data.root={photos}", f"out={out}", "data.workers=1", "schedule.epochs=1")
    return out / "checkpoints" / "last.ckpt"


@dataclass(frozen=True)
class Run:
    """The tool of a case with its arguments, run into one folder."""

    tool: str
    command: list[str]
    folder: Path
    checkpoint: Path
    result: Path

    @property
    def log(self) -> Path:
        return self.folder / "metrics.csv"

    def outcome(self) -> dict[str, Any]:
        """Return all tensors of the checkpoint, the log and the result, without what depends on the clock."""
        state = torch.load(self.checkpoint, weights_only=True)
        outcome = dict(state["state_dict"])
        for index, values in state["optimizer_states"][0]["state"].items():
            outcome |= {f"{index}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
        with open(self.log, newline="") as file:
            outcome["log"] = [{**row, "images_per_second": ""} for row in csv.DictReader(file)]
        outcome["result"] = {**json.loads(self.result.read_text()), "images_per_second": 0}
        return outcome


@pytest.fixture
def start(photos: Path, shards: Path, encoder: Path, tmp_path: Path) -> Callable[[Case, str], Run]:
    """``start(CASE, NAME)``: its run into a folder of that name."""

    def run(case: Case, name: str) -> Run:
        data, out = {"photos": photos, "shards": shards}[case.source], tmp_path / name
        settings = [*SETTINGS[case.kind], f"data.workers={case.workers}", *case.settings.split()]
        if case.kind in ("moco", "v3"):
            command = [*settings, f"data.root={data}", f"out={out}"]
            return Run("pretrain", command, out, out / "checkpoints" / "last.ckpt", out / "result.json")
        sets = ["--weights", str(encoder), "--train", str(data), "--test", str(data), "--out", f"{out}.json"]
        folder = tmp_path / f"{name}_run"
        return Run("evaluate", [case.kind, *sets, *settings], folder, folder / "last.ckpt", tmp_path / f"{name}.json")

    return run


def assert_same(one: Run, other: Run) -> None:
    first, second = one.outcome(), other.outcome()
    assert first.keys() == second.keys()
    same = {k: torch.equal(v, second[k]) if torch.is_tensor(v) else v == second[k] for k, v in first.items()}
    assert [name for name, equal in same.items() if not equal] == [], one.folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_run_resumed_from_any_checkpoint_ends_the_same(
    case: Case, start: Callable[[Case, str], Run], tool: Tool, tmp_path: Path
) -> None:
    whole, kept = start(case, "whole"), tmp_path / "kept"
    tool(KEEP, whole.tool, kept, *whole.command, processes=case.processes)
    steps = sorted(int(path.name) for path in kept.iterdir())
    epoch = -(-steps[-1] // 3)
    assert {epoch, 2 * epoch, 3 * epoch} < set(steps)
    for step in steps:
        run = start(case, f"from-{step}")
        run.checkpoint.parent.mkdir(parents=True)
        shutil.copy(kept / str(step) / "last.ckpt", run.checkpoint)
        shutil.copy(kept / str(step) / "metrics.csv", run.log)
        shown = tool(run.tool, *run.command, processes=case.processes).stdout
        assert f"resuming from {run.checkpoint}, step {step}" in shown
        assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_run_killed_at_random_moments_ends_the_same(
    case: Case, start: Callable[[Case, str], Run], tool: Tool, tmp_path: Path
) -> None:
    whole, run = start(case, "whole"), start(case, "killed")
    began = time.monotonic()
    tool(whole.tool, *whole.command, processes=case.processes)
    takes, generator, kills = time.monotonic() - began, random.Random(str(case)), 0
    while kills < KILLS:
        processes = start_tool(tmp_path, run.tool, *run.command, processes=case.processes)
        time.sleep(generator.uniform(0.0, 1.1 * takes))
        killed = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
            process.join()
        kills += any(killed)
        if run.result.exists():
            assert_same(run, whole)
            run.result.unlink()
            shutil.rmtree(run.folder, ignore_errors=True)
    tool(run.tool, *run.command, processes=case.processes)
    assert_same(run, whole)
    assert not [path.name for path in run.checkpoint.parent.iterdir() if path.name.startswith(".last.")]
