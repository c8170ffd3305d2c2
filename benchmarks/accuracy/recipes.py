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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from moco_plugin.benchmarks.accuracy.measures import measure as measure_features
from moco_plugin.benchmarks.accuracy.measures import measure_pixels
from moco_plugin.benchmarks.accuracy.sets import Sets, read_sets
from moco_plugin.benchmarks.timing import at_least
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.files import read_json, write_json
from moco_plugin.pretraining.config import load_config
from moco_plugin.pretraining.run import pretrain

START = {
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
    ("crops from", ({"data.view_args.min_scale": "0.35"}, {"data.view_args.min_scale": "0.5"})),
    ("learning rate", ({"optimizer.lr": "0.06"}, {"optimizer.lr": "0.12"})),
    ("batch", ({"data.batch_size": "64"}, {"data.batch_size": "256"})),
    ("K", ({"method_args.queue_size": "512"}, {"method_args.queue_size": "8192"})),
    ("m", ({"method_args.momentum": "0.9"}, {"method_args.momentum": "0.999"})),
    ("groups", ({"method_args.batch_norm_groups": "2"}, {"method_args.batch_norm": "plain"})),
    ("T", ({"method_args.temperature": "0.2"},)),
    ("crops from, once more", ({"data.view_args.min_scale": "0.7"},)),
    ("K, once more", ({"method_args.queue_size": "256"},)),
    ("head", ({"method_args.mlp": "true"},)),
    ("symmetric", ({"method_args.symmetric": "true"},)),
    (
        "network",
        (
            {"backbone_args.stem_type": "deep", "backbone_args.stem_width": "16"},
            {"backbone_args.channels": "[32,64,128,256]"},
        ),
    ),
    ("pixels", ({"data.image_size": "32"}, {"data.image_size": "48"})),
    ("blur", ({"data.view_args.gaussian_blur": "0.0"},)),
    (
        "colours",
        ({"data.view_args.cj_hue": "0.5", "data.view_args.random_gray_scale": "0.5"}, {"data.views": "moco_v1"}),
    ),
    ("weight decay", ({"optimizer.weight_decay": "5e-4"},)),
)
"""What is tried in turn: a name, and changes of the recipe."""
TIMED = (4, 20)  # steps of two short runs, whose difference is the cost of a step
COSTLY = ("backbone", "data.image_size", "data.batch_size", "method", "compile", "views.engine")
"""Beginnings of the keys that decide what a step costs."""


def measure(
    set: Literal["fashion", "stamps"] = "fashion",
    minutes: float = 3.0,
    seeds: Sequence[int] = (0,),
    rounds: int = 1,
    folder: Path = Path("runs/recipes"),
) -> dict[str, Any]:
    """Search for the recipe of the best features after some CPU time.

    Raw pixels and the untrained network are measured as well.

    Args:
        set: Of images; see ``read_sets``.
        minutes: CPU time of each training.
        seeds: Of the trainings; a recipe's score is their mean.
        rounds: How often to go through all axes.
        folder: For what was measured (default runs/recipes).
    """
    at_least(1, rounds=rounds, seeds=len(seeds))
    sets, results = read_sets(set, folder), dict[str, Any]()

    def tried(recipe: dict[str, str], name: str) -> float:
        rows = [train(recipe, sets, folder / set, 60 * minutes, seed) for seed in seeds]
        results["untrained"] = rows[0]["untrained"]
        results[name] = {
            key: round(statistics.fmean(row["accuracy"][key] for row in rows), 2) for key in rows[0]["accuracy"]
        }
        return statistics.fmean(results[name].values())

    results["raw pixels"] = measure_pixels(sets)
    recipe = dict(START)
    best = tried(recipe, "start")
    for axis, changes in AXES * rounds:
        for change in changes:
            if (candidate := {**recipe, **change}) != recipe:
                reached = tried(candidate, f"{axis}: {' '.join(f'{key}={value}' for key, value in change.items())}")
                if reached > best:
                    recipe, best = candidate, reached
    settings = {"set": set, "minutes": minutes, "seeds": list(seeds), "rounds": rounds}
    kept = " ".join(f"{key}={value}" for key, value in recipe.items() if START.get(key) != value)
    return {"settings": settings, "results": results, "advice": [f"kept: {kept or 'the recipe before'}"]}


def train(recipe: dict[str, str], sets: Sets, folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Train a recipe for a budget of CPU seconds of one thread, and measure its features and the untrained ones.

    Returns:
        The content of its file: ``recipe``, ``seed``, ``epochs``, ``cpu_seconds``, ``untrained`` and ``accuracy``.
    """
    digest = _digest(recipe, seconds, seed)
    file = folder / f"{digest}.json"
    if file.is_file():
        return dict(read_json(file))
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
        "untrained": measure_features(read.untrained(), read.view, sets),
        "accuracy": measure_features(read.backbone, read.view, sets),
    }
    shutil.rmtree(folder / digest)
    write_json(file, row)
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
    overrides = [f"{key}={value}" for key, value in recipe.items()]
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
        checkpoint = pretrain(config, overwrite=True, images=sets.placed)
    return checkpoint, time.process_time() - start
