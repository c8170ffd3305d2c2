"""Images of several labels: mean average precision of kNN votes and of logistic regressions on a frozen backbone."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multilabel_average_precision
from typing_extensions import Unpack

from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.neighbours import check_neighbours, nearest
from moco_plugin.evaluation.subject import ViewOptions, read_sets, read_subject
from moco_plugin.probes.linear_classifiers import LEARNING_RATES, LinearClassifiers, fit_best


def evaluate_multilabel(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    k: int | None = None,
    temperature: float = 0.1,
    lrs: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    seed: int = 0,
    **options: Unpack[ViewOptions],
) -> dict[str, Any]:
    """Measure the mean average precision (mAP) on images of several labels: kNN votes and logistic regressions.

    kNN: a class's score is its share of the weighted votes of the k nearest images. Linear: one logistic regression a
    class on standardised features that are computed once; the learning rate is chosen on a tenth of the training images.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: A list of images whose labels have ``;`` in between, such as a ``.csv`` of ``path,cat;dog``; an image may
            have no label.
        test: Such a list; classes without a test image do not count. By default a fifth of ``train``.
        k: Neighbours; by default 200, or a tenth of the training images if that is less.
        temperature: Votes weigh exp(similarity / temperature).
        lrs: Learning rates to try, all in one pass; by default nine from 0.001 to 10.
        epochs: Epochs of the logistic regressions, in batches of 256 images.
        seed: Seed of the held-out images and of the order of training.
        **options: See ``ViewOptions``.

    Returns:
        The content of the JSON: ``knn_map`` and ``linear_map`` in percent, the average precision of each class in
        ``knn_ap`` and ``linear_ap``, and ``chance_map``, that of random scores: the mean share of images that a class has.

    Raises:
        UserError: A set, the checkpoint or an argument is invalid.
    """
    subject = read_subject(weights, **options)
    train_set, test_set = read_sets(train, test, several=True)
    k = k or max(1, min(200, len(train_set) // 10))
    check_neighbours([k], len(train_set), train == test)
    bank = subject.features(train_set, "train features", normalized=False)
    queries = subject.features(test_set, "test features", normalized=False)
    known, truth = (
        torch.as_tensor(np.asarray(images.labels))[features.indices]
        for images, features in ((train_set, bank), (test_set, queries))
    )
    votes = _votes(bank, queries, known, k, temperature, train == test, subject.device)
    held = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[: max(1, len(known) // 10)]
    known_set = (bank.features, known, known.shape[1], lrs, held, _mean_precisions)
    final, lr, _ = fit_best(*known_set, epochs=epochs, seed=seed, device=subject.device)
    logits = final.logits(queries.features)[0].cpu()
    names = train_set.classes or ()
    there = truth.any(dim=0)
    result: dict[str, Any] = {}
    for name, precision in (("knn", average_precision(votes, truth)), ("linear", average_precision(logits, truth))):
        result[f"{name}_map"] = float(precision[there].mean())
        result[f"{name}_ap"] = {names[index]: float(precision[index]) for index in there.nonzero()[:, 0].tolist()}
    chance = 100 * float(truth[:, there].double().mean())
    result |= {"chance_map": chance, "k": k, "temperature": temperature, "lr": lr, "epochs": epochs, "seed": seed}
    print(
        f"mAP over {int(there.sum())} classes: kNN {result['knn_map']:.2f}% (k {k}), linear {result['linear_map']:.2f}% "
        f"(lr {lr:g}); random scores {chance:.2f}% ({len(known)} train, {len(truth)} test images)"
    )
    sizes = {"train_images": len(known), "test_images": len(truth)}
    return subject.write("multilabel", train_set.spec, test_set.spec, **result, **sizes)


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the average precision of each class in percent, NaN for classes without images.

    Args:
        scores: N x C.
        truth: Bool, N x C.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No positive samples", category=UserWarning)
        span = scores.double() - scores.min()  # probabilities, for torchmetrics, in the order of the scores
        probabilities = span / span.max().clamp(min=1e-12)
        precisions = multilabel_average_precision(probabilities, truth.long(), truth.shape[1], average="none")
    return 100 * torch.where(truth.any(dim=0), precisions, torch.nan)


def _votes(
    bank: FeatureSet, queries: FeatureSet, known: Tensor, k: int, temperature: float, same: bool, device: str
) -> Tensor:
    """Return each class's share of the votes for each image, M x C."""
    images, others = (F.normalize(part.features, dim=1) for part in (queries, bank))
    votes = torch.zeros(len(images), known.shape[1])
    for part, similarities, indices in nearest(images, others, k, same=same, device=device, progress="neighbours"):
        weights = (similarities / temperature).softmax(dim=1).cpu()
        for weight, neighbour in zip(weights.T, indices.cpu().T, strict=True):
            votes[part] += weight[:, None] * known[neighbour]
    return votes


def _mean_precisions(tried: LinearClassifiers, features: Tensor, truth: Tensor) -> list[float]:
    there = truth.any(dim=0)
    return [float(average_precision(logits, truth)[there].mean()) for logits in tried.logits(features).cpu()]
