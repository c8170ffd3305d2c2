"""Interrupted runs end bit for bit as uninterrupted ones, in the configurations that people run."""

import csv
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_plugin.tools.make_shards import main as make_shards
from tests.helpers.processes import Tool, start_tool

KEEP = Path(__file__).with_name("keep_checkpoints.py")
TINY = [
    "backbone=resnet18",
    "backbone_args.channels=[8,16,24,32]",
    "data.image_size=32",
    "data.batch_size=8",
    "method_args.dim=16",
    "schedule.epochs=3",
    "save_every=3",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
]
MOCO = [*TINY, "method=moco", "method_args.queue_size=32"]
V3 = [*TINY, "method=moco_v3", "method_args.hidden_dim=32", "schedule.warmup_epochs=1"]
CLASSIFY = [
    "data.batch_size=8",
    "schedule.epochs=3",
    "schedule.milestones=[1]",
    "save_every=3",
    "trainer.accelerator=cpu",
]


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
    tool("pretrain", *MOCO, f"data.root={photos}", f"out={out}", "data.workers=1", "schedule.epochs=1")
    return out / "checkpoints" / "last.ckpt"


class Case:
    """A command whose runs are compared: the tool, its arguments, the output's name and the number of processes."""

    def __init__(self, tool: str, arguments: list[str], processes: int = 1) -> None:
        self.tool, self.arguments, self.processes = tool, arguments, processes

    def command(self, out: Path) -> list[str]:
        if self.tool == "pretrain":
            return [*self.arguments, f"out={out}"]
        return [*self.arguments, "--out", f"{out}.json"]

    def files(self, out: Path) -> tuple[Path, Path, Path]:
        """Return the checkpoint, the log and the result."""
        if self.tool == "pretrain":
            return out / "checkpoints" / "last.ckpt", out / "metrics.csv", out / "result.json"
        run = out.with_name(f"{out.name}_run")
        return run / "last.ckpt", run / "metrics.csv", out.with_suffix(".json")

    def outcome(self, out: Path) -> tuple[dict[str, Any], Any, Any]:
        """Return all tensors of the checkpoint, the log and the result, without what depends on the clock."""
        checkpoint, log, result = self.files(out)
        state = torch.load(checkpoint, weights_only=True)
        tensors = dict(state["state_dict"])
        for number, values in state["optimizer_states"][0]["state"].items():
            tensors |= {f"{number}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
        with open(log, newline="") as file:
            rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]
        measured = json.loads(result.read_text())
        measured.pop("images_per_second", None)
        return tensors, rows, measured

    def same(self, found: Path, expected: Path) -> list[str]:
        """Return what differs between two finished runs."""
        (first, *rest), (second, *others) = self.outcome(found), self.outcome(expected)
        assert first.keys() == second.keys()
        differ = [name for name in first if not torch.equal(first[name], second[name])]
        names = ("metrics.csv", "result")
        return differ + [name for name, a, b in zip(names, rest, others, strict=True) if a != b]


def case(name: str, photos: Path, shards: Path, encoder: Path) -> Case:
    kind, *options = name.split("-")
    workers = next(option for option in options if option.isdigit())
    data, processes = shards if "shards" in options else photos, 2 if "processes" in options else 1
    more = [f"data.workers={workers}", f"trainer.devices={processes}"]
    more += [f"views.engine={option}" for option in options if option in ("device", "reference")]
    if "accumulate" in options:
        more += ["trainer.accumulate_grad_batches=2", "save_every=2"]
    if kind in ("moco", "v3"):
        return Case("pretrain", [*(MOCO if kind == "moco" else V3), f"data.root={data}", *more], processes)
    sets = ["--weights", str(encoder), "--train", str(data), "--test", str(data)]
    return Case("evaluate", [kind, *sets, *CLASSIFY, *more], processes)


KILLS = 4  # of each case
CASES = [
    "moco-0-photos",
    "moco-1-photos",
    "moco-2-photos",
    "moco-1-shards",
    "moco-1-photos-device",
    "moco-1-photos-reference",
    "moco-2-photos-accumulate",
    "moco-1-photos-processes",
    "v3-1-photos",
    "v3-2-shards-processes-accumulate",
    "linear-0-photos",
    "linear-1-photos",
    "linear-2-shards-accumulate",
    "linear-1-photos-processes",
    "finetune-1-photos",
    "finetune-2-shards",
    "finetune-1-photos-processes",
]


@pytest.mark.parametrize("name", CASES)
def test_run_resumed_from_any_checkpoint_ends_the_same(
    name: str, photos: Path, shards: Path, encoder: Path, tool: Tool, tmp_path: Path
) -> None:
    run = case(name, photos, shards, encoder)
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    tool(KEEP, run.tool, kept, *run.command(whole), processes=run.processes)
    steps = sorted(int(path.name) for path in kept.iterdir())
    epoch = -(-steps[-1] // 3)
    assert {epoch, 2 * epoch, 3 * epoch} < set(steps)
    for step in steps:
        out = tmp_path / f"from-{step}"
        checkpoint, log, _ = run.files(out)
        checkpoint.parent.mkdir(parents=True)
        shutil.copy(kept / str(step) / "last.ckpt", checkpoint)
        shutil.copy(kept / str(step) / "metrics.csv", log)
        shown = tool(run.tool, *run.command(out), processes=run.processes).stdout
        assert f"resuming from {checkpoint}, step {step}" in shown
        assert run.same(out, whole) == [], f"resumed from step {step}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_run_killed_at_random_moments_ends_the_same(
    name: str, photos: Path, shards: Path, encoder: Path, tool: Tool, tmp_path: Path
) -> None:
    run = case(name, photos, shards, encoder)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    tool(run.tool, *run.command(whole), processes=run.processes)
    takes, generator, kills = time.monotonic() - start, random.Random(name), 0
    while kills < KILLS:
        processes = start_tool(tmp_path, run.tool, *run.command(out), processes=run.processes)
        time.sleep(generator.uniform(0.0, 1.1 * takes))
        killed = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
            process.join()
        kills += any(killed)
        if run.files(out)[2].exists():
            assert run.same(out, whole) == []
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(out.with_name("killed_run"), ignore_errors=True)
            run.files(out)[2].unlink(missing_ok=True)
    tool(run.tool, *run.command(out), processes=run.processes)
    assert run.same(out, whole) == []
    left = [path.name for path in run.files(out)[0].parent.iterdir()]
    assert not [name for name in left if name.startswith(".last.")]
