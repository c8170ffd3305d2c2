"""Tables of transfer experiments: the papers' rows, each followed by our measurements."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from moco_plugin.methods import method_title
from moco_plugin.pages.evaluation_results import NONE, find_results
from moco_plugin.pages.tables import Table
from moco_plugin.papers import Published
from moco_plugin.transfer.tasks import TASKS, Task

RESULT_KEYS = {"task", "init", "weights_sha256", "settings", "trials"}  # what the results.json of a transfer run has


class _Trial(TypedDict):
    folder: str
    metrics: dict[str, float | None]


class _Solver(TypedDict):
    IMS_PER_BATCH: int
    BASE_LR: float
    MAX_ITER: int


class _Settings(TypedDict):
    SOLVER: _Solver


class _Pretraining(TypedDict, total=False):
    method: str | None
    epoch: int | None
    architecture: str | None


class Transfer(TypedDict):
    """What is read of the ``results.json`` of a transfer run."""

    task: str
    init: str
    config: str
    weights: str
    weights_sha256: str
    settings: _Settings
    trials: list[_Trial]
    versions: dict[str, str | None]
    mean: NotRequired[dict[str, float | None]]
    std: NotRequired[dict[str, float | None]]
    pretraining: NotRequired[_Pretraining | None]
    overrides: NotRequired[list[str] | None]
    images_per_batch: NotRequired[int | None]
    requested_trials: NotRequired[int | None]
    drawn_above: NotRequired[float]


def read_transfers(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return folder and ``results.json`` of each transfer run with a finished trial, at any depth of a folder."""
    found = find_results(
        folder, "results.json", RESULT_KEYS, lambda result: Transfer if str(result["task"]) in TASKS else None
    )
    return [(path.parent, result) for path, result in found if result["trials"]]


def list_tasks() -> str:
    """Return all tasks in plain text: what they are, their data sets and configs, and the papers' numbers."""
    width = max(len(config) for task in TASKS.values() for config in task.configs.values())
    lines = []
    for task in TASKS.values():
        lines += ["", f"{task.name}: {task.title}", f"  data sets  {', '.join(task.datasets)}"]
        for init, config in task.configs.items():
            rows = [row for row in task.published if row.init == init]
            lines.append(f"  {init:<10} {config:<{width}}  {'; '.join(map(_short, rows))}".rstrip())
        if task.published:
            lines.append(f"  {'papers':<10} {' / '.join(metric.name for metric in task.metrics)}, in percent")
        if task.note:
            lines.append(f"  {'':<10} {task.note}")
    return "\n".join(lines[1:])


def _short(row: Published) -> str:
    name = row.name.removeprefix("MoCo ") if row.init == "moco" else ""
    return f"{name} {' / '.join(map(str, row.values))}".lstrip()


def transfer_table(task: Task, results: Iterable[Mapping[str, Any]]) -> Table:
    """Return a task's table: each of the papers' rows, followed by the runs from the same kind of weights.

    Args:
        task: The experiment.
        results: The content of ``results.json`` of its runs; mean ± sample standard deviation over the trials is shown.
    """
    left, rows = list(results), []
    changed: list[str] = []
    for published in (*task.published, None):
        if published is not None:
            rows.append((published.name, "paper", *map(str, published.values), "", ""))
        for result in [result for result in left if match(task, result) is published]:
            left.remove(result)
            name = run_name(result) if published is None else published.name
            if text := changes(result):
                changed.append(f"[{len(changed) + 1}] {text}")
            rows.append((name, "here", *measured(task, result), f"[{len(changed)}]" if text else ""))
    columns = ("initialisation", "from", *(metric.name for metric in task.metrics), "trials", "changed")
    sentences = ["In percent; here: mean ± sample standard deviation over trials.", task.note]
    if changed:
        sentences.append(f"Changed settings: {'; '.join(changed)}.")
    return Table(columns, rows, " ".join(filter(None, sentences)))


def match(task: Task, result: Mapping[str, Any]) -> Published | None:
    """Return the papers' row that a run repeats, judged by its weights; for MoCo, method and epochs must match."""
    pretraining = result.get("pretraining") or {}
    for row in task.published:
        if row.init != result["init"]:
            continue
        method, epoch = method_title(pretraining.get("method")), pretraining.get("epoch")
        if row.init != "moco" or (epoch and (method_title(row.method), row.epochs) == (method, epoch)):
            return row
    return None


def run_name(result: Mapping[str, Any]) -> str:
    """Return a short name of the weights that a run started from."""
    if result["init"] == "random":
        return "random"
    pretraining = result.get("pretraining") or {}
    if result["init"] == "supervised":
        return "supervised"
    method = method_title(pretraining.get("method"))
    if method is None:
        return f"MoCo: {Path(result['weights']).name}"
    epochs = pretraining.get("epoch", -1)
    architecture = pretraining.get("architecture")
    return ", ".join(
        [
            method + (f" {architecture}" if architecture else ""),
            *([f"{epochs} epoch{'s' * (epochs > 1)}"] if epochs is not None and epochs > 0 else []),
        ]
    )


def changes(result: Mapping[str, Any]) -> str:
    """Return how a run's settings differ from the config's, or an empty string."""
    overrides: Sequence[str] = result.get("overrides") or ()
    pairs = [f"{key} {value}" for key, value in zip(overrides[::2], overrides[1::2], strict=False)]
    batch = result.get("images_per_batch")
    return ", ".join([f"{batch} images per batch"] * bool(batch) + pairs)


def measured(task: Task, result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a run's metrics and of its number of trials."""
    cells = []
    for metric in task.metrics:
        mean, std = (result.get(kind, {}).get(metric.path) for kind in ("mean", "std"))
        cells.append(NONE if mean is None else f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}"))
    finished, wanted = len(result["trials"]), result.get("requested_trials") or 0
    return (*cells, f"{finished} of {wanted}" if finished < wanted else str(finished))
