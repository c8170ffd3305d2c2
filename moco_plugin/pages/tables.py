"""Tables for terminals and pages."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass
class Table:
    """Cells as text; the first column names the rows, the others are aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def text(self) -> str:
        """Return the table in plain text, for a terminal."""
        align = ["left", *["right"] * (len(self.columns) - 1)]
        return str(tabulate(self.rows, self.columns, "simple", colalign=align, disable_numparse=True))


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, or None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def mean_and_spread(values: Sequence[float]) -> str:
    """Return ``12.3 ± 0.4``, or ``12.3`` for a single value."""
    deviation = spread(values)
    mean = f"{statistics.fmean(values):.1f}"
    return mean if deviation is None else f"{mean} ± {deviation:.1f}"
