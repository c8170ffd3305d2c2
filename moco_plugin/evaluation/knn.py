"""The kNN classifier that monitors contrastive training (Wu et al. 2018): cosine similarity, weighted votes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.neighbours import nearest


def knn_accuracy(
    train: FeatureSet,
    test: FeatureSet,
    ks: Sequence[int] = (200,),
    temperature: float = 0.1,
    *,
    same: bool = False,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> dict[int, float]:
    """Return, for each k, the accuracy in percent of the k nearest neighbours' votes, each exp(similarity / T).

    lightly's ``knn_predict`` counts the same votes; it needs memory for k one-hot vectors a test image.

    Args:
        train: L2-normalised features that vote.
        test: L2-normalised features to classify.
        ks: Numbers of neighbours that vote, each 1 to the number of training images; one search serves all.
        temperature: T, above 0.
        same: Both are the same set: an image does not vote for itself.
        device: Where similarities are computed.
        progress: Label of a progress bar; None shows none.

    Raises:
        UsageError: A k is above the number of training images.
    """
    classes = int(train.labels.max()) + 1
    correct = dict.fromkeys(ks, 0)
    found = nearest(test.features, train.features, max(ks), same=same, device=device, progress=progress)
    for part, similarities, places in found:
        neighbours, truth = train.labels[places.cpu()].to(device), test.labels[part].to(device)
        # votes over those of the nearest neighbour, which orders them the same and cannot overflow
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        for k in correct:
            votes = weights.new_zeros(len(weights), classes)
            votes.scatter_add_(1, neighbours[:, :k], weights[:, :k])
            correct[k] += int((votes.argmax(dim=1) == truth).sum())
    return {k: 100 * count / len(test.labels) for k, count in correct.items()}


def default_k(labels: Tensor) -> int:
    """Return 200, or half of the mean number of images of a class if that is less.

    More neighbours than a class has images vote for the largest class, regardless of the features.
    """
    return max(1, min(200, len(labels) // (2 * len(labels.unique()))))


def baseline(labels: Tensor) -> str:
    """Describe the baselines of an accuracy: chance, and always answering the largest class."""
    counts = labels.unique(return_counts=True)[1]
    return f"chance {100 / len(counts):.1f}%, largest class {100 * int(counts.max()) / len(labels):.1f}%"
