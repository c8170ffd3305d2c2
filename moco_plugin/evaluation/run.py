"""Evaluations of a frozen backbone from the command line: kNN and retrieval; and what every evaluation records."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import moco_plugin
from moco_plugin.backbones import check_features
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.data.images import ImageSet, check_labels
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import FeatureSet, extract_feature_set
from moco_plugin.evaluation.knn import knn_accuracy
from moco_plugin.evaluation.neighbours import check_neighbours
from moco_plugin.evaluation.retrieval import Neighbours, retrieval
from moco_plugin.files import check_output, write_json


@dataclass
class Subject:
    """What is evaluated: a checkpoint's backbone, or the same network with random weights, and its view of images."""

    checkpoint: Checkpoint
    backbone: nn.Module
    dim: int
    view: View
    untrained: bool
    encoder: str
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def features(self, images: ImageSet, progress: str, **arguments: Any) -> FeatureSet:
        """Returns the features of a set; see extract_feature_set for the arguments."""
        backbone = self.backbone.to(self.device)
        return extract_feature_set(
            backbone, images, self.view, device=self.device, progress=progress, **arguments
        )


def read_subject(
    args: Namespace,
    image_size: int | None,
    crop_ratio: float | None = None,
    checkpoint: Checkpoint | None = None,
) -> Subject:
    """Reads what ``--weights``, ``--encoder`` and ``--untrained`` name.

    Args:
        args: The command line.
        image_size: Side of the view in pixels; None for that of pre-training.
        crop_ratio: Of the view; None for that of pre-training.
        checkpoint: What ``--weights`` names, if it has been read already.

    Raises:
        UsageError: The network does not take images of that size.
    """
    checkpoint = checkpoint or read_checkpoint(args.weights, args.encoder)
    view = checkpoint.view
    view = replace(view, image_size=image_size or view.image_size, crop_ratio=crop_ratio or view.crop_ratio)
    backbone = checkpoint.untrained() if args.untrained else checkpoint.backbone
    dim = check_features(backbone, checkpoint.architecture, view.image_size)
    return Subject(checkpoint, backbone, dim, view, args.untrained, args.encoder)


def read_sets(args: Namespace) -> tuple[ImageSet, ImageSet]:
    """Reads ``--train`` and ``--test``.

    Raises:
        UsageError: One has no labels, or their classes differ.
    """
    train, test = ImageSet(args.train), ImageSet(args.test)
    check_labels(train, test)
    assert train.labels is not None and test.labels is not None
    if train.classes is None and (unseen := sorted(set(test.labels.tolist()) - set(train.labels.tolist()))):
        raise UsageError(
            f"{train.spec} and {test.spec} differ in classes: {', '.join(map(str, unseen[:5]))} in the latter only"
        )
    return train, test


def class_count(train: ImageSet) -> int:
    """Returns the number of classes of a set with labels."""
    assert train.labels is not None
    return len(train.classes) if train.classes else int(train.labels.max()) + 1


def record(protocol: str, args: Namespace, subject: Subject, **measured: Any) -> dict[str, Any]:
    """Returns what the JSON of an evaluation holds: what was measured, on what, and with which versions."""
    checkpoint = subject.checkpoint
    return {
        "protocol": protocol,
        **measured,
        "train": getattr(args, "train", None),
        "test": getattr(args, "test", None),
        "image_size": subject.view.image_size,
        "crop_ratio": subject.view.crop_ratio,
        "untrained": subject.untrained,
        "weights": str(checkpoint.path),
        "weights_sha256": checkpoint.sha256,
        "encoder": subject.encoder,
        "layout": checkpoint.layout,
        "architecture": checkpoint.architecture,
        "feature_dim": subject.dim,
        "parameters": sum(p.numel() for p in subject.backbone.parameters()),
        "method": checkpoint.method,
        "epoch": checkpoint.epoch,
        "versions": {
            "moco_plugin": moco_plugin.__version__,
            "torch": torch.__version__,
            **{name: version(name) for name in ("torchvision", "timm", "lightly", "pytorch-lightning")},
        },
    }


def evaluate_knn(args: Namespace) -> dict[str, Any]:
    """Measures kNN top-1 with the arguments of ``tools/evaluate.py knn``; returns what the JSON holds.

    With several k, ``k`` and ``top1`` are the first one's, and ``top1_by_k`` has all.
    """
    if args.out:
        check_output(args.out, args.overwrite)
    if args.temperature <= 0:
        raise UsageError(f"--temperature is {args.temperature}; expected a value above 0")
    train, test, same = _search_sets(args)
    subject = read_subject(args, args.image_size)
    bank, queries = _search_features(subject, args, train, test, same)
    top1 = knn_accuracy(
        bank.features, bank.labels, queries.features, queries.labels, args.k, args.temperature, same=same,
        device=subject.device, progress="neighbours",
    )  # fmt: skip
    for k, value in top1.items():
        print(
            f"kNN top-1 {value:.2f}% (k {k}, T {args.temperature}, {len(train)} train, {len(test)} test images)"
        )
    result = record(
        "knn", args, subject, top1=top1[args.k[0]], k=args.k[0], top1_by_k={str(k): v for k, v in top1.items()},
        temperature=args.temperature, train_images=len(bank.labels), test_images=len(queries.labels),
    )  # fmt: skip
    if args.out:
        write_json(args.out, result)
    return result


def evaluate_retrieval(args: Namespace) -> tuple[dict[str, Any], list[Neighbours]]:
    """Measures recall with the arguments of ``tools/evaluate.py retrieve``; returns the JSON and neighbours to show."""
    if args.out:
        check_output(args.out, args.overwrite)
    train, test, same = _search_sets(args)
    subject = read_subject(args, args.image_size)
    bank, queries = _search_features(subject, args, train, test, same)
    recall, neighbours = retrieval(
        bank, queries, args.k, same=same, device=subject.device, progress="neighbours"
    )
    for k, value in recall.items():
        print(f"recall at {k}: {value:.2f}% ({len(train)} train, {len(test)} test images)")
    result = record(
        "retrieve", args, subject, recall={str(k): value for k, value in recall.items()},
        train_images=len(bank.labels), test_images=len(queries.labels),
    )  # fmt: skip
    if args.out:
        write_json(args.out, result)
    return result, neighbours


def _search_sets(args: Namespace) -> tuple[ImageSet, ImageSet, bool]:
    train, test = read_sets(args)
    same = args.train == args.test
    check_neighbours(args.k, len(train), same)
    return train, test, same


def _search_features(
    subject: Subject, args: Namespace, train: ImageSet, test: ImageSet, same: bool
) -> tuple[FeatureSet, FeatureSet]:
    options = {"disk": True, "batch_size": args.batch_size, "workers": args.workers}
    bank = subject.features(train, "train features", **options)
    return bank, bank if same else subject.features(test, "test features", **options)
