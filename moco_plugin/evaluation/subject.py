"""The network to evaluate, its image sets, and the record of what was measured."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from moco_plugin.backbones import check_features
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.data.datasets import check_labels
from moco_plugin.data.images import ImageSet
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import FeatureSet, extract_feature_set
from moco_plugin.files import check_output, write_json
from moco_plugin.runs.processes import own_device

JSON = dict[str, Any]
PIXELS = 32  # largest side of the images whose raw pixels are compared
PACKAGES = ("torchvision", "timm", "lightly", "pytorch-lightning")


class NetworkOptions(TypedDict, total=False):
    """Keyword arguments that every evaluation takes."""

    encoder: Literal["query", "key"]
    """Which network to take where the checkpoint has both (default query)."""
    untrained: bool
    """Measure random weights in the same network, as a baseline."""
    overwrite: bool
    """Replace an earlier result or run."""


class Options(NetworkOptions, total=False):
    """Keyword arguments of the evaluations that write a JSON file."""

    out: str | Path | None
    """JSON file to write."""


class ShownOptions(NetworkOptions, total=False):
    """Keyword arguments of the evaluations that read no protocol."""

    image_size: int | None
    """Side of the test view in pixels (default: that of pre-training)."""
    batch_size: int
    """Images at a time (default 256)."""
    workers: int | None
    """Loader processes; -1 uses the available cores (default: -1 on a GPU, 0 on a CPU)."""


class ViewOptions(ShownOptions, Options, total=False):
    """Keyword arguments of the evaluations that read no protocol and write a JSON file."""


@dataclass(frozen=True)
class Subject:
    """The network to evaluate, a checkpoint's backbone or the same with random weights, and how it is evaluated.

    Attributes:
        checkpoint: Where the network comes from.
        backbone: The network.
        dim: Width of its features.
        view: How images are shown to it.
        encoder: "query" or "key".
        out: The JSON file to write, if any.

    The other attributes are arguments of ``read_subject``.
    """

    checkpoint: Checkpoint
    backbone: nn.Module
    dim: int
    view: View
    encoder: str
    untrained: bool
    batch_size: int
    workers: int | None
    out: Path | None
    overwrite: bool

    @property
    def device(self) -> str:
        """Where features are computed."""
        return own_device()

    def features(self, images: ImageSet, progress: str | None, **arguments: Any) -> FeatureSet:
        """Return the features of a set; see ``extract_feature_set`` for the arguments."""
        options = {"batch_size": self.batch_size, "workers": self.workers, "progress": progress, **arguments}
        return extract_feature_set(self.backbone.to(self.device), images, self.view, device=self.device, **options)

    def pixels(self) -> "Subject":
        """Return a subject whose features are raw pixels: the view at 32 pixels or less, not normalised."""
        view = pixel_view(self.view)
        return replace(self, backbone=nn.Flatten(), dim=view.channels * view.image_size**2, view=view)

    def bank_and_queries(self, train: ImageSet, test: ImageSet) -> tuple[FeatureSet, FeatureSet]:
        """Return normalised features to search, and those to search for; a set searched in itself is read once."""
        bank = self.features(train, "train features", disk=True)
        return bank, bank if train.spec == test.spec else self.features(test, "test features", disk=True)

    def record(self, protocol: str, train: str | None = None, test: str | None = None, **measured: Any) -> JSON:
        """Return the JSON of an evaluation: measurements, data, weights and versions."""
        checkpoint = self.checkpoint
        return {
            "protocol": protocol,
            **measured,
            "train": train,
            "test": test,
            "image_size": self.view.image_size,
            "crop_ratio": self.view.crop_ratio,
            "channels": self.view.channels,
            "value_range": self.view.value_range,
            "untrained": self.untrained,
            "weights": str(checkpoint.path),
            "weights_sha256": checkpoint.sha256,
            "encoder": self.encoder,
            "layout": checkpoint.layout,
            "architecture": checkpoint.architecture,
            "feature_dim": self.dim,
            "parameters": sum(p.numel() for p in self.backbone.parameters()),
            "method": checkpoint.method,
            "epoch": checkpoint.epoch,
            "versions": {"moco_plugin": version("moco-plugin"), "torch": torch.__version__}
            | {name: version(name) for name in PACKAGES},
        }

    def write(self, protocol: str, train: str | None = None, test: str | None = None, **measured: Any) -> JSON:
        """Return the JSON of an evaluation, and write it to ``out``."""
        result = self.record(protocol, train, test, **measured)
        if self.out:
            write_json(self.out, result)
        return result


def pixel_view(view: View) -> View:
    """Return the view whose raw pixels (0 to 1) serve as features, at most 32 pixels wide."""
    side, zero, one = min(PIXELS, view.image_size), [0.0] * view.channels, [1.0] * view.channels
    return replace(view, image_size=side, mean=zero, std=one)


def read_subject(
    weights: str | Path | Checkpoint,
    *,
    encoder: Literal["query", "key"] = "query",
    untrained: bool = False,
    image_size: int | None = None,
    crop_ratio: float | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Subject:
    """Read a checkpoint to evaluate; for the other arguments see ``ViewOptions``.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows, or what that function returned.
        crop_ratio: Of the view; None for that of pre-training.

    Raises:
        UsageError: ``out`` exists, or the network does not take images of that size.
    """
    path = Path(out).expanduser() if out else None
    if path:
        check_output(path, overwrite)
    checkpoint = weights if isinstance(weights, Checkpoint) else read_checkpoint(weights, encoder)
    view = checkpoint.view
    view = replace(view, image_size=image_size or view.image_size, crop_ratio=crop_ratio or view.crop_ratio)
    backbone = checkpoint.untrained() if untrained else checkpoint.backbone
    dim = check_features(backbone, checkpoint.architecture, view.image_size, view.channels)
    return Subject(checkpoint, backbone, dim, view, encoder, untrained, batch_size, workers, path, overwrite)


def read_sets(train: str, test: str | None, several: bool = False) -> tuple[ImageSet, ImageSet]:
    """Open a training and a test set with one label per image, or several.

    Args:
        train: See ``ImageSet``.
        test: As ``train``; None holds out a fifth of each class of ``train``.
        several: Whether images have several labels.

    Raises:
        UsageError: One has no labels, or their classes differ.
    """
    if test is None:
        if train.endswith("]"):
            raise UsageError("--test is missing; it is only held out of a --train without [...]")
        print("testing on a fifth of each class, drawn by seed 0, and training on the others")
        train, test = f"{train}[:80%]", f"{train}[80%:]"
    train_set, test_set = ImageSet(train), ImageSet(test)
    test_set = check_labels(train_set, test_set, several)
    assert train_set.labels is not None and test_set.labels is not None
    unseen = np.setdiff1d(test_set.labels, train_set.labels)
    if train_set.classes is None and len(unseen):
        raise UsageError(f"the classes of {train} and {test} differ: only {test} has {', '.join(map(str, unseen[:5]))}")
    return train_set, test_set


def class_count(train: ImageSet) -> int:
    """Return the number of classes of a set with labels."""
    assert train.labels is not None
    return len(train.classes) if train.classes else int(train.labels.max()) + 1


def draw_labels(labels: Any, share: float, seed: int) -> Tensor:
    """Draw the same share of every class, but one image at least.

    Args:
        labels: Of N images.
        share: Above 0, to 1.
        seed: Of the draw. The images of a smaller share are among those of a larger one.

    Returns:
        Indices, ascending.

    Raises:
        UsageError: The share is not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of {share:g} of the labels was asked for; expected one above 0 and up to 1")
    labels = torch.as_tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.unique(return_counts=True)[1]
    chosen = [indices[: max(1, round(share * len(indices)))] for indices in by_class.split(counts.tolist())]
    return torch.cat(chosen).sort().values
