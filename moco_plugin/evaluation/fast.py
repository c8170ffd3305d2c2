"""Linear probes on features that are computed once: ``linear --fast`` and ``lowshot``.

A departure from the papers' protocol: no random crops, standardised features, a cosine schedule, and the learning
rate is chosen on a tenth of the training images that is held out for it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.knn import baseline
from moco_plugin.evaluation.probe import class_balanced, fit_learning_rates, hold_out
from moco_plugin.evaluation.protocols import ClassificationConfig, load_protocol
from moco_plugin.evaluation.run import Subject, class_count, read_sets, read_subject, record
from moco_plugin.files import check_output, write_json

SETTINGS = "data.image_size data.crop_ratio data.batch_size data.workers data.label_share schedule.epochs seed".split()
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def evaluate_linear_fast(
    weights: str | Path,
    train: str,
    test: str,
    *,
    lrs: Sequence[float] = LEARNING_RATES,
    overrides: Sequence[str] = (),
    encoder: str = "query",
    untrained: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fit a linear classifier on features that are computed once, and test it.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images: a folder, a list, shards or an idx file, as for ``ImageSet``.
        test: Labelled images to classify.
        lrs: Learning rates to try.
        overrides: Settings among ``SETTINGS``, such as ``["schedule.epochs=50"]``.
        encoder: "query" or "key", where the checkpoint has both.
        untrained: Measure random weights in the same network.
        out: JSON file to write.
        overwrite: Replace the file.

    Returns:
        The content of the JSON, with ``top1``, ``top5`` and ``mean_per_class`` in percent.

    Raises:
        UserError: A set, the checkpoint or a setting is invalid.
    """
    config = _config(lrs, overrides, out, overwrite)
    subject = read_subject(
        weights,
        encoder=encoder,
        untrained=untrained,
        image_size=config.data.image_size,
        crop_ratio=config.data.crop_ratio,
    )
    result, (measured,) = _probe(subject, train, test, lrs, config, "linear_fast", [config.data.label_share])
    result |= {key: value for key, value in measured.items() if key != "share"}
    if out:
        write_json(out, result)
    return result


def evaluate_lowshot(
    weights: str | Path,
    train: str,
    test: str,
    *,
    shares: Sequence[float] = (0.01, 0.1),
    lrs: Sequence[float] = LEARNING_RATES,
    overrides: Sequence[str] = (),
    encoder: str = "query",
    untrained: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fit linear classifiers on shares of the labels; arguments as of ``evaluate_linear_fast``.

    Returns:
        The content of the JSON; ``shares`` holds the measurements of each share.
    """
    config = _config(lrs, overrides, out, overwrite)
    subject = read_subject(
        weights,
        encoder=encoder,
        untrained=untrained,
        image_size=config.data.image_size,
        crop_ratio=config.data.crop_ratio,
    )
    result, measured = _probe(subject, train, test, lrs, config, "lowshot", shares)
    result["shares"] = measured
    if out:
        write_json(out, result)
    return result


def draw_labels(images: ImageSet, share: float, seed: int) -> Tensor:
    """Return the places of the images whose labels are used: a share of each class, but one image at least.

    Raises:
        UsageError: The share is not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of {share:g} of the labels was asked for; expected one above 0 and up to 1")
    return class_balanced(torch.as_tensor(images.labels), share, seed, at_least=1)


def _config(
    lrs: Sequence[float], overrides: Sequence[str], out: str | Path | None, overwrite: bool
) -> ClassificationConfig:
    if out:
        check_output(out, overwrite)
    if bad := [lr for lr in lrs if not lr > 0]:
        raise UsageError(f"--lrs has {bad[0]:g}; expected learning rates above 0")
    config = load_protocol("linear", "moco_v1", overrides)
    for override in overrides:
        if override.split("=")[0] not in SETTINGS:
            raise UsageError(
                f"{override}: on cached features only {', '.join(SETTINGS)} and --lrs can be set; leave --fast out for more"
            )
    return config


def _probe(
    subject: Subject,
    train_images: str,
    test_images: str,
    lrs: Sequence[float],
    config: ClassificationConfig,
    protocol: str,
    shares: Sequence[float],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the record of the run, and the measurements for each share of the labels."""
    train, test = read_sets(train_images, test_images)
    drawn = [draw_labels(train, share, config.seed) for share in shares]
    labels = torch.as_tensor(train.labels)
    for rows in drawn:  # before the features, which take long
        hold_out(labels[rows], config.seed)
    options = {"normalized": False, "batch_size": config.data.batch_size, "workers": config.data.workers}
    rows = torch.cat(drawn).unique()
    known = subject.features(train, "train features", indices=rows.tolist(), **options)
    queries = subject.features(test, "test features", **options)
    measured = []
    for share, rows in zip(shares, drawn, strict=True):
        kept = torch.isin(known.numbers, rows)
        features = FeatureSet(known.in_memory()[kept], known.labels[kept], known.numbers[kept])
        one = fit_and_score(features, queries, class_count(train), lrs, config, subject.device)
        measured.append({"share": share, **one})
        print(
            f"linear, on cached features of {one['train_images']} images of {len(known.labels[kept].unique())} classes: "
            f"top-1 {one['top1']:.2f}% (lr {one['lr']:g} of {len(lrs)}; {baseline(queries.labels)})"
        )
    settings = {
        "lrs": list(lrs),
        "schedule": "cosine",
        "optimizer": "sgd, momentum 0.9, no weight decay",
        "epochs": config.schedule.epochs,
        "seed": config.seed,
        "data": asdict(config.data),
    }
    return record(
        protocol, subject, train_images, test_images, settings=settings, test_images=len(queries.labels)
    ), measured


def fit_and_score(
    train: FeatureSet, test: FeatureSet, classes: int, lrs: Sequence[float], config: ClassificationConfig, device: str
) -> dict[str, Any]:
    """Choose the learning rate on held-out training features, fit on all with it, and score the test features.

    Returns:
        ``top1``, ``top5``, ``mean_per_class``, ``lr``, ``held_out_top1`` by learning rate, ``train_images``.
    """
    features, labels = train.in_memory(), train.labels
    fitted, held = hold_out(labels, config.seed)
    options: dict[str, Any] = {
        "epochs": config.schedule.epochs,
        "batch_size": config.data.batch_size,
        "seed": config.seed,
        "device": device,
    }
    tried = fit_learning_rates(features[fitted], labels[fitted], classes, lrs, progress="learning rates", **options)
    top1 = [score.top1 for score in tried.score(features[held], labels[held])]
    lr = lrs[top1.index(max(top1))]
    final = fit_learning_rates(features, labels, classes, [lr], progress="classifier", **options)
    (best,) = final.score(test.in_memory(), test.labels)
    held_out = {f"{lr:g}": value for lr, value in zip(lrs, top1, strict=True)}
    return {**asdict(best), "lr": lr, "held_out_top1": held_out, "train_images": len(labels)}
