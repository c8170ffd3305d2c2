"""Linear classification and fine-tuning as published."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.data.datasets import LabelledImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import training_loader_options
from moco_plugin.data.order import EpochOrder
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import UsageError, UserError
from moco_plugin.evaluation.classifier import ClassifierModule, TrainingCrops, training_crop, weights_digest
from moco_plugin.evaluation.fast import draw_labels
from moco_plugin.evaluation.features import keep_whole
from moco_plugin.evaluation.knn import baseline
from moco_plugin.evaluation.protocols import ClassificationConfig, linear_protocol, load_protocol
from moco_plugin.evaluation.run import Subject, class_count, read_sets, read_subject, record
from moco_plugin.files import check_output, write_json
from moco_plugin.runs.fit import Run
from moco_plugin.runs.optimizers import scaled_lr
from moco_plugin.runs.run_folder import Identity
from moco_plugin.runs.trainer_arguments import check_trainer_arguments


def evaluate_linear(
    weights: str | Path,
    train: str,
    test: str,
    *,
    protocol: str | None = None,
    overrides: Sequence[str] = (),
    encoder: str = "query",
    untrained: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a linear classifier on the frozen backbone, as the papers do, and test it.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        train: Labelled images: a folder, a list, shards or an idx file, as for ``ImageSet``.
        test: Labelled images to classify.
        protocol: A file under ``configs/evaluate/linear`` or the path of another; None for that of the
            checkpoint's method.
        overrides: Settings that differ from the protocol, such as ``["optimizer.lr=3"]``.
        encoder: "query" or "key", where the checkpoint has both.
        untrained: Measure random weights in the same network.
        out: JSON file to write; the folder ``NAME_run`` next to it gets checkpoint and log, and an interrupted run
            resumes from there.
        overwrite: Replace an earlier result or run.

    Returns:
        The content of the JSON, with ``top1``, ``top5`` and ``mean_per_class`` in percent; empty on all processes
        but the first, and if the run was stopped before its end.

    Raises:
        UserError: A set, the checkpoint or a setting is invalid, or the training failed.
        Stopped: By a signal.
    """
    checkpoint = None if protocol else read_checkpoint(weights, encoder)
    name = linear_protocol(checkpoint) if checkpoint else str(protocol)
    config = load_protocol("linear", name, overrides)
    task = Classification("linear", name, config, weights, train, test, encoder, untrained, out, overwrite)
    return task.evaluate(checkpoint)


def evaluate_finetune(
    weights: str | Path,
    train: str,
    test: str,
    *,
    protocol: str = "imagenet",
    overrides: Sequence[str] = (),
    encoder: str = "query",
    untrained: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune the whole network as the papers do, and test it; arguments and result as of ``evaluate_linear``."""
    config = load_protocol("finetune", protocol, overrides)
    task = Classification("finetune", protocol, config, weights, train, test, encoder, untrained, out, overwrite)
    return task.evaluate()


def starting_lr(config: ClassificationConfig, untrained: bool) -> float:
    """Return the learning rate for the images of a step: linear in their number, unless scale_lr is off."""
    images = config.data.batch_size * config.trainer.get("accumulate_grad_batches", 1)
    return scaled_lr(config.optimizer, images, config.untrained_lr if untrained else None)


@dataclass(frozen=True)
class Classification:
    """A classifier to train and to test; see ``evaluate_linear``."""

    task: str
    protocol: str
    config: ClassificationConfig
    weights: str | Path
    train: str
    test: str
    encoder: str
    untrained: bool
    out: str | Path | None
    overwrite: bool

    def evaluate(self, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
        """Train and test."""
        config = self.config
        check_trainer_arguments(config.trainer)
        if config.schedule.interval not in ("epoch", "step") or config.schedule.steps:
            raise UsageError(
                f"schedule.interval is {config.schedule.interval} and schedule.steps {config.schedule.steps}; "
                "expected epoch or step, and no steps"
            )
        if self.out:
            check_output(self.out, self.overwrite)
        train, test = read_sets(self.train, self.test)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(self.out).expanduser() if self.out else Path(folder) / "result.json"
            subject = read_subject(
                self.weights,
                encoder=self.encoder,
                untrained=self.untrained,
                image_size=config.data.image_size,
                crop_ratio=config.data.crop_ratio,
                checkpoint=checkpoint,
            )
            metrics = self._fit(subject, train, test, out)
            if metrics is None:
                return {}
            compared = baseline(torch.as_tensor(test.labels))
            print(f"{self.task}, {self.protocol}: top-1 {metrics['top1']:.2f}% ({compared})")
            settings = asdict(config)
            result = record(
                self.task,
                subject,
                self.train,
                self.test,
                recipe=self.protocol,
                settings=settings,
                test_images=len(test),
                **metrics,
            )
            if self.out:
                write_json(out, result)
        return result

    def _fit(self, subject: Subject, train: ImageSet, test: ImageSet, out: Path) -> dict[str, Any] | None:
        """Return the measurements, or None on all processes but the first and for an unfinished run."""
        config = self.config
        indices = draw_labels(train, config.data.label_share, config.seed).long()
        lr = starting_lr(config, subject.untrained)
        settings = asdict(config) | {
            "protocol": self.task,
            "train": self.train,
            "test": self.test,
            "encoder": self.encoder,
            "untrained": self.untrained,
            "weights_sha256": subject.checkpoint.sha256,
        }
        batches = math.ceil(len(indices) / config.data.batch_size)
        run = Run(
            folder=out.with_name(f"{out.stem}_run"),
            files=("metrics.csv", "last.ckpt"),
            checkpoint="last.ckpt",
            identity=Identity(settings, {"train": train.identity(), "test": test.identity()}),
            trainer=config.trainer,
            epochs=config.schedule.epochs,
            save_every=config.save_every,
            timeout=config.timeout,
            log_every=min(10, math.ceil(batches / config.trainer.get("accumulate_grad_batches", 1))),
            overwrite=self.overwrite,
            kept=bool(self.out),
        )
        pl.seed_everything(config.seed, verbose=False)
        sizes = (len(indices), len(test))
        module = ClassifierModule(subject.backbone, subject.dim, class_count(train), config, lr, subject.view, sizes)
        digest = weights_digest(subject.backbone) if config.frozen else ""
        trainer = run.trainer_for()
        loaders = _loaders(config, subject, train, test, indices, trainer)
        message = (
            f"{self.task}, {subject.checkpoint.architecture} on {trainer.strategy.root_device}: {sizes[0]} training, "
            f"{sizes[1]} test images, {config.schedule.epochs} epochs, batch {config.data.batch_size}, lr {lr:g}"
        )
        found = run.fit(trainer, module, *loaders, message)
        if digest and weights_digest(subject.backbone) != digest:
            run.last.unlink(missing_ok=True)
            raise UserError("the frozen backbone changed while its classifier was trained; the result was discarded")
        if found is None:
            return None
        measured: dict[str, Any] = {
            key: found.get(key) for key in ("top1", "top5", "mean_per_class", "loss", "train_top1")
        }
        measured |= {"lr": lr, "epochs": found["epochs"], "steps": found["steps"], "train_images": len(indices)}
        if digest:
            measured["backbone_sha256"] = digest
        return measured


def _loaders(
    config: ClassificationConfig, subject: Subject, train: ImageSet, test: ImageSet, indices: Any, trainer: pl.Trainer
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the training batches and the test images of one of several processes."""
    data, view = config.data, subject.view
    rank, processes = trainer.global_rank, trainer.world_size
    if data.batch_size % processes:
        raise UsageError(
            f"data.batch_size is {data.batch_size}, which cannot be split evenly over {processes} processes; "
            "choose a multiple"
        )
    share = data.batch_size // processes
    if len(test) < processes:
        raise UsageError(
            f"{test.spec} has {len(test)} images for {processes} processes; expected one for each: use fewer trainer.devices"
        )
    train, test = (images.decoded_for(view.value_range, view.channels) for images in (train, test))
    options = training_loader_options(data.workers)
    crops = TrainingCrops(train, indices, training_crop(view.image_size, data.min_scale), config.seed)
    order = EpochOrder(len(crops), config.seed, data.batch_size, rank, processes, drop_last=False)
    shown = LabelledImages(test, evaluation_transform(view.image_size, view.crop_ratio))
    mine = Subset(shown, range(rank, len(shown), processes))
    return (
        DataLoader(crops, share, sampler=order, **options),
        DataLoader(mine, share, collate_fn=keep_whole, **options),
    )
