"""Accuracies, counted class by class, and what they are compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Scores:
    """Accuracies in percent; ``top5`` is None for fewer than six classes."""

    top1: float
    top5: float | None
    mean_per_class: float


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, for each class (3 x C): its images, correct ones, and those correct among the first five."""
    classes = logits.shape[1]
    best = logits.topk(min(5, classes)).indices == labels[:, None]
    rows = (torch.ones_like(labels, dtype=torch.bool), best[:, 0], best.any(dim=1))
    return torch.stack([torch.bincount(labels[row], minlength=classes) for row in rows])


def scores(counts: Tensor) -> Scores:
    """Return the accuracies that ``count_correct``'s sums over a set give; classes without images do not count."""
    counts = counts.double()
    there = counts[0] > 0
    total = counts[0].sum()
    return Scores(
        top1=float(100 * counts[1].sum() / total),
        top5=float(100 * counts[2].sum() / total) if counts.shape[1] > 5 else None,
        mean_per_class=float(100 * (counts[1][there] / counts[0][there]).mean()),
    )


def baseline(labels: Tensor) -> str:
    """Describe the baselines of an accuracy: chance, and always answering the largest class."""
    counts = labels.unique(return_counts=True)[1]
    return f"chance {100 / len(counts):.1f}%, largest class {100 * int(counts.max()) / len(labels):.1f}%"
