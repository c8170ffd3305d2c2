"""Accuracies of features: nearest neighbours and a linear classifier; and those of pixels."""

from torch import nn
from torch.nn import functional as F

from moco_plugin.benchmarks.accuracy.sets import Sets
from moco_plugin.data.normalize import View
from moco_plugin.evaluation.features import FeatureSet, extract_feature_set
from moco_plugin.evaluation.knn import knn_accuracy
from moco_plugin.evaluation.protocols import load_protocol
from moco_plugin.evaluation.subject import PIXELS
from moco_plugin.probes.cached_features import fit_and_score

KS = (1, 5, 20, 200)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
EPOCHS = 30


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
    config = load_protocol("linear", "moco_v1", [f"schedule.epochs={EPOCHS}"])
    fitted = fit_and_score(bank, queries, int(bank.labels.max()) + 1, LEARNING_RATES, config, "cpu")
    return {**{f"k {k}": value for k, value in nearest.items()}, "linear": fitted["top1"]}
