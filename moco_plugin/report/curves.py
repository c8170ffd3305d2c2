"""Line charts of what a run has logged."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from moco_plugin.errors import UserError
from moco_plugin.report.page import Html
from moco_plugin.report.pictures import picture

LIGHT = {"text": "#5b6475", "grid": "#dfe3ea", "line": "#1c63c7"}
DARK = {"text": "#9aa4b5", "grid": "#2d3542", "line": "#74abff"}
# of several lines in one chart; each also has a dash pattern of its own
LIGHT_LINES = ("#1c63c7", "#c2410c", "#15803d", "#7e22ce", "#b91c5c", "#0e7490", "#854d0e", "#475569")
DARK_LINES = ("#74abff", "#fb923c", "#4ade80", "#c084fc", "#f472b6", "#22d3ee", "#facc15", "#cbd5e1")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
SMOOTHING = 10  # logged steps in the running mean of a noisy curve


def read_curve(path: Path, column: str) -> tuple[list[int], list[float]]:
    """Returns the steps at which a column of a ``metrics.csv`` was logged, and its values there.

    Raises:
        UserError: No such file, or nothing logged under that name.
    """
    try:
        with open(path, newline="") as file:
            rows = [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a log of a pre-training run ({error})") from error
    if not rows:
        raise UserError(f"{path} has no value of {column}; expected the log of a pre-training run")
    return [step for step, _ in rows], [value for _, value in rows]


def line_chart(
    steps: Sequence[int], values: Sequence[float], title: str, alt: str, *,
    noisy: bool = False, limits: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
) -> Html:  # fmt: skip
    """Returns a chart of values over steps, for light and for dark pages.

    Args:
        steps: Training steps.
        values: One a step.
        title: What the values are, with their unit.
        alt: What the chart shows.
        noisy: Draw the values pale, and their running mean over them; else mark each value.
        limits: Of the vertical axis.
        reference: A value to compare with and its name, drawn as a dashed line.
    """

    def draw(axes: Any, colours: dict[str, str], lines: Sequence[str]) -> None:
        if noisy:
            axes.plot(steps, values, color=colours["line"], alpha=0.3, linewidth=1)
            window = min(SMOOTHING, len(values))
            mean = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(steps[window // 2 :][: len(mean)], mean, color=colours["line"], linewidth=2)
        else:
            axes.plot(steps, values, color=colours["line"], linewidth=2, marker="o", markersize=5)
        if reference is not None:
            level, name = reference
            axes.axhline(level, color=colours["text"], linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                name, (1, level), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", color=colours["text"], fontsize=9,
            )  # fmt: skip
        if limits is not None:
            axes.set_ylim(*limits)

    return _chart(draw, title, alt)


def lines_chart(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str, alt: str) -> Html:
    """Returns a chart of several curves, for light and for dark pages.

    Args:
        curves: Steps and values of each, by its name in the legend.
        title: What the values are, with their unit.
        alt: What the chart shows.
    """

    def draw(axes: Any, colours: dict[str, str], lines: Sequence[str]) -> None:
        for number, (name, (steps, values)) in enumerate(curves.items()):
            axes.plot(
                steps, values, label=name, color=lines[number % len(lines)], linewidth=2,
                linestyle=DASHES[number % len(DASHES)], marker="o" if len(steps) == 1 else None,
            )  # fmt: skip
        axes.legend(frameon=False, fontsize=9, labelcolor=colours["text"])

    return _chart(draw, title, alt)


def _chart(draw: Callable[[Any, dict[str, str], Sequence[str]], None], title: str, alt: str) -> Html:
    """Returns what ``draw(axes, colours, line colours)`` draws, on axes of the page's style."""

    def render(colours: dict[str, str], lines: Sequence[str]) -> Image.Image:
        figure = Figure(figsize=(4.4, 3.0), dpi=180, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, colours, lines)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=colours["text"])
        axes.set_xlabel("step", color=colours["text"])
        axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
        axes.tick_params(colors=colours["text"], length=0)
        axes.spines[:].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, transparent=True)
        return Image.open(buffer)

    return picture(render(LIGHT, LIGHT_LINES), alt, dark=render(DARK, DARK_LINES))
