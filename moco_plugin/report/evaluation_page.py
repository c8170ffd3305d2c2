"""The page of a folder of evaluations: linear classification beside the papers' rows, and whatever else is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_plugin.files import atomic_path
from moco_plugin.report.evaluation_results import linear_table, other_tables, read_evaluations
from moco_plugin.report.page import Page


def write_evaluation_page(folder: str | Path, html: str | Path) -> str:
    """Writes one self-contained page of the results in a folder.

    Args:
        folder: Where the JSON files of tools/evaluate.py lie, at any depth.
        html: The page.

    Returns:
        The tables in plain text.

    Raises:
        UserError: No result is there.
    """
    results = read_evaluations(Path(folder))
    checkpoints = {result["weights_sha256"] for result in results}
    page = Page(
        "Frozen features, measured", f"{len(results)} results of {len(checkpoints)} checkpoints in {folder}."
    )
    text = add_evaluations(page, results)
    with atomic_path(html) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    return text


def add_evaluations(page: Page, results: Sequence[dict[str, Any]]) -> str:
    """Adds sections with the tables of results and what was measured to a page; returns the tables in plain text."""
    tables = other_tables(results)
    if any(result["protocol"] in ("linear", "linear_fast") for result in results):
        tables.insert(0, ("Linear classification", linear_table(results)))
    for heading, table in tables:
        page.section(heading)
        if heading == "Linear classification":
            page.text(
                "The papers' numbers are for ImageNet, with the whole protocol. A number of other images, or of "
                "cached features, stands beside them to be looked at, not to be compared."
            )
        page.table(table)
    page.section("What was measured")
    checkpoints = {result["weights_sha256"]: result["weights"] for result in results}
    page.settings({Path(path).name: f"{path}, SHA-256 {digest}" for digest, path in checkpoints.items()})
    versions = sorted({f"{k} {v}" for result in results for k, v in result["versions"].items()})
    page.text(f"Versions: {', '.join(versions)}.")
    return "\n\n".join(f"{heading}\n{table.text()}" for heading, table in tables)
