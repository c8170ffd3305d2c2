"""Accuracies of features: nearest neighbours and a linear classifier; and those of pixels."""

from typing import Any

from torch import nn
from torch.nn import functional as F

from moco_plugin.benchmarks.accuracy.sets import Sets
from moco_plugin.data.normalize import View
from moco_plugin.evaluation.features import FeatureSet, extract_feature_set
from moco_plugin.evaluation.knn import knn_accuracy
from moco_plugin.probes.linear_classifiers import fit_learning_rates, hold_out

KS = (1, 5, 20, 200)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
EPOCHS = 30
PIXELS = 32  # side of the pictures whose pixels are compared


def measure(network: nn.Module, view: View, sets: Sets) -> dict[str, float]:
    """Return the accuracies of a network's features in percent: ``k 1`` to ``k 200`` and ``linear``."""
    bank, queries = (
        extract_feature_set(network, images, view, normalized=False) for images in (sets.bank, sets.queries)
    )
    return accuracies(bank, queries)


def measure_pixels(sets: Sets) -> dict[str, float]:
    """Return the accuracies of the pictures' own values, at ``PIXELS`` x ``PIXELS``."""
    return measure(nn.Flatten(), View(PIXELS, 1.0, [0.0] * 3, [1.0] * 3), sets)


def accuracies(bank: FeatureSet, queries: FeatureSet) -> dict[str, float]:
    """Return the accuracies of features."""
    known, asked = (FeatureSet(F.normalize(s.features, dim=1), s.labels, s.indices) for s in (bank, queries))
    nearest = knn_accuracy(known, asked, KS)
    classes = int(bank.labels.max()) + 1
    options: dict[str, Any] = {"epochs": EPOCHS}
    fitted, held = hold_out(bank.labels, 0)
    tried = fit_learning_rates(bank.features[fitted], bank.labels[fitted], classes, LEARNING_RATES, **options)
    top1 = [score.top1 for score in tried.score(bank.features[held], bank.labels[held])]
    best = LEARNING_RATES[top1.index(max(top1))]
    (score,) = fit_learning_rates(bank.features, bank.labels, classes, [best], **options).score(
        queries.features, queries.labels
    )
    return {**{f"k {k}": value for k, value in nearest.items()}, "linear": score.top1}
