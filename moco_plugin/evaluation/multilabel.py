"""Images of several labels: mean average precision of kNN votes and of logistic regressions on a frozen backbone."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from moco_plugin.evaluation.fast import LEARNING_RATES
from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.neighbours import check_neighbours, nearest
from moco_plugin.evaluation.probe import fit_learning_rates
from moco_plugin.evaluation.run import read_sets, read_subject, record
from moco_plugin.files import check_output, write_json


def evaluate_multilabel(
    weights: str | Path,
    train: str,
    test: str,
    *,
    k: int | None = None,
    temperature: float = 0.1,
    lrs: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    seed: int = 0,
    encoder: str = "query",
    untrained: bool = False,
    image_size: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure the mean average precision (mAP) over classes, of two classifiers on features that are computed once.

    kNN: a class's score is its share of the weighted votes of the k nearest images. Linear: one logistic regression a
    class on standardised features; the learning rate is chosen on a tenth of the training images.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: A list of images whose labels have ``;`` in between, such as a ``.csv`` of ``path,cat;dog``.
        test: Such a list; classes without a test image do not count.
        k: Neighbours; None takes 200, or a tenth of the training images if that is less.
        temperature: Votes weigh exp(similarity / temperature).
        lrs: Learning rates to try.
        epochs: Of the logistic regressions.
        seed: Of the images held out and the order of training.
        encoder: "query" or "key", where the checkpoint has both.
        untrained: Measure random weights in the same network.
        image_size: Side of the test view in pixels; None for that of pre-training.
        batch_size: Images at a time through the network; the regressions take 256.
        workers: Loader processes; -1 takes the available cores.
        out: JSON file to write.
        overwrite: Replace the file.

    Returns:
        The content of the JSON: ``knn_map`` and ``linear_map`` in percent, the average precision of each class in
        ``knn_ap`` and ``linear_ap``, and ``chance_map``, that of random scores: the mean share of images that a class has.

    Raises:
        UserError: A set, the checkpoint or an argument is invalid.
    """
    if out:
        check_output(out, overwrite)
    train_set, test_set = read_sets(train, test, several=True)
    k = k or max(1, min(200, len(train_set) // 10))
    check_neighbours([k], len(train_set), train == test)
    subject = read_subject(weights, encoder=encoder, untrained=untrained, image_size=image_size)
    options: dict[str, Any] = {"normalized": False, "batch_size": batch_size, "workers": workers}
    bank, queries = (
        subject.features(images, f"{name} features", **options)
        for images, name in ((train_set, "train"), (test_set, "test"))
    )
    known, truth = (
        torch.as_tensor(np.asarray(images.labels))[found.numbers]
        for images, found in ((train_set, bank), (test_set, queries))
    )
    votes = _votes(bank, queries, known, k, temperature, train == test, subject.device)
    logits, lr = _logits(bank, queries, known, lrs, epochs, seed, subject.device)
    names = train_set.classes or ()
    there = truth.any(dim=0)
    result: dict[str, Any] = {}
    for name, precision in (("knn", average_precision(votes, truth)), ("linear", average_precision(logits, truth))):
        result[f"{name}_map"] = float(precision[there].mean())
        result[f"{name}_ap"] = {names[place]: float(precision[place]) for place in there.nonzero()[:, 0].tolist()}
    chance = 100 * float(truth[:, there].double().mean())
    result |= {"chance_map": chance, "k": k, "temperature": temperature, "lr": lr, "epochs": epochs, "seed": seed}
    print(
        f"mAP over {int(there.sum())} classes: kNN {result['knn_map']:.2f}% (k {k}), linear {result['linear_map']:.2f}% "
        f"(lr {lr:g}); random scores {chance:.2f}% ({len(known)} train, {len(truth)} test images)"
    )
    sizes = {"train_images": len(known), "test_images": len(truth)}
    result = record("multilabel", subject, train, test, **result, **sizes)
    if out:
        write_json(out, result)
    return result


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
        found = multilabel_average_precision(probabilities, truth.long(), truth.shape[1], average="none")
    return 100 * torch.where(truth.any(dim=0), found, torch.nan)


def _votes(
    bank: FeatureSet, queries: FeatureSet, known: Tensor, k: int, temperature: float, same: bool, device: str
) -> Tensor:
    """Return each class's share of the votes for each image, M x C."""
    images, others = (torch.nn.functional.normalize(found.in_memory(), dim=1) for found in (queries, bank))
    votes = torch.zeros(len(queries.numbers), known.shape[1])
    for part, similarities, places in nearest(images, others, k, same=same, device=device):
        weights = (similarities / temperature).softmax(dim=1).cpu()
        for weight, place in zip(weights.T, places.cpu().T, strict=True):
            votes[part] += weight[:, None] * known[place]
    return votes


def _logits(
    bank: FeatureSet, queries: FeatureSet, known: Tensor, lrs: Sequence[float], epochs: int, seed: int, device: str
) -> tuple[Tensor, float]:
    """Return the logits of the logistic regressions, M x C, and the learning rate that was chosen."""
    features = bank.in_memory()
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    held, fitted = order[: max(1, len(known) // 10)], order[max(1, len(known) // 10) :]
    options: dict[str, Any] = {"epochs": epochs, "seed": seed, "device": device}
    classes = known.shape[1]
    tried = fit_learning_rates(features[fitted], known[fitted], classes, lrs, progress="learning rates", **options)
    precisions = [
        float(average_precision(one, known[held])[known[held].any(dim=0)].mean())
        for one in tried.logits(features[held]).cpu()
    ]
    lr = lrs[precisions.index(max(precisions))]
    final = fit_learning_rates(features, known, classes, [lr], progress="classifiers", **options)
    return final.logits(queries.in_memory())[0].cpu(), lr
