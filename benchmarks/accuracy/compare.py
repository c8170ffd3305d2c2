"""Accuracy after the same CPU seconds: ours, and what lightly and LightlyTrain document."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moco_plugin.benchmarks.accuracy.measures import measure as measure_features
from moco_plugin.benchmarks.accuracy.measures import measure_pixels
from moco_plugin.benchmarks.accuracy.peers import CONTESTANTS, train_quietly
from moco_plugin.benchmarks.accuracy.sets import Sets, read_sets
from moco_plugin.benchmarks.timing import at_least
from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.files import atomic_folder, read_json, write_json
from moco_plugin.pages.curves import line_chart

SHARES = (0.25, 0.5, 1.0)  # of the budget, each trained anew, with its own schedule
TIMED = (256, 1024)  # images of two short runs, whose difference is the cost of an image
K = "k 20"
CONTEXT = multiprocessing.get_context("spawn")


def measure(
    minutes: float = 15.0,
    images: int = 40_000,
    seeds: Sequence[int] = (0, 1, 2),
    contestants: Sequence[str] = tuple(CONTESTANTS),
    folder: Path = Path("runs/accuracy"),
) -> dict[str, Any]:
    """Compare the accuracy of features by CPU seconds: ours, and what lightly and LightlyTrain document.

    All are trained for a quarter, half and all of a budget, one after another on one thread. Each training is in
    ``folder`` when it is done, and is not repeated; an interrupted measurement resumes.

    Args:
        minutes: CPU time of a training.
        images: To train on.
        seeds: Of the trainings.
        contestants: Default: all; an unknown name lists them.
        folder: For images, trainings and the picture, accuracy.png (default runs/accuracy).

    Raises:
        UsageError: An unknown contestant, or an invalid number.
        UserError: A training failed.
    """
    at_least(TIMED[1], images=images)
    if unknown := [name for name in contestants if name not in CONTESTANTS]:
        hint = did_you_mean(unknown[0], CONTESTANTS)
        raise UsageError(f"there is no contestant {unknown[0]!r}{hint}; known are {', '.join(CONTESTANTS)}")
    if minutes <= 0:
        raise UsageError(f"--minutes is {minutes}; expected more than 0")
    sets = read_sets("fashion", folder)
    pictures = {count: _write_pictures(folder, sets, count) for count in (*TIMED, images)}
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in contestants:
        few, more = (_train(folder, name, pictures[count], 1, 0, None)["cpu_seconds"] for count in TIMED)
        epoch = max(more - few, 1e-3) / (TIMED[1] - TIMED[0]) * images
        for share in SHARES:
            epochs = max(1, round(60 * minutes * share / epoch))
            rows = [_train(folder, name, pictures[images], epochs, seed, folder) for seed in seeds]
            curves.setdefault(name, []).append({"share": share, "epochs": epochs, **_summary(rows)})
    baselines = {"raw pixels": measure_pixels(sets), "untrained": rows[0]["untrained"]}
    _draw(folder / "accuracy.png", curves)
    results: dict[str, Any] = {
        f"{name}, {point['share']:g}": {key: value for key, value in point.items() if key != "share"}
        for name, points in curves.items()
        for point in points
    }
    results |= {name: {"kNN": values[K], "linear": values["linear"]} for name, values in baselines.items()}
    settings = {"minutes": minutes, "images": images, "seeds": list(seeds), "contestants": list(contestants)}
    return {"settings": settings, "results": results, "advice": _conclusion(curves)}


def _write_pictures(folder: Path, sets: Sets, count: int) -> Path:
    """Write the first pictures as PNG files, which all contestants read."""
    output = folder / f"pictures_{count}"
    if not output.is_dir():
        assert sets.placed.array is not None
        with atomic_folder(output) as temporary:
            for index, picture in enumerate(sets.placed.array[:count]):
                Image.fromarray(np.ascontiguousarray(picture)).save(temporary / f"{index:06d}.png")
    return output


def _train(folder: Path, name: str, pictures: Path, epochs: int, seed: int, measured: Path | None) -> dict[str, Any]:
    """Train in a process of its own; return the content of its file: CPU seconds, and accuracies where they are measured."""
    what = name.replace(" ", "_").replace(",", "").replace("'", "")
    kind = "seed" if measured else "timed"
    run = folder / f"{what}_{pictures.name}_{epochs}_{kind}_{seed}"
    file = run.with_suffix(".json")
    if not file.is_file():
        process = CONTEXT.Process(target=_run, args=(name, pictures, run, epochs, seed, measured, file))
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(f"{name} failed with exit code {process.exitcode}; its message is above")
    return dict(read_json(file))


def _run(name: str, pictures: Path, run: Path, epochs: int, seed: int, measured: Path | None, file: Path) -> None:
    if "LightlyTrain" in name:
        import lightly_train  # noqa: F401  (not a part of the training)
    start = _cpu_seconds()
    network, view = train_quietly(name, pictures, run, epochs, seed)
    row: dict[str, Any] = {"cpu_seconds": round(_cpu_seconds() - start, 1)}
    if measured:
        from moco_plugin.backbones import create_backbone
        from moco_plugin.benchmarks.accuracy.peers import BACKBONE, CHANNELS

        sets = read_sets("fashion", measured)
        row["accuracy"] = measure_features(network, view, sets)
        row["untrained"] = measure_features(create_backbone(BACKBONE, channels=CHANNELS), view, sets)
    write_json(file, row)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means, and sample standard deviations of several seeds."""
    summary: dict[str, Any] = {"cpu_seconds": round(statistics.fmean(row["cpu_seconds"] for row in rows))}
    for title, key in (("kNN", K), ("linear", "linear")):
        values = [row["accuracy"][key] for row in rows]
        summary[title] = round(statistics.fmean(values), 2)
        if len(values) > 1:
            summary[f"{title} deviation"] = round(statistics.stdev(values), 2)
    return summary


def _draw(path: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    lines = {name: ([p["cpu_seconds"] for p in points], [p["kNN"] for p in points]) for name, points in curves.items()}
    line_chart(lines, "kNN accuracy in %, k 20", "kNN accuracy by CPU time", horizontal="CPU seconds").image.save(path)


def _conclusion(curves: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Say who is ahead at the end, and what ours has in half of the budget."""
    sentences = []
    for title in ("kNN", "linear"):
        best = max(curves, key=lambda name: curves[name][-1][title])
        sentences.append(f"{title}: {best} is ahead at the end, with {curves[best][-1][title]:.1f}%.")
        peers = [name for name in curves if name != "ours"]
        if peers and "ours" in curves:
            peer = max(peers, key=lambda name: curves[name][-1][title])
            half, end = curves["ours"][SHARES.index(0.5)][title], curves[peer][-1][title]
            reached = "has" if half >= end else "does not have"
            sentences.append(
                f"Ours {reached} in half of the budget ({half:.1f}%) what the best of the others, {peer}, has at its end "
                f"({end:.1f}%)."
            )
    return sentences
