"""Measurements with MoCo and without it, over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from moco_plugin.pages.tables import Table, mean_and_spread, spread


@dataclass
class Comparison:
    """One measure, from 0 to 100, with MoCo and without it.

    Attributes:
        name: What is measured.
        baseline_name: Name of the baseline.
        baseline: The values without MoCo, one per seed.
        moco: The values with MoCo, one per seed.
        unit: Unit in sentences, such as "%".
        pixels: The value of raw pixels, or None.
    """

    name: str
    baseline_name: str
    baseline: Sequence[float]
    moco: Sequence[float]
    unit: str = ""
    pixels: float | None = None

    @property
    def gain(self) -> float:
        """Mean with MoCo minus the mean without, or minus the value of pixels if that is higher."""
        return statistics.fmean(self.moco) - max(statistics.fmean(self.baseline), self.pixels or 0.0)

    @property
    def within_spread(self) -> bool:
        """Whether the gain is at most the larger of the two spreads between seeds."""
        return abs(self.gain) <= max(spread(self.baseline) or 0.0, spread(self.moco) or 0.0)

    @property
    def won(self) -> bool:
        """Whether MoCo is better by more than the seeds differ, and by enough to be seen in the table."""
        return round(self.gain, 1) > 0 and not self.within_spread

    def sentence(self) -> str:
        """Return the outcome, as in ``box AP rises from 10.0 (random init) to 14.0 (MoCo), ...``."""
        change = round(statistics.fmean(self.moco) - statistics.fmean(self.baseline), 1)
        verb = "rises" if change > 0 else "falls" if change < 0 else "stays the same,"
        before, after = (f"{statistics.fmean(v):.1f}{self.unit}" for v in (self.baseline, self.moco))
        pixels = "" if self.pixels is None else f"; raw pixels {self.pixels:.1f}{self.unit}"
        text = f"{self.name} {verb} from {before} ({self.baseline_name}{pixels}) to {after} (MoCo)"
        if len(self.moco) > 1:
            text += f", mean of {len(self.moco)} seeds"
            if change and self.within_spread:
                text += ", a difference within the spread between seeds"
        return text

    def summary(self) -> dict[str, object]:
        """Return mean, sample standard deviation (None for one seed) and values of both, for JSON."""
        values = {
            name: {"mean": statistics.fmean(part), "std": spread(part), "seeds": list(part)}
            for name, part in (("baseline", self.baseline), ("moco", self.moco))
        }
        return {"gain": self.gain, "pixels": self.pixels, **values}


def headline(comparisons: Sequence[Comparison], shown: Sequence[Comparison]) -> str:
    """Return a sentence on whether MoCo helps in all, some or none of the comparisons, and by how much in some."""
    won = [comparison.won for comparison in comparisons]
    verdict = "helps" if all(won) else "helps in part" if any(won) else "does not help here"
    return f"MoCo pre-training {verdict}: {'; '.join(c.sentence() for c in shown)}."


def comparison_table(comparisons: Sequence[Comparison], caption: str = "") -> Table:
    """Return a table of one comparison per row: pixels, both means with their spreads, and the gain."""
    rows = []
    for c in comparisons:
        pixels = "" if c.pixels is None else f"{c.pixels:.1f}"
        means = mean_and_spread(c.baseline), mean_and_spread(c.moco)
        rows.append((c.name, pixels, *means, f"{c.gain:+.1f}", str(len(c.moco))))
    return Table(("measure, 0 to 100", "raw pixels", "without MoCo", "with MoCo", "gain", "seeds"), rows, caption)


def seed_table(comparisons: Sequence[Comparison], seeds: Sequence[str], caption: str = "") -> Table:
    """Return a table of the single values: a column per seed."""
    rows = [
        (f"{c.name}, {name}", *(f"{value:.1f}" for value in values))
        for c in comparisons
        for name, values in ((c.baseline_name, c.baseline), ("MoCo", c.moco))
    ]
    return Table(("measure, 0 to 100", *seeds), rows, caption)
