"""The kNN classifier that monitors contrastive training (Wu et al. 2018): cosine similarity, weighted votes."""

from __future__ import annotations

from lightly.utils.benchmarking import knn_predict
from torch import Tensor

from moco_plugin.errors import UsageError

CHUNK = 1024  # test samples scored at a time: 1024 x N similarities live at once


def knn_top1(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor,
    k: int = 200, temperature: float = 0.1,
) -> float:  # fmt: skip
    """Returns the accuracy in percent of the k nearest neighbours' votes, each weighted exp(similarity / T).

    Args:
        train_features: L2-normalised, N x D.
        train_labels: N.
        test_features: L2-normalised, M x D.
        test_labels: M.
        k: Neighbours that vote, 1 to N.
        temperature: T, above 0.

    Raises:
        UsageError: k is above N.
    """
    if not 0 < k <= len(train_labels):
        raise UsageError(
            f"k is {k} with {len(train_labels)} labelled training images; choose k from 1 to that"
        )
    classes = int(train_labels.max()) + 1
    correct = 0
    for features, labels in zip(test_features.split(CHUNK), test_labels.split(CHUNK), strict=True):
        votes = knn_predict(features, train_features.T, train_labels, classes, knn_k=k, knn_t=temperature)
        correct += int((votes[:, 0] == labels).sum())
    return 100 * correct / len(test_labels)
