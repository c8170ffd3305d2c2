"""The kNN classifier that monitors contrastive training (Wu et al. 2018): cosine similarity, weighted votes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.metrics import baseline
from moco_plugin.evaluation.neighbours import check_neighbours, nearest
from moco_plugin.evaluation.subject import ViewOptions, read_sets, read_subject


def evaluate_knn(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    k: Sequence[int] | None = None,
    temperature: float = 0.1,
    **options: Unpack[ViewOptions],
) -> dict[str, Any]:
    """Measure the accuracy of a weighted vote of the nearest neighbours.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images that vote: a folder, a list, shards, a zip archive or an idx images file; [start:stop]
            takes a part.
        test: Labelled images to classify; by default a fifth of each class of ``train``, as 'photos[:80%]' and
            'photos[80%:]' say.
        k: Numbers of neighbours; by default 200, less for small sets.
        temperature: Votes weigh exp(similarity / temperature).
        **options: See ``ViewOptions``.

    Returns:
        The content of the JSON. ``k`` and ``top1`` (percent) are those of the first k, ``top1_by_k`` has all.

    Raises:
        UserError: A set, the checkpoint or an argument is invalid.
    """
    if temperature <= 0:
        raise UsageError(f"--temperature is {temperature}; expected a value above 0")
    subject = read_subject(weights, **options)
    train_set, test_set = read_sets(train, test)
    same = train == test
    check_neighbours(k or (1,), len(train_set), same)
    bank, queries = subject.bank_and_queries(train_set, test_set)
    ks = k or [default_k(bank.labels)]
    top1 = knn_accuracy(bank, queries, ks, temperature, same=same, device=subject.device, progress="neighbours")
    sizes = {"train_images": len(bank.labels), "test_images": len(queries.labels)}
    for one, value in top1.items():
        print(
            f"kNN top-1 {value:.2f}% (k {one}, T {temperature}, {sizes['train_images']} train, "
            f"{sizes['test_images']} test images; {baseline(queries.labels)})"
        )
    return subject.write(
        "knn",
        train_set.spec,
        test_set.spec,
        top1=top1[ks[0]],
        k=ks[0],
        top1_by_k={str(one): value for one, value in top1.items()},
        temperature=temperature,
        **sizes,
    )


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
    blocks = nearest(test.features, train.features, max(ks), same=same, device=device, progress=progress)
    for part, similarities, indices in blocks:
        neighbours, truth = train.labels[indices.cpu()].to(device), test.labels[part].to(device)
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
