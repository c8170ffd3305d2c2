"""Reads the numbers of a demo run from the files that its stages have written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_plugin.errors import UserError
from moco_plugin.report.files import read_json
from moco_plugin.report.tables import Comparison

MEASURES = (
    ("bbox", "AP", "box AP"),
    ("bbox", "AP50", "box AP50"),
    ("segm", "AP", "mask AP"),
    ("segm", "AP50", "mask AP50"),
)


@dataclass
class DemoResults:
    """The numbers of a demo run.

    Attributes:
        knn: Top-1 accuracy of frozen features.
        transfer: Detection, a comparison a measure; box AP comes first.
        seeds: Names of the seeds that transfer was repeated with.
        knn_protocol: What ``tools/evaluate.py knn`` wrote about MoCo's features.
    """

    knn: Comparison
    transfer: list[Comparison]
    seeds: list[str]
    knn_protocol: dict[str, Any]


def read_results(folder: Path) -> DemoResults:
    """Reads the results in a demo run's folder.

    Raises:
        UserError: A file is missing, or lacks a number.
    """
    random, moco = folder / "knn_random.json", folder / "knn_moco.json"
    knn = Comparison("kNN accuracy", "untrained", [_top1(random)], [_top1(moco)], unit="%")
    seeds = {path.name for path in (folder / "transfer").glob("*/seed*")}
    if not seeds:
        raise UserError(f"{folder / 'transfer'} holds no seed folder; run the detection stage")
    names = sorted(seeds, key=lambda name: (len(name), name))
    runs = {init: [_tasks(seed_folder(folder, init, name)) for name in names] for init in ("random", "moco")}
    transfer = []
    for task, measure, name in MEASURES:
        if all(task in run for both in runs.values() for run in both):
            values = {init: [_number(run[task], measure) for run in both] for init, both in runs.items()}
            transfer.append(Comparison(name, "random init", values["random"], values["moco"]))
    return DemoResults(knn, transfer, names, read_json(moco))


def seed_folder(folder: Path, init: str, seed: str) -> Path:
    """Returns where a detector was trained from "random" or "moco" weights."""
    return folder / "transfer" / init / seed


def _top1(path: Path) -> float:
    try:
        return float(read_json(path)["top1"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no top1; expected the output of tools/evaluate.py knn") from error


def _tasks(folder: Path) -> dict[str, dict[str, float | None]]:
    """Returns a detector's metrics by task, whether or not they lie below the name of the data set."""
    path = folder / "results.json"
    results = read_json(path)
    for tasks in (results, *(results.values() if isinstance(results, dict) else ())):
        if isinstance(tasks, dict) and {"AP", "AP50"} <= set(tasks.get("bbox") or ()):
            return tasks
    raise UserError(f"{path} has no AP and AP50 of bbox; expected the output of a COCO evaluation")


def _number(metrics: dict[str, float | None], name: str) -> float:
    value = metrics.get(name)
    return 0.0 if value is None else float(value)  # detectron2 has no number where nothing was detected
