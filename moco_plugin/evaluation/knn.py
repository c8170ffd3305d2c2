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
from moco_plugin.evaluation.neighbours import check_neighbours, nearest, nearest_over_processes
from moco_plugin.evaluation.subject import ViewOptions, read_sets, read_subject
from moco_plugin.methods.distributed import world_size


def evaluate_knn(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    k: Sequence[int] | None = None,
    temperature: float = 0.1,
    pixels: bool = False,
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
        pixels: Also evaluate raw pixels, at most 32 x 32, as a baseline.
        **options: See ``ViewOptions``.

    Returns:
        The content of the JSON file. ``k`` and ``top1`` (percent) are for the first k, ``top1_by_k`` for every k, and
        ``pixels`` for raw pixels.

    Raises:
        UserError: A set, the checkpoint or an argument is invalid.
    """
    if temperature <= 0:
        raise UsageError(f"--temperature is {temperature}; expected a value above 0")
    subject = read_subject(weights, **options)
    train_set, test_set = read_sets(train, test)
    same = train == test
    check_neighbours(k or (1,), len(train_set), same)
    measured: dict[str, dict[int, float]] = {}
    for name, shown in [("", subject), *([("raw pixels, ", subject.pixels())] if pixels else [])]:
        bank, queries = shown.bank_and_queries(train_set, test_set)
        ks = k or [default_k(bank.labels)]
        top1 = knn_accuracy(bank, queries, ks, temperature, same=same, device=subject.device, progress="neighbours")
        for one, value in top1.items():
            print(
                f"{name}kNN top-1 {value:.2f}% (k {one}, T {temperature}, {len(bank.labels)} train, "
                f"{len(queries.labels)} test images; {baseline(queries.labels)})"
            )
        measured[name] = top1
    return subject.write(
        "knn",
        train_set.spec,
        test_set.spec,
        top1=measured[""][ks[0]],
        k=ks[0],
        top1_by_k={str(one): value for one, value in measured[""].items()},
        pixels={str(one): value for one, value in measured["raw pixels, "].items()} if pixels else None,
        temperature=temperature,
        train_images=len(bank.labels),
        test_images=len(queries.labels),
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

    With several processes, ``train`` is this process's part of the bank; ``test`` and the result are the same on all.
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
    processes = world_size()
    most_label = train.labels.max().to(device)
    if processes > 1:
        torch.distributed.all_reduce(most_label, torch.distributed.ReduceOp.MAX)
    classes = int(most_label) + 1
    correct = dict.fromkeys(ks, torch.zeros((), dtype=torch.int64, device=device))
    labels, truths = train.labels.to(device), test.labels.to(device)
    most = max(ks) if processes == 1 else min(max(ks), len(labels))
    blocks = nearest(test.features, train.features, most, same=same, device=device, progress=progress)
    for part, similarities, indices in blocks:
        neighbours, truth = labels[indices], truths[part]
        if processes > 1:
            similarities, neighbours = nearest_over_processes(similarities, neighbours, max(ks))
        # votes over those of the nearest neighbour, which orders them the same and cannot overflow
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        for k in correct:
            votes = weights.new_zeros(len(weights), classes)
            votes.scatter_add_(1, neighbours[:, :k], weights[:, :k])
            correct[k] = correct[k] + (votes.argmax(dim=1) == truth).sum()
    return {k: 100 * int(count) / len(test.labels) for k, count in correct.items()}


def default_k(labels: Tensor) -> int:
    """Return 200, or half of the mean number of images of a class if that is less.

    With more neighbours than images of a class, the largest class wins regardless of the features.
    """
    return max(1, min(200, len(labels) // (2 * len(labels.unique()))))
