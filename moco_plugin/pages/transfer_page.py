"""The page of all results in a folder: transfer experiments with the papers' numbers, and evaluations."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from moco_plugin.data.decode import CannotDecode, decode
from moco_plugin.errors import UserError
from moco_plugin.files import read_text
from moco_plugin.pages.curves import line_chart
from moco_plugin.pages.evaluation_results import CAPTIONS, linear_table, other_tables, read_evaluations
from moco_plugin.pages.page import Page, Picture
from moco_plugin.pages.transfer_table import read_transfers, run_name, transfer_table
from moco_plugin.transfer.tasks import TASKS, Task
from moco_plugin.typed import Step, decode_or_none

TransferRun = tuple[Path, dict[str, Any]]  # its folder and its results.json
SIDE = 640  # pixels of a drawn prediction, at most
MOST_IMAGES = 4  # images


class LogRow(msgspec.Struct):
    """What is read of a line of detectron2's log."""

    iteration: Step
    total_loss: float


def write_report(folder: str | Path, html: str | Path) -> str:
    """Write one self-contained page of all results below a folder.

    Args:
        folder: Contains runs of tools/transfer.py and JSON files of tools/evaluate.py, at any depth.
        html: The page.

    Returns:
        The tables in plain text.

    Raises:
        UserError: No results found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with results of tools/transfer.py or evaluate.py")
    transfers, evaluations = read_transfers(folder), read_evaluations(folder)
    if not transfers and not evaluations:
        raise UserError(
            f"{folder} contains no results; expected those of tools/transfer.py, or of tools/evaluate.py --out"
        )
    counts = []
    if transfers:
        tasks = len({run["task"] for _, run in transfers})
        counts.append(f"{_plural(len(transfers), 'transfer run')} of {_plural(tasks, 'task')}")
    if evaluations:
        counts.append(_plural(len(evaluations), "evaluation"))
    page = Page("Results and the papers' numbers", f"{' and '.join(counts)} in {folder}.")
    texts = []
    for name, task in TASKS.items():
        if runs := [run for run in transfers if run[1]["task"] == name]:
            texts.append(_add_task(page, task, runs))
    if evaluations:
        texts.append(_add_evaluations(page, evaluations))
    if transfers:
        _add_making(page, transfers)
    page.save(html)
    return "\n\n".join(texts)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _add_task(page: Page, task: Task, runs: Sequence[TransferRun]) -> str:
    """Add a task's table, curves and pictures; return the table in plain text."""
    table = transfer_table(task, [result for _, result in runs])
    page.section(task.title)
    page.add("table", table)
    names = [run_name(result) for _, result in runs]
    named = {
        f"{name} ({run[0].name})" if names.count(name) > 1 else name: run for name, run in zip(names, runs, strict=True)
    }
    add_curves(page, named)
    add_predictions(page, named, "The first test images")
    return f"{task.title}\n{table.caption}\n\n{table.text()}"


def add_curves(page: Page, runs: Mapping[str, TransferRun]) -> None:
    """Add a chart of the training losses of runs by name, if any is logged."""
    curves = {name: curve for name, run in runs.items() if (curve := _training_loss(*run))[0]}
    if not curves:
        return
    alt = "Line chart: the training loss of " + ", ".join(
        f"{name} goes from {losses[0]:.2f} to {losses[-1]:.2f}" for name, (_, losses) in curves.items()
    )
    caption = "The sum of all losses over iterations, as detectron2 logs it: the mean over the trials."
    page.add("charts", [line_chart(curves, "training loss", alt)], caption)


def _training_loss(folder: Path, result: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Return the iterations that all trials have logged, and the mean loss of the trials there."""
    logs = [log for trial in result["trials"] if (log := _read_log(folder / trial["folder"] / "metrics.json"))]
    steps = sorted(set.intersection(*map(set, logs))) if logs else []
    return steps, [statistics.fmean(log[step] for log in logs) for step in steps]


def _read_log(path: Path) -> dict[int, float]:
    """Return the losses of detectron2's log by iteration; of iterations repeated after a resume, the last."""
    if not path.exists():
        return {}
    rows = [decode_or_none(line.encode(), LogRow) for line in read_text(path).splitlines()]  # a kill leaves half a line
    return {row.iteration: row.total_loss for row in rows if row}


def add_predictions(page: Page, runs: Mapping[str, TransferRun], images: str, shown: int = MOST_IMAGES) -> bool:
    """Add the pictures of ``detectors.predict.draw_examples``: the truth of each image, then the predictions of each run.

    Args:
        page: Where to add them.
        runs: By name.
        images: What the images are, for the caption.
        shown: Images, at most.

    Returns:
        Whether there are any.

    Raises:
        UserError: A picture cannot be read.
    """
    drawn = {name: path for name, (folder, _) in runs.items() if (path := folder / "predictions").is_dir()}
    truths = {path.name: path for folder in drawn.values() for path in sorted(folder.glob("*_truth.png"))}
    panels = []
    for position, path in enumerate(list(truths.values())[:shown], start=1):
        panels.append(_picture(path, f"Image {position} and what is in it", "Ground truth"))
        for name, folder in drawn.items():
            drawing = folder / path.name.replace("_truth.png", ".png")
            if drawing.is_file():
                panels.append(_picture(drawing, f"Image {position}, predictions of {name}", name))
    if panels:
        scores = {str(result["drawn_above"]) for _, result in runs.values() if "drawn_above" in result}
        limit = f", detections of score {' or '.join(sorted(scores))} or more" if scores else ""
        page.add(
            "panels",
            panels,
            f"{images}: what is in them, and what the model of the first trial finds{limit}; nothing is drawn where it "
            "finds none.",
        )
    return bool(panels)


def _picture(path: Path, alt: str, label: str) -> Picture:
    try:
        small = decode(path, str(path))
    except CannotDecode as error:
        raise UserError(f"{path} cannot be read as a picture; remove it, or the folder it is in") from error
    small.thumbnail((SIDE, SIDE))
    return Picture(small, alt, label, kind="JPEG")


def _add_evaluations(page: Page, results: Sequence[dict[str, Any]]) -> str:
    """Add tables of the results and what was measured; return the tables in plain text."""
    tables = other_tables(results)
    linear = [result for result in results if result["protocol"] in ("linear", "linear_fast")]
    if linear:
        tables.insert(0, ("Linear classification", linear_table(linear)))
    for heading, table in tables:
        page.section(heading)
        if heading == "Linear classification":
            page.add(
                "text",
                "The papers' numbers are for ImageNet, with the whole protocol. Numbers of other images, or of cached "
                "features, are not comparable with them.",
            )
        page.add("table", table)
    page.section("What was measured")
    checkpoints = {result["weights_sha256"]: result["weights"] for result in results}
    page.add(
        "settings",
        {f"{Path(path).name}, {digest[:8]}": f"{path}, SHA-256 {digest}" for digest, path in checkpoints.items()},
    )
    page.add("text", _versions(results))
    texts = [f"{heading}\n{table.text()}" for heading, table in tables]
    kinds = {str(result["protocol"]) for result in results} - {"linear", "linear_fast", *CAPTIONS}
    if kinds := {kind for kind in kinds if not kind.startswith("omnibenchmark")}:
        texts.append(f"Results without a table: {', '.join(sorted(kinds))}.")
        page.add("text", texts[-1])
    return "\n\n".join(texts)


def _add_making(page: Page, runs: Sequence[TransferRun]) -> None:
    page.section("What was trained")
    lines = {}
    for folder, result in runs:
        solver = result["settings"]["SOLVER"]
        weights = f"{result['weights']}, SHA-256 {result['weights_sha256']}" if result["weights"] else "random"
        lines[str(folder)] = (
            f"{result['config']}; weights: {weights}; {solver['IMS_PER_BATCH']} images per batch, learning rate "
            f"{solver['BASE_LR']:g}, {solver['MAX_ITER']} iterations"
        )
    page.add("settings", lines)
    page.add("text", _versions([result for _, result in runs]))


def _versions(results: Sequence[dict[str, Any]]) -> str:
    versions = sorted({f"{name} {value}" for result in results for name, value in result["versions"].items()})
    return f"Versions: {', '.join(versions)}."
