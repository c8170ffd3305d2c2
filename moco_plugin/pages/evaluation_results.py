"""Tables of the results of tools/evaluate.py, with the papers' numbers."""

from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.methods import method_title
from moco_plugin.pages.tables import Table, mean_and_spread
from moco_plugin.papers import FINETUNE, LINEAR, OMNIBENCHMARK, Published
from moco_plugin.typed import convert

NONE = "-"


class Evaluation(TypedDict):
    """What is read of a result of tools/evaluate.py."""

    protocol: str
    weights: str
    weights_sha256: str
    versions: dict[str, str | None]
    train: NotRequired[str | None]
    test: NotRequired[str | None]
    method: NotRequired[str | None]
    architecture: NotRequired[str | None]
    epoch: NotRequired[int | None]
    feature_dim: NotRequired[int | None]
    parameters: NotRequired[int]
    untrained: NotRequired[bool]
    recipe: NotRequired[str | None]
    top1: NotRequired[float | None]
    top5: NotRequired[float | None]


class _Measured(Evaluation):
    top1: float  # type: ignore[misc]  # required here


class _Share(TypedDict):
    share: float
    train_images: int
    top1: float


class _LowShot(Evaluation):
    shares: list[_Share]


class _Neighbours(_Measured):
    k: int
    top1_by_k: NotRequired[dict[str, float]]
    pixels: NotRequired[dict[str, float] | None]


class _Retrieval(Evaluation):
    recall: dict[str, float]


class _MultiLabel(Evaluation):
    knn_map: float
    linear_map: float


class _Realm(TypedDict):
    mean_per_class: float
    top1: float
    l2: float
    classes: int


class _OmniBenchmark(_Measured):
    realms: dict[str, _Realm]
    partial: bool
    missing: list[str]
    mean_per_class: float


KINDS: dict[str, Any] = {
    "finetune": _Measured,
    "lowshot": _LowShot,
    "knn": _Neighbours,
    "retrieve": _Retrieval,
    "multilabel": _MultiLabel,
    "omnibenchmark": _OmniBenchmark,
}


def find_results(
    folder: Path, pattern: str, keys: Set[str], kind_of: Callable[[dict[str, Any]], Any]
) -> list[tuple[Path, Any]]:
    """Return path and content of each JSON file at any depth of a folder that has all the keys, by path.

    Args:
        folder: Which is looked through.
        pattern: Of the files' names.
        keys: What makes a JSON file a result; others are none.
        kind_of: Returns the type of a result, or None for one that is left out.

    Raises:
        UserError: A result is not of its type.
    """
    results = []
    for path in sorted(folder.rglob(pattern)):
        try:
            result = read_json(path)
        except UserError:
            continue
        if isinstance(result, dict) and keys <= result.keys() and (kind := kind_of(result)) is not None:
            results.append((path, convert(result, kind, str(path))))
    return results


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the results of tools/evaluate.py at any depth of a folder, by path.

    Raises:
        UserError: One is not of its type.
    """
    keys = {"protocol", "weights_sha256", "versions"}
    found = find_results(folder, "*.json", keys, lambda result: KINDS.get(str(result["protocol"]), Evaluation))
    return [result for _, result in found]


def linear_table(results: Iterable[dict[str, Any]]) -> Table:
    """Return the linear-classification table: the papers' rows with the measurements.

    Results that differ only in the checkpoint's file are trials of one row: mean ± sample standard deviation.
    """
    trials: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        if result["protocol"] in ("linear", "linear_fast"):
            key = (_published(result), _name(result), _protocol(result), result["train"], result["test"])
            trials.setdefault(key, []).append(result)
    rows = []
    for row in LINEAR:
        mine = [(key, group) for key, group in trials.items() if key[0] == row]
        top1 = f"{row.values[0]}" + (f" ± {row.std}" if row.std else "")
        rows += [_linear_row(row.name, top1, key, group) for key, group in mine] or [
            (row.name, top1, NONE, NONE, "", "")
        ]
    rows += [_linear_row(key[1], NONE, key, group) for key, group in trials.items() if key[0] is None]
    columns = ("pre-training", "paper, ImageNet", "here, top-1", "here, top-5", "protocol", "test images")
    return Table(columns, rows, "Linear classification on frozen features, top-1 and top-5 accuracy in percent.")


def _linear_row(name: str, paper: str, key: tuple[Any, ...], group: list[dict[str, Any]]) -> tuple[str, ...]:
    top1, top5 = (
        mean_and_spread(values) if (values := [r[m] for r in group if r.get(m) is not None]) else NONE
        for m in ("top1", "top5")
    )
    return name, paper, top1, top5, key[2], _short(key[4])


def _published(result: dict[str, Any]) -> Published | None:
    """Return the paper's row that a result repeats; images are not compared."""
    architecture = str(result.get("architecture"))
    for row in LINEAR:
        same = (method_title(row.method), row.feature_dim, row.epochs) == (
            method_title(result.get("method")),
            result.get("feature_dim"),
            result.get("epoch"),
        )
        same &= row.parameters in (None, round(result.get("parameters", 0) / 1e6, 1))
        if same and architecture.startswith(row.architecture) and not result.get("untrained"):
            return row
    return None


def _name(result: dict[str, Any]) -> str:
    architecture = str(result.get("architecture"))
    if result.get("pixels") is True:
        return "raw pixels"
    if result.get("untrained"):
        return f"random weights, {architecture}"
    method = method_title(result.get("method")) or str(result.get("method") or Path(result["weights"]).name)
    epochs = f", {result['epoch']} epochs" if result.get("epoch") else ""
    return f"{method} {architecture}{epochs}"


def _protocol(result: dict[str, Any]) -> str:
    return "cached features" if result["protocol"] == "linear_fast" else str(result.get("recipe", ""))


# heading and caption of each other kind of result
CAPTIONS = {
    "finetune": (
        "Fine-tuning",
        "End-to-end fine-tuning, top-1 accuracy in percent. The rows with DeiT's recipe (AdamW, its augmentation; ViT-B "
        "for 150 epochs) are not comparable with the others, which are trained with SGD.",
    ),
    "lowshot": ("Few labels", "Linear classification with a share of the labels, top-1 accuracy in percent."),
    "knn": ("Nearest neighbours", "Weighted votes of k neighbours, top-1 accuracy in percent."),
    "retrieve": ("Retrieval", "Test images with one of their class among the k nearest, in percent."),
    "multilabel": ("Several labels", "Mean average precision over the classes, in percent."),
}
COLUMNS = {
    "finetune": ("initialisation", "recipe", "top-1", "test images"),
    "lowshot": ("pre-training", "labels", "images", "top-1", "test images"),
    "knn": ("pre-training", "k", "top-1", "test images"),
    "retrieve": ("pre-training", "k", "recall", "test images"),
    "multilabel": ("pre-training", "kNN", "linear", "test images"),
}


def other_tables(results: Sequence[dict[str, Any]]) -> list[tuple[str, Table]]:
    """Return heading and table of each other kind of evaluation among the results."""
    tables = []
    for kind, (heading, caption) in CAPTIONS.items():
        if ours := [result for result in results if result["protocol"] == kind]:
            papers = [(f"{row.name} (paper)", row.recipe, f"{row.values[0]}", "") for row in FINETUNE]
            rows = [(_name(result), *cells, _short(result["test"])) for result in ours for cells in _cells(result)]
            for result in ours:
                pixels = (result.get("pixels") or {}).items()
                rows += [("raw pixels", k, _number(value), _short(result["test"])) for k, value in pixels]
            table = Table(COLUMNS[kind], [*(papers if kind == "finetune" else ()), *rows], caption)
            tables.append((heading, table))
    for result in results:
        if result["protocol"] == "omnibenchmark":
            tables.append((f"OmniBenchmark: {_name(result)}", _omnibenchmark(result)))
    return tables


def _cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the middle cells of each row of a result."""
    if result["protocol"] == "finetune":
        return [(str(result.get("recipe")), _number(result["top1"]))]
    if result["protocol"] == "lowshot":
        return [
            (f"{100 * one['share']:g}%", str(one["train_images"]), _number(one["top1"])) for one in result["shares"]
        ]
    if result["protocol"] == "multilabel":
        return [(_number(result["knn_map"]), _number(result["linear_map"]))]
    by_k = result.get("recall") or result.get("top1_by_k") or {str(result["k"]): result["top1"]}
    return [(k, _number(value)) for k, value in by_k.items()]


def _omnibenchmark(result: dict[str, Any]) -> Table:
    rows = [
        (name, *map(_number, (r["mean_per_class"], r["top1"])), f"{r['l2']:g}", str(r["classes"]))
        for name, r in result["realms"].items()
    ]
    partial = f" (partial, {len(result['missing'])} realms missing)" if result["partial"] else ""
    rows.append((f"mean{partial}", _number(result["mean_per_class"]), _number(result["top1"]), "", ""))
    rows.append((OMNIBENCHMARK.name, f"{OMNIBENCHMARK.values[0]}", "", "", ""))
    caption = "A linear probe per realm, in percent, its L2 weight chosen on the realm's val images."
    if result["missing"]:
        caption += f" Missing: {', '.join(result['missing'])}."
    return Table(("realm", "mean per class", "top-1", "L2 weight", "classes"), rows, caption)


def _short(images: Any) -> str:
    """Return the last two parts of the path of a set of images."""
    return "/".join(Path(str(images)).parts[-2:])


def _number(value: float) -> str:
    return f"{value:.1f}"
