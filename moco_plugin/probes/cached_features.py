"""Linear classification on features that are computed once, with all labels or few.

A departure from the papers' protocol: no random crops, standardised features, a cosine schedule, and the learning
rate is chosen on a tenth of the training images, which is held out.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import FeatureSet
from moco_plugin.evaluation.metrics import baseline
from moco_plugin.evaluation.protocols import ClassificationConfig, load_protocol
from moco_plugin.evaluation.subject import Options, class_count, draw_labels, read_sets, read_subject
from moco_plugin.probes.linear_classifiers import LEARNING_RATES, fit_best, hold_out

SETTINGS = "data.image_size data.crop_ratio data.batch_size data.workers data.label_share schedule.epochs seed".split()


def evaluate_linear_fast(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    lrs: Sequence[float] = LEARNING_RATES,
    pixels: bool = False,
    overrides: Sequence[str] = (),
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Fit a linear classifier on features that are computed once, without random crops, and test it.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images: a folder, a list, shards, a zip archive or an idx images file; [start:stop] takes a part.
        test: Labelled images to classify; by default a fifth of each class of ``train``.
        lrs: Learning rates to try, all in one pass; by default nine from 0.001 to 10.
        pixels: Measure raw pixels, at 32 x 32 at most, in place of features: the cheapest baseline.
        overrides: Settings such as schedule.epochs=50 or data.workers=4 (those in ``SETTINGS``).
        **options: See ``Options``.

    Returns:
        The content of the JSON, with ``top1``, ``top5`` and ``mean_per_class`` in percent.

    Raises:
        UserError: A set, the checkpoint or a setting is invalid.
    """
    config = _config(lrs, overrides)
    return _evaluate("linear_fast", weights, (train, test), lrs, config, (config.data.label_share,), options, pixels)


def evaluate_lowshot(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    shares: Sequence[float] = (0.01, 0.1),
    lrs: Sequence[float] = LEARNING_RATES,
    overrides: Sequence[str] = (),
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Fit linear classifiers with few of the labels, the same share of each class, on features that are computed once.

    To fine-tune with few labels: ``finetune ... data.label_share=0.01``.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images.
        test: Labelled images to classify; by default a fifth of each class of ``train``.
        shares: Of the labels.
        lrs: Learning rates to try, all in one pass; by default nine from 0.001 to 10.
        overrides: Settings such as schedule.epochs=50 or data.workers=4 (those in ``SETTINGS``).
        **options: See ``Options``.

    Returns:
        The content of the JSON; ``shares`` has the measurements of each share.
    """
    return _evaluate("lowshot", weights, (train, test), lrs, _config(lrs, overrides), shares, options)


def _config(lrs: Sequence[float], overrides: Sequence[str]) -> ClassificationConfig:
    if bad := [lr for lr in lrs if not lr > 0]:
        raise UsageError(f"--lrs has {bad[0]:g}; expected learning rates above 0")
    config = load_protocol("linear", "moco_v1", overrides)
    for override in overrides:
        if override.split("=")[0] not in SETTINGS:
            raise UsageError(
                f"{override}: on cached features only {', '.join(SETTINGS)} and --lrs can be set; use linear for more"
            )
    return config


def _evaluate(
    protocol: str,
    weights: str | Path,
    images: tuple[str, str | None],
    lrs: Sequence[float],
    config: ClassificationConfig,
    shares: Sequence[float],
    options: Options,
    pixels: bool = False,
) -> dict[str, Any]:
    """Measure each share of the labels, and write the record."""
    data = config.data
    view: dict[str, Any] = {"image_size": data.image_size, "crop_ratio": data.crop_ratio}
    subject = read_subject(weights, **view, batch_size=data.batch_size, workers=data.workers, **options)
    subject = subject.pixels() if pixels else subject
    train, test = read_sets(*images)
    drawn = [draw_labels(train.labels, share, config.seed) for share in shares]
    labels = torch.as_tensor(train.labels)
    for rows in drawn:  # before the features, which take long
        hold_out(labels[rows], config.seed)
    rows = torch.cat(drawn).unique()
    known = subject.features(train, "train features", normalized=False, indices=rows.tolist())
    queries = subject.features(test, "test features", normalized=False)
    measured: list[dict[str, Any]] = []
    for share, rows in zip(shares, drawn, strict=True):
        kept = torch.isin(known.indices, rows)
        part = FeatureSet(known.features[kept], known.labels[kept], known.indices[kept])
        one = fit_and_score(part, queries, class_count(train), lrs, config, subject.device)
        measured.append({"share": share, **one})
        print(
            f"linear, on {'raw pixels' if pixels else 'cached features'} of {one['train_images']} images of "
            f"{len(part.labels.unique())} classes: "
            f"top-1 {one['top1']:.2f}% (lr {one['lr']:g} of {len(lrs)}; {baseline(queries.labels)})"
        )
    settings = {
        "lrs": list(lrs),
        "schedule": "cosine",
        "optimizer": "sgd, momentum 0.9, no weight decay",
        "epochs": config.schedule.epochs,
        "seed": config.seed,
        "data": asdict(data),
    }
    whole = {"shares": measured} if protocol == "lowshot" else {k: v for k, v in measured[0].items() if k != "share"}
    sizes = {"test_images": len(queries.labels)}
    return subject.write(protocol, train.spec, test.spec, settings=settings, pixels=pixels, **sizes, **whole)


def fit_and_score(
    train: FeatureSet, test: FeatureSet, classes: int, lrs: Sequence[float], config: ClassificationConfig, device: str
) -> dict[str, Any]:
    """Choose the learning rate on held-out training features, fit on all with it, and score the test features.

    Returns:
        ``top1``, ``top5``, ``mean_per_class``, ``lr``, ``held_out_top1`` by learning rate, ``train_images``.
    """
    final, lr, top1 = fit_best(
        train.features,
        train.labels,
        classes,
        lrs,
        hold_out(train.labels, config.seed),
        lambda tried, features, labels: [score.top1 for score in tried.score(features, labels)],
        epochs=config.schedule.epochs,
        batch_size=config.data.batch_size,
        seed=config.seed,
        device=device,
    )
    (best,) = final.score(test.features, test.labels)
    held_out = {f"{one:g}": value for one, value in zip(lrs, top1, strict=True)}
    return {**asdict(best), "lr": lr, "held_out_top1": held_out, "train_images": len(train.labels)}
