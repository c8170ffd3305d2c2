"""Line charts of logged values."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from moco_plugin.errors import UserError
from moco_plugin.pages.page import Picture
from moco_plugin.runs.logs import read_rows
from moco_plugin.typed import convert

Curve = tuple[Sequence[int], Sequence[float]]  # steps and values
LIGHT = ("#5b6475", "#dfe3ea")  # of text and grid
DARK = ("#9aa4b5", "#2d3542")
LIGHT_LINES = ("#1c63c7", "#c2410c", "#15803d", "#7e22ce", "#b91c5c", "#0e7490", "#854d0e", "#475569")
DARK_LINES = ("#74abff", "#fb923c", "#4ade80", "#c084fc", "#f472b6", "#22d3ee", "#facc15", "#cbd5e1")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
SMOOTHING = 10  # logged steps in the running mean of a noisy curve
MARKED = 30  # values of a curve that are marked one by one, at most


def read_curve(path: Path, column: str) -> Curve:
    """Return the steps at which a column of a ``metrics.csv`` was logged, and its values.

    Raises:
        UserError: The file is not such a log, or has no value of the column.
    """
    rows = [row for row in read_rows(path) if row.get(column)]
    if not rows:
        raise UserError(f"{path} has no value of {column}; expected the log of a pre-training run")
    values = convert([row[column] for row in rows], list[float], f"{path}, {column}")
    return [row["step"] for row in rows], values


def line_chart(
    curves: Mapping[str, Curve],
    title: str,
    alt: str,
    *,
    noisy: bool = False,
    limits: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
    horizontal: str = "step",
) -> Picture:
    """Return a chart of curves over training steps.

    Args:
        curves: By their names in the legend; a single one needs none.
        title: What the values are, with their unit.
        alt: What the chart shows.
        noisy: Draw the values pale, and their running mean over them.
        limits: Of the vertical axis.
        reference: A value to compare with and its name, drawn as a dashed line.
        horizontal: What the curves are over.
    """

    def draw(text: str, grid: str, lines: Sequence[str]) -> Image.Image:
        legend_rows = -(-len(curves) // 2) if len(curves) > 1 or "" not in curves else 0
        figure = Figure(figsize=(4.4, 3.0 + 0.2 * legend_rows), dpi=180, layout="constrained")
        axes = figure.add_subplot()
        for index, (name, (steps, values)) in enumerate(curves.items()):
            colour = lines[index % len(lines)]
            marker = "o" if len(steps) <= MARKED and not noisy else None
            if noisy:
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
                window = min(SMOOTHING, max(1, len(values) // 2))
                values = np.convolve(values, np.ones(window) / window, mode="valid").tolist()
                steps = steps[window // 2 :][: len(values)]
            axes.plot(
                steps,
                values,
                label=name.replace("$", r"\$"),
                color=colour,
                linewidth=2,
                marker=marker,
                markersize=5,
                linestyle=DASHES[index % len(DASHES)],
            )
        if reference is not None:
            axes.axhline(reference[0], color=text, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                reference[1],
                (1, reference[0]),
                (-2, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color=text,
                fontsize=9,
            )
        if limits is not None:
            axes.set_ylim(*limits)
        if legend_rows:  # below the axes, where it covers no curve
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=text)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=text)
        axes.set_xlabel(horizontal, color=text)
        axes.grid(axis="y", color=grid, linewidth=0.8)
        axes.tick_params(colors=text, length=0)
        axes.spines[:].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, transparent=True)
        return Image.open(buffer)

    return Picture(draw(*LIGHT, LIGHT_LINES), alt, dark=draw(*DARK, DARK_LINES))
