"""Linear classifiers on features that are computed once: several learning rates or L2 weights at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm, trange

from moco_plugin.errors import UsageError
from moco_plugin.evaluation.metrics import Scores, count_correct, scores
from moco_plugin.evaluation.subject import draw_labels

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ROWS = 16384  # features whose logits are computed at once


@dataclass
class LinearClassifiers:
    """Several linear classifiers of the same features.

    Attributes:
        weight: L x D x C.
        bias: L x C.
        mean: D, subtracted from the features.
        scale: D, which then divides them.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return L x N x C logits of N x D features."""
        standard = (features.to(self.mean.device) - self.mean) / self.scale
        return standard @ self.weight + self.bias[:, None]

    def score(self, features: Tensor, labels: Tensor) -> list[Scores]:
        """Return the accuracies of each classifier."""
        classes = self.bias.shape[1]
        counts = torch.zeros(len(self.bias), 3, classes, dtype=torch.int64)
        for rows, truth in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            for one, logits in zip(counts, self.logits(rows), strict=True):
                one += count_correct(logits, truth.to(logits.device)).cpu()
        return [scores(one) for one in counts]


def hold_out(labels: Tensor, seed: int) -> Tensor:
    """Return the indices of a tenth of each class with two images or more.

    Raises:
        UsageError: No class has two.
    """
    held = draw_labels(labels, 0.1, seed)
    classes, counts = labels.unique(return_counts=True)
    held = held[~torch.isin(labels[held], classes[counts == 1])]
    if not len(held):
        raise UsageError(
            f"the {len(labels)} labelled training images are one per class, and none is left to choose a learning rate by; "
            "use more labels, two or more of some class"
        )
    return held


def _standard(features: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each dimension (1 for those that do not vary)."""
    deviation, mean = torch.std_mean(features.to(device), dim=0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)


def fit_best(
    features: Tensor,
    labels: Tensor,
    classes: int,
    lrs: Sequence[float],
    held: Tensor,
    measure: Callable[[LinearClassifiers, Tensor, Tensor], list[float]],
    **options: Any,
) -> tuple[LinearClassifiers, float, list[float]]:
    """Choose the learning rate on held-out images, and fit all images with it.

    Args:
        held: Indices of the held-out images.
        measure: Returns a score of each classifier for features and labels. For other arguments see
            ``fit_learning_rates``.

    Returns:
        The classifier, its learning rate, and the score of each learning rate.
    """
    fitted = torch.ones(len(labels), dtype=torch.bool)
    fitted[held] = False
    tried = fit_learning_rates(features[fitted], labels[fitted], classes, lrs, progress="learning rates", **options)
    measured = measure(tried, features[held], labels[held])
    lr = lrs[measured.index(max(measured))]
    return fit_learning_rates(features, labels, classes, [lr], progress="classifier", **options), lr, measured


def fit_learning_rates(
    features: Tensor,
    labels: Tensor,
    classes: int,
    lrs: Sequence[float],
    *,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> LinearClassifiers:
    """Fit one linear classifier per learning rate in one batched linear layer.

    SGD with momentum 0.9 and no weight decay, as in the papers' protocol; the learning rate falls to 0 along a
    cosine, and the features are standardised, since otherwise a few large dimensions dominate the gradient.

    Args:
        features: N x D.
        labels: N, 0 to ``classes`` - 1; or bool, N x C, for a logistic regression of each class.
        classes: C.
        lrs: Learning rates at the start.
        epochs: Passes.
        batch_size: Features per step.
        seed: Of the order and the initial weights, N(0, 0.01), the same for every learning rate.
        device: Where to compute.
        progress: Label of a progress bar; None shows none.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, scale = _standard(features, device)
    start = 0.01 * torch.randn(features.shape[1], classes, generator=generator)
    weight = start.repeat(len(lrs), 1, 1).to(device).requires_grad_()
    bias = torch.zeros(len(lrs), classes, device=device, requires_grad=True)
    fitted = LinearClassifiers(weight, bias, mean, scale)
    rates = torch.tensor(lrs, device=device)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)
    steps = epochs * math.ceil(len(features) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for _ in trange(epochs, desc=progress, disable=progress is None, leave=False, unit="epoch"):
        for rows in torch.randperm(len(features), generator=generator).split(batch_size):
            logits, truth = fitted.logits(features[rows]), labels[rows].to(device)
            losses = _losses(logits, truth).mean(dim=1)
            optimizer.zero_grad()
            # the gradient of each classifier times its learning rate: SGD with learning rate 1 takes all steps
            (rates * losses).sum().backward()
            optimizer.step()
            schedule.step()
    return LinearClassifiers(weight.detach(), bias.detach(), mean, scale)


def _losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the loss (L x N) of L x N x C logits: cross-entropy, or its sum over classes for N x C labels."""
    if truth.ndim > 1:
        targets = truth.to(logits).expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=2)
    flat = F.cross_entropy(logits.flatten(0, 1), truth.repeat(len(logits)), reduction="none")
    return flat.view(len(logits), -1)


def fit_l2_weights(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2_weights: Sequence[float],
    *,
    iterations: int = 200,
    squared: bool = True,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> LinearClassifiers:
    """Fit multinomial logistic regression once per L2 weight, to the minimum, by L-BFGS.

    Minimises mean cross-entropy + L2 / 2 x squared weights (biases are free) on standardised features;
    scikit-learn's C is 1 / (L2 x N).

    Args:
        features: N x D.
        labels: N, 0 to ``classes`` - 1.
        classes: C.
        l2_weights: Each above 0.
        iterations: Of L-BFGS, at most.
        squared: Penalise half the squared weights; else their norm.
        device: Where to compute.
        progress: Label of a progress bar; None shows none.
    """
    mean, scale = _standard(features, device)
    weight = torch.zeros(1, features.shape[1], classes, device=device, requires_grad=True)
    bias = torch.zeros(1, classes, device=device, requires_grad=True)
    model = LinearClassifiers(weight, bias, mean, scale)
    minima = {}
    # the strongest first: each minimum is a good start for the next
    strongest_first = sorted(l2_weights, reverse=True)
    options: dict[str, Any] = {"tolerance_grad": 1e-6, "tolerance_change": 1e-10, "line_search_fn": "strong_wolfe"}
    for l2 in tqdm(strongest_first, desc=progress, disable=progress is None, leave=False, unit="L2 weight"):
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, **options)

        def loss(l2: float = l2, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            squares = weight.square().sum()
            total = l2 * (0.5 * squares if squared else (squares + 1e-12).sqrt())
            total.backward()
            for rows, truth in zip(features.split(ROWS), labels.split(ROWS), strict=True):
                part = F.cross_entropy(model.logits(rows)[0], truth.to(device), reduction="sum") / len(features)
                part.backward()
                total = total.detach() + part.detach()
            return total

        optimizer.step(loss)
        minima[l2] = (weight.detach()[0].clone(), bias.detach()[0].clone())
    weights, biases = zip(*(minima[l2] for l2 in l2_weights), strict=True)
    return LinearClassifiers(torch.stack(weights), torch.stack(biases), mean, scale)
