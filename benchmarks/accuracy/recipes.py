"""A search for the recipe whose features are the best after a budget of CPU seconds, one setting at a time.

The search starts from a recipe and goes through ``AXES`` in turn: each value replaces the recipe's own, trains for the
budget, and is kept if its mean accuracy is higher. A file for each training keeps what was measured, and a finished one
is not trained again.
"""

import contextlib
import hashlib
import io
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from moco_plugin.benchmarks.accuracy.measures import measure, measure_pixels
from moco_plugin.benchmarks.accuracy.sets import Sets, read_sets
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.files import read_json, write_json
from moco_plugin.pretraining.config import load_config
from moco_plugin.pretraining.run import pretrain

START = {
    "pictures": "placed",
    "method": "moco",
    "method_args.mlp": "false",
    "method_args.queue_size": "2048",
    "method_args.momentum": "0.99",
    "method_args.temperature": "0.1",
    "backbone": "resnet18",
    "backbone_args.channels": "[16,32,64,128]",
    "data.image_size": "40",
    "data.batch_size": "128",
    "data.crop_ratio": "1.0",
    "data.workers": "0",
    "views.engine": "device",
    "optimizer.lr": "0.03",
    "optimizer.scale_lr": "false",
    "schedule.name": "cosine",
    "schedule.interval": "step",
}
"""The demo's recipe before the search."""
AXES: tuple[tuple[str, tuple[dict[str, str], ...]], ...] = (
    ("pictures", ({"pictures": "plain"},)),
    (
        "colours",
        ({"data.view_args.cj_hue": "0.5", "data.view_args.random_gray_scale": "0.5"}, {"data.views": "moco_v1"}),
    ),
    ("learning rate", ({"optimizer.lr": "0.1"}, {"optimizer.lr": "0.3"})),
    ("symmetric", ({"method_args.symmetric": "true"},)),
    ("crops from", ({"data.view_args.min_scale": "0.35"}, {"data.view_args.min_scale": "0.5"})),
    ("T", ({"method_args.temperature": "0.2"},)),
    ("head", ({"method_args.mlp": "true"},)),
    ("groups", ({"method_args.batch_norm_groups": "2"}, {"method_args.batch_norm": "plain"})),
    (
        "network",
        (
            {"backbone_args.stem_type": "deep", "backbone_args.stem_width": "16"},
            {"backbone_args.channels": "[32,64,128,256]"},
        ),
    ),
    ("pixels", ({"data.image_size": "32"}, {"data.image_size": "48"})),
    ("blur", ({"data.view_args.gaussian_blur": "0.0"},)),
    ("batch", ({"data.batch_size": "64"}, {"data.batch_size": "256"})),
    ("K", ({"method_args.queue_size": "512"}, {"method_args.queue_size": "8192"})),
    ("m", ({"method_args.momentum": "0.9"}, {"method_args.momentum": "0.999"})),
    ("weight decay", ({"optimizer.weight_decay": "5e-4"},)),
)
"""What is tried in turn: a name, and changes of the recipe."""
TIMED = (4, 20)  # steps of two short runs, whose difference tells the cost of a step
COSTLY = ("pictures", "backbone", "data.image_size", "data.batch_size", "method", "compile", "views.engine")
"""Beginnings of the keys that decide what a step costs."""


def search(name: str, folder: Path, seconds: float, seed: int = 0, rounds: int = 1) -> dict[str, str]:
    """Search on the set "fashion" or "stamps"; return the best recipe.

    Args:
        name: The set.
        folder: For what was measured.
        seconds: CPU seconds of each training.
        seed: Of all trainings.
        rounds: How often to go through all axes.
    """
    sets = read_sets(name, folder)
    if not (pixels := folder / name / "pixels.json").is_file():
        write_json(pixels, {"accuracy": measure_pixels(sets)})
    print("pixels", read_json(pixels)["accuracy"], flush=True)
    recipe, best = dict(START), score(train(START, sets, folder / name, seconds, seed))
    for axis, changes in AXES * rounds:
        for change in changes:
            tried = {**recipe, **change}
            if tried == recipe:
                continue
            reached = score(train(tried, sets, folder / name, seconds, seed))
            print(f"{axis}: {change} {reached:.2f} (best before {best:.2f})", flush=True)
            if reached > best:
                recipe, best = tried, reached
    return recipe


def score(row: dict[str, Any]) -> float:
    """Return the mean of the accuracies."""
    return statistics.fmean(row["accuracy"].values())


def train(recipe: dict[str, str], sets: Sets, folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Train a recipe for a budget of CPU seconds of one thread, and measure its features and the untrained ones.

    Returns:
        What its file holds: ``recipe``, ``seed``, ``epochs``, ``cpu_seconds``, ``untrained`` and ``accuracy``.
    """
    digest = _digest(recipe, seconds, seed)
    file = folder / f"{digest}.json"
    if file.is_file():
        return read_json(file)
    torch.set_num_threads(1)
    steps = round(seconds / _seconds_of_step(recipe, sets, folder))
    checkpoint, spent = _run(recipe, sets, folder / digest, seed, steps)
    read = read_checkpoint(str(checkpoint))
    row = {
        "recipe": recipe,
        "seed": seed,
        "steps": steps,
        "images": steps * int(recipe["data.batch_size"]),
        "cpu_seconds": round(spent, 1),
        "untrained": measure(read.untrained(), read.view, sets),
        "accuracy": measure(read.backbone, read.view, sets),
    }
    shutil.rmtree(folder / digest)
    write_json(file, row)
    print({key: value for key, value in row.items() if key != "recipe"}, flush=True)
    return row


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _seconds_of_step(recipe: dict[str, str], sets: Sets, folder: Path) -> float:
    """Return the CPU seconds of a step, measured once for all recipes whose steps cost the same."""
    digest = _digest({key: value for key, value in recipe.items() if key.startswith(COSTLY)})
    file = folder / f"step_{digest}.json"
    if not file.is_file():
        few, more = (_run(recipe, sets, folder / digest, 0, steps)[1] for steps in TIMED)
        shutil.rmtree(folder / digest)
        write_json(file, {"seconds": (more - few) / (TIMED[1] - TIMED[0])})
    return float(read_json(file)["seconds"])


def _run(recipe: dict[str, str], sets: Sets, out: Path, seed: int, steps: int) -> tuple[Path, float]:
    """Train; return the checkpoint, and the CPU seconds that it took."""
    overrides = [f"{key}={value}" for key, value in recipe.items() if key != "pictures"]
    config = load_config(
        "moco_v2",
        [
            *overrides,
            "data.root=pictures",
            f"schedule.steps={steps}",
            f"seed={seed}",
            f"out={out}",
            "save_every=1000000",
            "trainer.enable_progress_bar=false",
            "trainer.accelerator=cpu",
        ],
    )
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        checkpoint = pretrain(config, overwrite=True, images=getattr(sets, recipe["pictures"]))
    return checkpoint, time.process_time() - start
