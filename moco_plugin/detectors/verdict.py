"""Comparison of two starts of a detector: paired over trials, with the test images resampled."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 200
MOST_TRIALS = 30  # that a verdict may advise

Score = Callable[[np.ndarray], np.ndarray]
"""Maps weights of test images (B x M) to a trial's result with each row of them (B, in points)."""


@dataclass(frozen=True)
class Verdict:
    """Comparison of the trials of two starts.

    Attributes:
        difference: Mean difference over trials, in points.
        deviation: Sample standard deviation of the trials' differences; None for one trial.
        image_error: Standard error of the difference due to the choice of the test images.
        trials: Number of pairs of trials with the same seed.
        images: Number of test images.
    """

    difference: float
    deviation: float | None
    image_error: float
    trials: int
    images: int

    def margin(self, trials: int | None = None) -> float | None:
        """Return half the width of the difference's interval, also for other numbers of trials; None for one.

        The squares of the two margins are added, which keeps at least the confidence of each (Banerjee 1961).
        """
        from scipy.stats import norm, t

        trials, tail = trials or self.trials, (1 + CONFIDENCE) / 2
        if self.deviation is None or trials < 2:
            return None
        of_trials = t.ppf(tail, trials - 1) * self.deviation / math.sqrt(trials)
        return math.hypot(of_trials, norm.ppf(tail) * self.image_error)

    @property
    def word(self) -> str:
        """The verdict: "pays", "harms" or "cannot tell"."""
        margin = self.margin()
        if margin is None or abs(self.difference) <= margin:
            return "cannot tell"
        return "pays" if self.difference > 0 else "harms"

    def sentence(self, values: str) -> str:
        """Return the verdict with its interval and, if it is open, advice on how to decide it.

        Args:
            values: The two means, as ``box AP 21.0 against 11.0``.
        """
        plural = "s" if self.trials > 1 else ""
        data, margin = f"from {self.trials} trial{plural} and {self.images} test images", self.margin()
        numbers = f"{values}, {self.difference:+.1f}"
        if margin is None:
            return f"cannot tell {data} ({numbers}); one trial shows no spread: repeat with --trials 3"
        interval = f"{self.difference - margin:+.1f} to {self.difference + margin:+.1f}"
        sentence = f"{self.word} {data} ({numbers} points, 95% interval {interval})"
        return sentence if self.word != "cannot tell" else f"{sentence}; {self._advice()}"

    def _advice(self) -> str:
        more = range(self.trials + 1, MOST_TRIALS + 1)
        enough = next((n for n in more if abs(self.difference) > (self.margin(n) or math.inf)), None)
        if enough is None:
            return f"nor would {MOST_TRIALS} trials tell, if the difference stays as it is: test on more images"
        return f"about {enough} trials would tell, if the difference stays as it is"


def judge(ours: Sequence[float], other: Sequence[float], image_error: float, images: int) -> Verdict:
    """Compare the results of trials in points, in pairs of the same seed; see ``Verdict``."""
    differences = [a - b for a, b in zip(ours, other, strict=True)]
    deviation = statistics.stdev(differences) if len(differences) > 1 else None
    return Verdict(statistics.fmean(differences), deviation, image_error, len(differences), images)


def image_error(ours: Sequence[Score], other: Sequence[Score], images: int, seed: int = 0) -> float:
    """Return the standard error of the mean difference of two starts due to the choice of the test images.

    The bootstrap draws the images with replacement, the same ones for all trials.

    Args:
        ours: Scores of the trials of one start.
        other: Scores of the trials of the other start.
        images: Number of test images.
        seed: Seed of the draws.
    """
    shares = np.full(images, 1 / images)
    weights = np.random.default_rng(seed).multinomial(images, shares, RESAMPLES).astype(np.float64)
    means = [np.mean([score(weights) for score in scores], axis=0) for scores in (ours, other)]
    return float(np.std(means[0] - means[1], ddof=1))
