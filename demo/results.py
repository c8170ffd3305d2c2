"""Numbers of a demo run, read from the files that its stages wrote."""

from dataclasses import dataclass
from pathlib import Path

from moco_plugin.demo.comparison import Comparison
from moco_plugin.errors import UserError
from moco_plugin.files import read_json

DETECTORS = {"c4": "C4", "fpn": "FPN"}  # folder and name
MEASURES = (("bbox/AP", "box AP"), ("bbox/AP50", "box AP50"), ("segm/AP", "mask AP"), ("segm/AP50", "mask AP50"))


@dataclass
class DemoResults:
    """The numbers of a demo run.

    Attributes:
        features: Top-1 accuracy of frozen features: a comparison per number of neighbours, and of a linear classifier.
        transfer: Detection: a comparison per measure of each detector, box AP first.
        seeds: That each detector was trained with.
    """

    features: list[Comparison]
    transfer: list[Comparison]
    seeds: list[int]


def read_results(folder: Path) -> DemoResults:
    """Read the results in a demo run's folder.

    Raises:
        UserError: A file is missing, or lacks a number.
    """
    transfer: list[Comparison] = []
    seeds: list[int] = []
    for detector, shown in DETECTORS.items():
        trials = [_trials(run_folder(folder, detector, init)) for init in ("random", "moco")]
        seeds = sorted(trials[0].keys() & trials[1].keys())
        if not seeds:
            raise UserError(f"{folder / 'transfer' / detector} has no trial of both; run the detection stage")
        for path, name in MEASURES:
            if all(path in part[seed] for part in trials for seed in seeds):
                # detectron2 has no number if nothing was detected
                before, after = ([float(part[seed][path] or 0) for seed in seeds] for part in trials)
                transfer.append(Comparison(f"{shown} {name}", "random init", before, after))
    return DemoResults(_features(folder), transfer, seeds)


def run_folder(folder: Path, detector: str, init: str) -> Path:
    """Return where the trials of a detector ("c4" or "fpn") from "random" or "moco" weights are."""
    return folder / "transfer" / detector / init


def _features(folder: Path) -> list[Comparison]:
    """Return the accuracies at each k, and of the linear classifier."""
    names = "knn_moco knn_random linear_moco linear_random linear_pixels".split()
    found = [read_json(folder / f"{name}.json") for name in names]
    comparisons = []
    try:
        moco, random, *linear = found
        for k, value in moco["top1_by_k"].items():
            before, pixels = float(random["top1_by_k"][k]), float(moco["pixels"][k])
            comparisons.append(Comparison(f"kNN accuracy (k {k})", "untrained", [before], [float(value)], "%", pixels))
        after, before, pixels = (float(one["top1"]) for one in linear)
        comparisons.append(Comparison("linear accuracy", "untrained", [before], [after], "%", pixels))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}/{{{','.join(names)}}}.json lack a top1 or pixels; expected the output of tools/evaluate.py"
        ) from error
    return comparisons


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
