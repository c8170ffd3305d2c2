"""The results that tools/evaluate.py wrote into a folder, as tables beside the papers' numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.papers import FINETUNE, LINEAR, OMNIBENCHMARK, Published
from moco_plugin.report.tables import Table, mean_and_spread

METHODS = {"moco": "MoCo v2", "moco_v1": "MoCo v1", "moco_v2": "MoCo v2", "moco_v3": "MoCo v3"}
NONE = "-"


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Returns the results of tools/evaluate.py at any depth of a folder, by path; other JSON files are passed over.

    Raises:
        UserError: There is none.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            result = read_json(path)
        except UserError:
            continue
        if isinstance(result, dict) and {"protocol", "weights_sha256", "versions"} <= result.keys():
            found.append(result)
    if not found:
        raise UserError(
            f"{folder} holds no result of tools/evaluate.py; expected JSON files that its --out wrote"
        )
    return found


def linear_rows(folder: Path) -> Table:
    """Returns the linear-classification table: the papers' rows, and beside and below them what was measured.

    Results that differ in nothing but the checkpoint's file are trials of one row: mean ± sample standard deviation.
    """
    return linear_table(read_evaluations(Path(folder)))


def linear_table(results: Iterable[dict[str, Any]]) -> Table:
    """See linear_rows."""
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
    return Table(
        columns, rows, "Linear classification on frozen features, top-1 and top-5 accuracy in percent."
    )


def _linear_row(name: str, paper: str, key: tuple[Any, ...], group: list[dict[str, Any]]) -> tuple[str, ...]:
    top1, top5 = (
        mean_and_spread(values) if (values := [r[m] for r in group if r.get(m) is not None]) else NONE
        for m in ("top1", "top5")
    )
    return name, paper, top1, top5, key[2], _short(key[4])


def _published(result: dict[str, Any]) -> Published | None:
    """Returns the paper's row that a result repeats; the images are the reader's to compare."""
    architecture = str(result.get("architecture"))
    for row in LINEAR:
        same = (METHODS[row.method], row.feature_dim, row.epochs) == (
            METHODS.get(str(result.get("method"))), result.get("feature_dim"), result.get("epoch")
        )  # fmt: skip
        same &= row.parameters in (None, round(result.get("parameters", 0) / 1e6, 1))
        if same and architecture.startswith(row.architecture) and not result.get("untrained"):
            return row
    return None


def _name(result: dict[str, Any]) -> str:
    architecture = str(result.get("architecture"))
    if result.get("untrained"):
        return f"random weights, {architecture}"
    method = METHODS.get(str(result.get("method")), str(result.get("method") or Path(result["weights"]).name))
    epochs = f", {result['epoch']} epochs" if result.get("epoch") else ""
    return f"{method} {architecture}{epochs}"


def _protocol(result: dict[str, Any]) -> str:
    return "cached features" if result["protocol"] == "linear_fast" else str(result.get("recipe", ""))


def other_tables(results: Iterable[dict[str, Any]]) -> list[tuple[str, Table]]:
    """Returns heading and table of each other kind of evaluation that there are results of."""
    results = list(results)
    by_kind = {
        kind: [r for r in results if r["protocol"] == kind]
        for kind in ("finetune", "lowshot", "knn", "retrieve", "omnibenchmark")
    }
    tables = []
    rows: list[tuple[str, ...]]
    columns: tuple[str, ...]
    if found := by_kind["finetune"]:
        rows = [(f"{row.name} (paper)", row.recipe, f"{row.values[0]}", "") for row in FINETUNE]
        rows += [(_name(r), str(r.get("recipe")), _number(r["top1"]), _short(r["test"])) for r in found]
        columns = ("initialisation", "recipe", "top-1", "test images")
        caption = (
            "End-to-end fine-tuning, top-1 accuracy in percent. The rows with DeiT's recipe (AdamW, its augmentation; "
            "ViT-B for 150 epochs) are not comparable with the others, which are trained with SGD."
        )
        tables.append(("Fine-tuning", Table(columns, rows, caption)))
    if found := by_kind["lowshot"]:
        rows = [
            (
                _name(r),
                f"{100 * one['share']:g}%",
                str(one["train_images"]),
                _number(one["top1"]),
                _short(r["test"]),
            )
            for r in found
            for one in r["shares"]
        ]
        columns = ("pre-training", "labels", "images", "top-1", "test images")
        tables.append(
            ("Few labels", Table(columns, rows, "Linear classification with a share of the labels."))
        )
    if found := by_kind["knn"]:
        rows = [
            (_name(r), k, _number(value), _short(r["test"]))
            for r in found
            for k, value in (r.get("top1_by_k") or {str(r["k"]): r["top1"]}).items()
        ]
        columns = ("pre-training", "k", "top-1", "test images")
        tables.append(
            ("Nearest neighbours", Table(columns, rows, "Weighted votes of k neighbours, in percent."))
        )
    if found := by_kind["retrieve"]:
        rows = [(_name(r), k, _number(v), _short(r["test"])) for r in found for k, v in r["recall"].items()]
        columns = ("pre-training", "k", "recall", "test images")
        caption = "Test images with one of their class among the k nearest, in percent."
        tables.append(("Retrieval", Table(columns, rows, caption)))
    for result in by_kind["omnibenchmark"]:
        tables.append((f"OmniBenchmark: {_name(result)}", _omnibenchmark(result)))
    return tables


def _omnibenchmark(result: dict[str, Any]) -> Table:
    rows = [
        (
            name,
            _number(realm["mean_per_class"]),
            _number(realm["top1"]),
            f"{realm['l2']:g}",
            str(realm["classes"]),
        )
        for name, realm in result["realms"].items()
    ]
    partial = f" (partial, {len(result['missing'])} realms missing)" if result["partial"] else ""
    rows.append((f"mean{partial}", _number(result["mean_per_class"]), _number(result["top1"]), "", ""))
    rows.append((OMNIBENCHMARK.name, f"{OMNIBENCHMARK.values[0]}", "", "", ""))
    caption = "A linear probe a realm, in percent, its L2 weight chosen on the realm's val images."
    if result["missing"]:
        caption += f" Missing: {', '.join(result['missing'])}."
    return Table(("realm", "mean per class", "top-1", "L2 weight", "classes"), rows, caption)


def _short(images: Any) -> str:
    """Returns the last two parts of the path of a set of images."""
    return "/".join(Path(str(images)).parts[-2:])


def _number(value: float) -> str:
    return f"{value:.1f}"
