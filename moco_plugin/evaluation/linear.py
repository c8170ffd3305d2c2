"""Linear classification and fine-tuning as published, by training."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from typing_extensions import Unpack

from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.data.datasets import LabelledImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import training_loader_options
from moco_plugin.data.order import EpochOrder
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import UsageError, UserError
from moco_plugin.evaluation.classifier import ClassifierModule, TrainingCrops, training_crop, weights_digest
from moco_plugin.evaluation.features import keep_whole
from moco_plugin.evaluation.metrics import baseline
from moco_plugin.evaluation.protocols import ClassificationConfig, linear_protocol, load_protocol
from moco_plugin.evaluation.subject import Options, Subject, class_count, draw_labels, read_sets, read_subject
from moco_plugin.runs.fit import Run
from moco_plugin.runs.optimizers import scaled_lr
from moco_plugin.runs.run_folder import Identity
from moco_plugin.runs.trainer_arguments import check_trainer_arguments


def evaluate_linear(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    protocol: str | None = None,
    overrides: Sequence[str] = (),
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Train a linear classifier on the frozen backbone, as the papers do, and test it.

    With ``out``, the folder ``NAME_run`` next to it gets checkpoint and log, and the same call resumes an interrupted
    run from there.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images: a folder, a list, shards, a zip archive or an idx images file; [start:stop] takes a part.
        test: Labelled images to classify; by default a fifth of each class of ``train``, as 'photos[:80%]' and
            'photos[80%:]' say.
        protocol: moco_v1 (v1 and v2), moco_v3_resnet or moco_v3_vit under configs/evaluate/linear, or a YAML file; by
            default that of the checkpoint's method.
        overrides: Settings that differ from the protocol, such as optimizer.lr=3 or trainer.devices=8.
        **options: See ``Options``.

    Returns:
        The content of the JSON, with ``top1``, ``top5`` and ``mean_per_class`` in percent; empty on all processes
        but the first, and if the run was stopped before its end.

    Raises:
        UserError: A set, the checkpoint or a setting is invalid, or the training failed.
        Stopped: By a signal.
    """
    checkpoint = None if protocol else read_checkpoint(weights, options.get("encoder", "query"))
    name = linear_protocol(checkpoint) if checkpoint else str(protocol)
    config = load_protocol("linear", name, overrides)
    return _classify("linear", name, config, checkpoint or weights, (train, test), options)


def evaluate_finetune(
    weights: str | Path,
    train: str,
    test: str | None = None,
    *,
    protocol: str = "imagenet",
    overrides: Sequence[str] = (),
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Fine-tune the whole network as the papers do, and test it.

    Resumes and returns as ``evaluate_linear``.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images.
        test: Labelled images to classify; by default a fifth of each class of ``train``.
        protocol: imagenet or inaturalist under configs/evaluate/finetune, or a YAML file.
        overrides: Settings that differ from the protocol, such as optimizer.lr=0.1 or data.label_share=0.01.
        **options: See ``Options``.
    """
    config = load_protocol("finetune", protocol, overrides)
    return _classify("finetune", protocol, config, weights, (train, test), options)


def starting_lr(config: ClassificationConfig, untrained: bool) -> float:
    """Return the learning rate for the images of a step: linear in their number, unless scale_lr is off."""
    images = config.data.batch_size * config.trainer.get("accumulate_grad_batches", 1)
    return scaled_lr(config.optimizer, images, config.untrained_lr if untrained else None)


def _classify(
    task: str,
    protocol: str,
    config: ClassificationConfig,
    weights: str | Path | Checkpoint,
    images: tuple[str, str | None],
    options: Options,
) -> dict[str, Any]:
    """Train and test; see ``evaluate_linear``."""
    check_trainer_arguments(config.trainer)
    if config.schedule.interval not in ("epoch", "step") or config.schedule.steps:
        raise UsageError(
            f"schedule.interval is {config.schedule.interval} and schedule.steps {config.schedule.steps}; "
            "expected epoch or step, and no steps"
        )
    data = config.data
    subject = read_subject(weights, image_size=data.image_size, crop_ratio=data.crop_ratio, **options)
    train, test = read_sets(*images)
    drawn = draw_labels(train.labels, data.label_share, config.seed)
    training = Classification(task, config, subject, train, test, drawn, starting_lr(config, subject.untrained))
    with tempfile.TemporaryDirectory() as folder:
        metrics = training.run(subject.out or Path(folder) / "result.json")
    if metrics is None:
        return {}
    print(f"{task}, {protocol}: top-1 {metrics['top1']:.2f}% ({baseline(torch.as_tensor(test.labels))})")
    measured = {"recipe": protocol, "settings": asdict(config), "test_images": len(test)} | metrics
    return subject.write(task, train.spec, test.spec, **measured)


@dataclass(frozen=True)
class Classification:
    """A classifier to train on images of a set and to test on another.

    Attributes:
        task: "linear" or "finetune".
        drawn: Indices of the training images whose labels are used.
        lr: Learning rate at the start.
    """

    task: str
    config: ClassificationConfig
    subject: Subject
    train: ImageSet
    test: ImageSet
    drawn: Tensor
    lr: float

    def run(self, out: Path) -> dict[str, Any] | None:
        """Return the measurements, or None on all processes but the first and for an unfinished run."""
        config, subject = self.config, self.subject
        settings = asdict(config) | {
            "protocol": self.task,
            "train": self.train.spec,
            "test": self.test.spec,
            "encoder": subject.encoder,
            "untrained": subject.untrained,
            "weights_sha256": subject.checkpoint.sha256,
        }
        batches = math.ceil(len(self.drawn) / config.data.batch_size)
        run = Run(
            folder=out.with_name(f"{out.stem}_run"),
            files=("metrics.csv", "last.ckpt"),
            checkpoint="last.ckpt",
            identity=Identity(settings, {"train": self.train.identity(), "test": self.test.identity()}),
            trainer=config.trainer,
            epochs=config.schedule.epochs,
            save_every=config.save_every,
            timeout=config.timeout,
            log_every=min(10, math.ceil(batches / config.trainer.get("accumulate_grad_batches", 1))),
            overwrite=subject.overwrite,
            kept=subject.out is not None,
        )
        pl.seed_everything(config.seed, verbose=False)
        sizes = (len(self.drawn), len(self.test))
        classes = class_count(self.train)
        module = ClassifierModule(subject.backbone, subject.dim, classes, config, self.lr, subject.view, sizes)
        digest = weights_digest(subject.backbone) if config.frozen else ""
        trainer = run.trainer_for()
        last = run.fit(trainer, module, *self.loaders(trainer), self.greeting(trainer))
        if digest and weights_digest(subject.backbone) != digest:
            run.last.unlink(missing_ok=True)
            raise UserError("the frozen backbone changed while its classifier was trained; the result was discarded")
        if last is None:
            return None
        measured = {key: last.get(key) for key in ("top1", "top5", "mean_per_class", "loss", "train_top1")}
        measured |= {"lr": self.lr, "epochs": last["epochs"], "steps": last["steps"], "train_images": len(self.drawn)}
        return measured | ({"backbone_sha256": digest} if digest else {})

    def greeting(self, trainer: pl.Trainer) -> str:
        """Say what is trained."""
        config = self.config
        return (
            f"{self.task}, {self.subject.checkpoint.architecture} on {trainer.strategy.root_device}: {len(self.drawn)} "
            f"training, {len(self.test)} test images, {config.schedule.epochs} epochs, batch {config.data.batch_size}, "
            f"lr {self.lr:g}"
        )

    def loaders(self, trainer: pl.Trainer) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the training batches and the test images of one of several processes."""
        data, view, seed = self.config.data, self.subject.view, self.config.seed
        rank, processes = trainer.global_rank, trainer.world_size
        if data.batch_size % processes:
            raise UsageError(
                f"data.batch_size is {data.batch_size}, which cannot be split evenly over {processes} processes; "
                "choose a multiple"
            )
        share = data.batch_size // processes
        if len(self.test) < processes:
            raise UsageError(
                f"{self.test.spec} has {len(self.test)} images for {processes} processes; expected one for each: "
                "use fewer trainer.devices"
            )
        train, test = (images.decoded_for(view.value_range, view.channels) for images in (self.train, self.test))
        options = training_loader_options(data.workers)
        crops = TrainingCrops(train, self.drawn, training_crop(view.image_size, data.min_scale), seed)
        order = EpochOrder(len(crops), seed, data.batch_size, rank, processes, drop_last=False)
        shown = LabelledImages(test, evaluation_transform(view.image_size, view.crop_ratio))
        mine = Subset(shown, range(rank, len(shown), processes))
        return (
            DataLoader(crops, share, sampler=order, **options),
            DataLoader(mine, share, collate_fn=keep_whole, **options),
        )
