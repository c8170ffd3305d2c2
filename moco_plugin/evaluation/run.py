"""kNN and retrieval on a frozen backbone, and the record of every evaluation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import moco_plugin
from moco_plugin.backbones import check_features
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.data.datasets import check_labels
from moco_plugin.data.images import ImageSet
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import FeatureSet, extract_feature_set
from moco_plugin.evaluation.knn import baseline, default_k, knn_accuracy
from moco_plugin.evaluation.neighbours import check_neighbours
from moco_plugin.evaluation.retrieval import Neighbours, chance_recall, retrieval
from moco_plugin.files import check_output, write_json


@dataclass
class Subject:
    """The network to evaluate: a checkpoint's backbone, or the same network with random weights, and its view of images."""

    checkpoint: Checkpoint
    backbone: nn.Module
    dim: int
    view: View
    untrained: bool
    encoder: str
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def features(self, images: ImageSet, progress: str, **arguments: Any) -> FeatureSet:
        """Return the features of a set; see extract_feature_set for the arguments."""
        backbone = self.backbone.to(self.device)
        return extract_feature_set(backbone, images, self.view, device=self.device, progress=progress, **arguments)


def read_subject(
    weights: str | Path,
    *,
    encoder: str = "query",
    untrained: bool = False,
    image_size: int | None = None,
    crop_ratio: float | None = None,
    checkpoint: Checkpoint | None = None,
) -> Subject:
    """Read a checkpoint to evaluate.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        encoder: "query" or "key", where the checkpoint has both.
        untrained: Take random weights in the same network.
        image_size: Side of the view in pixels; None for that of pre-training.
        crop_ratio: Of the view; None for that of pre-training.
        checkpoint: The value of ``read_checkpoint``, if it has been read already.

    Raises:
        UsageError: The network does not take images of that size.
    """
    checkpoint = checkpoint or read_checkpoint(weights, encoder)
    view = checkpoint.view
    view = replace(view, image_size=image_size or view.image_size, crop_ratio=crop_ratio or view.crop_ratio)
    backbone = checkpoint.untrained() if untrained else checkpoint.backbone
    dim = check_features(backbone, checkpoint.architecture, view.image_size, view.channels)
    return Subject(checkpoint, backbone, dim, view, untrained, encoder)


def read_sets(train_images: str, test_images: str, several: bool = False) -> tuple[ImageSet, ImageSet]:
    """Open a training and a test set with one label per image, or several.

    Raises:
        UsageError: One has no labels, or their classes differ.
    """
    train, test = ImageSet(train_images), ImageSet(test_images)
    test = check_labels(train, test, several)
    assert train.labels is not None and test.labels is not None
    if train.classes is None and (unseen := sorted(set(test.labels.tolist()) - set(train.labels.tolist()))):
        raise UsageError(
            f"the classes of {train.spec} and {test.spec} differ: only {test.spec} has {', '.join(map(str, unseen[:5]))}"
        )
    return train, test


def class_count(train: ImageSet) -> int:
    """Return the number of classes of a set with labels."""
    assert train.labels is not None
    return len(train.classes) if train.classes else int(train.labels.max()) + 1


def record(
    protocol: str, subject: Subject, train: str | None = None, test: str | None = None, **measured: Any
) -> dict[str, Any]:
    """Return the JSON of an evaluation: measurements, data, weights and versions."""
    checkpoint = subject.checkpoint
    return {
        "protocol": protocol,
        **measured,
        "train": train,
        "test": test,
        "image_size": subject.view.image_size,
        "crop_ratio": subject.view.crop_ratio,
        "channels": subject.view.channels,
        "value_range": subject.view.value_range,
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


def evaluate_knn(
    weights: str | Path,
    train: str,
    test: str,
    *,
    k: Sequence[int] | None = None,
    temperature: float = 0.1,
    encoder: str = "query",
    untrained: bool = False,
    image_size: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure the accuracy of a weighted vote of the nearest neighbours.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images that vote: a folder, a list, shards or an idx file, as for ``ImageSet``.
        test: Labelled images to classify.
        k: Numbers of neighbours; None takes ``default_k``.
        temperature: Votes weigh exp(similarity / temperature).
        encoder: "query" or "key", where the checkpoint has both.
        untrained: Measure random weights in the same network.
        image_size: Side of the test view in pixels; None for that of pre-training.
        batch_size: Images at a time.
        workers: Loader processes; -1 takes the available cores.
        out: JSON file to write.
        overwrite: Replace the file.

    Returns:
        The content of the JSON. ``k`` and ``top1`` (percent) are those of the first k, ``top1_by_k`` has all.

    Raises:
        UserError: A set, the checkpoint or an argument is invalid.
    """
    if out:
        check_output(out, overwrite)
    if temperature <= 0:
        raise UsageError(f"--temperature is {temperature}; expected a value above 0")
    sets, same = read_sets(train, test), train == test
    check_neighbours(k or (1,), len(sets[0]), same)
    subject = read_subject(weights, encoder=encoder, untrained=untrained, image_size=image_size)
    bank, queries = _features(subject, sets, same, batch_size, workers)
    ks = k or [default_k(bank.labels)]
    top1 = knn_accuracy(bank, queries, ks, temperature, same=same, device=subject.device, progress="neighbours")
    sizes = {"train_images": len(bank.labels), "test_images": len(queries.labels)}
    for number, value in top1.items():
        print(
            f"kNN top-1 {value:.2f}% (k {number}, T {temperature}, {sizes['train_images']} train, "
            f"{sizes['test_images']} test images; {baseline(queries.labels)})"
        )
    result = record(
        "knn",
        subject,
        train,
        test,
        top1=top1[ks[0]],
        k=ks[0],
        top1_by_k={str(n): v for n, v in top1.items()},
        temperature=temperature,
        **sizes,
    )
    if out:
        write_json(out, result)
    return result


def evaluate_retrieval(
    weights: str | Path,
    train: str,
    test: str,
    *,
    k: Sequence[int] = (1, 5, 10),
    encoder: str = "query",
    untrained: bool = False,
    image_size: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[dict[str, Any], list[Neighbours]]:
    """Measure recall: whether an image of the same class is among the k nearest. Arguments as of ``evaluate_knn``.

    Returns:
        The content of the JSON, with ``recall`` in percent by k, and the neighbours of one image per class.
    """
    if out:
        check_output(out, overwrite)
    sets, same = read_sets(train, test), train == test
    check_neighbours(k, len(sets[0]), same)
    subject = read_subject(weights, encoder=encoder, untrained=untrained, image_size=image_size)
    bank, queries = _features(subject, sets, same, batch_size, workers)
    recall, neighbours = retrieval(bank, queries, k, same=same, device=subject.device, progress="neighbours")
    sizes = {"train_images": len(bank.labels), "test_images": len(queries.labels)}
    chance = {number: chance_recall(bank.labels, queries.labels, number, same) for number in recall}
    for number, value in recall.items():
        print(
            f"recall at {number}: {value:.2f}% (chance {chance[number]:.2f}%; {sizes['train_images']} train, "
            f"{sizes['test_images']} test images)"
        )
    result = record(
        "retrieve",
        subject,
        train,
        test,
        recall={str(n): v for n, v in recall.items()},
        chance_recall={str(n): v for n, v in chance.items()},
        **sizes,
        neighbours=[asdict(one) for one in neighbours],
    )
    if out:
        write_json(out, result)
    return result, neighbours


def _features(
    subject: Subject, sets: tuple[ImageSet, ImageSet], same: bool, batch_size: int, workers: int
) -> tuple[FeatureSet, FeatureSet]:
    """Return the features to search, and those to search for; a set searched in itself is read once."""
    options = {"disk": True, "batch_size": batch_size, "workers": workers}
    bank = subject.features(sets[0], "train features", **options)
    return bank, bank if same else subject.features(sets[1], "test features", **options)
