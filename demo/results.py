"""Numbers of a demo run, read from the files that its stages wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_plugin.demo.comparison import Comparison
from moco_plugin.errors import UserError
from moco_plugin.files import read_json

DETECTORS = {"c4": "C4", "fpn": "FPN"}  # folder and name
MEASURES = (("bbox/AP", "box AP"), ("bbox/AP50", "box AP50"), ("segm/AP", "mask AP"), ("segm/AP50", "mask AP50"))


@dataclass
class DemoResults:
    """The numbers of a demo run.

    Attributes:
        knn: Top-1 accuracy of frozen features.
        transfer: Detection: a comparison per measure of each detector, box AP first.
        seeds: That each detector was trained with.
        knn_protocol: What ``tools/evaluate.py knn`` wrote about MoCo's features.
    """

    knn: Comparison
    transfer: list[Comparison]
    seeds: list[int]
    knn_protocol: dict[str, Any]


def read_results(folder: Path) -> DemoResults:
    """Read the results in a demo run's folder.

    Raises:
        UserError: A file is missing, or lacks a number.
    """
    random, moco = folder / "knn_random.json", folder / "knn_moco.json"
    knn = Comparison("kNN accuracy", "untrained", [_top1(random)], [_top1(moco)], unit="%")
    transfer: list[Comparison] = []
    seeds: list[int] = []
    for detector, shown in DETECTORS.items():
        random_trials, moco_trials = (_trials(run_folder(folder, detector, i)) for i in ("random", "moco"))
        seeds = sorted(random_trials.keys() & moco_trials.keys())
        if not seeds:
            raise UserError(f"{folder / 'transfer' / detector} has no trial of both; run the detection stage")
        for path, name in MEASURES:
            if all(path in trials[seed] for trials in (random_trials, moco_trials) for seed in seeds):
                before, after = (
                    [_number(trials[seed][path]) for seed in seeds] for trials in (random_trials, moco_trials)
                )
                transfer.append(Comparison(f"{shown} {name}", "random init", before, after))
    return DemoResults(knn, transfer, seeds, read_json(moco))


def run_folder(folder: Path, detector: str, init: str) -> Path:
    """Return where the trials of a detector ("c4" or "fpn") from "random" or "moco" weights are."""
    return folder / "transfer" / detector / init


def _top1(path: Path) -> float:
    try:
        return float(read_json(path)["top1"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no top1; expected the output of tools/evaluate.py knn") from error


def _trials(folder: Path) -> dict[int, dict[str, float | None]]:
    """Return the metrics of each trial by its seed."""
    path = folder / "results.json"
    try:
        trials = {int(trial["seed"]): dict(trial["metrics"]) for trial in read_json(path)["trials"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no trials; expected the output of tools/transfer.py") from error
    if not all({"bbox/AP", "bbox/AP50"} <= metrics.keys() for metrics in trials.values()):
        raise UserError(f"{path} has no AP and AP50 of bbox; expected the output of a COCO evaluation")
    return trials


def _number(value: float | None) -> float:
    return 0.0 if value is None else float(value)  # detectron2 has no number where nothing was detected
