"""Linear classification and fine-tuning as published, with Lightning's Trainer; resumes what was cut off."""

from __future__ import annotations

import math
import signal
import tempfile
import warnings
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, Subset

from moco_plugin.checkpoints.read import Checkpoint, load_file, read_checkpoint
from moco_plugin.data.images import ImageSet, LabelledImages
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import Stopped, UsageError, UserError
from moco_plugin.evaluation.fast import draw_labels
from moco_plugin.evaluation.features import keep_whole
from moco_plugin.evaluation.protocols import (
    ClassificationConfig,
    linear_protocol,
    load_protocol,
    loader_processes,
)
from moco_plugin.evaluation.run import Subject, class_count, read_sets, read_subject, record
from moco_plugin.files import check_output, write_json
from moco_plugin.training.callbacks import Guard, Saver, TimeLimit, WholeFiles
from moco_plugin.training.classifier import (
    ClassifierModule,
    TrainingCrops,
    WholeEpochOrder,
    training_crop,
    weights_digest,
)
from moco_plugin.training.logs import CSVLog
from moco_plugin.training.run import check_trainer_keys

# settings that a resumed run may give other values
MAY_CHANGE = ("trainer", "save_every")


def evaluate_linear(args: Namespace) -> dict[str, Any]:
    """Measures with the arguments of ``tools/evaluate.py linear``; returns what the JSON holds."""
    checkpoint = None if args.protocol else read_checkpoint(args.weights, args.encoder)
    name = linear_protocol(checkpoint) if checkpoint else args.protocol
    return _evaluate(args, "linear", name, load_protocol("linear", name, args.overrides), checkpoint)


def evaluate_finetune(args: Namespace) -> dict[str, Any]:
    """Measures with the arguments of ``tools/evaluate.py finetune``; returns what the JSON holds."""
    return _evaluate(
        args, "finetune", args.protocol, load_protocol("finetune", args.protocol, args.overrides)
    )


def starting_lr(config: ClassificationConfig, untrained: bool) -> float:
    """Returns the learning rate for the images of a step: linear in their number, unless scale_lr is off."""
    optimizer = config.optimizer
    lr = config.untrained_lr if untrained and config.untrained_lr is not None else optimizer.lr
    images = config.data.batch_size * config.trainer.get("accumulate_grad_batches", 1)
    return lr * images / optimizer.reference_batch_size if optimizer.scale_lr else lr


def _evaluate(
    args: Namespace, task: str, name: str, config: ClassificationConfig, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Trains and tests; with ``--out FILE.json`` the folder ``FILE_run`` beside it gets checkpoint and log."""
    check_trainer_keys(config.trainer)
    if config.schedule.interval not in ("epoch", "step") or config.schedule.steps:
        raise UsageError(
            f"schedule.interval is {config.schedule.interval} and schedule.steps {config.schedule.steps}; "
            "expected epoch or step, and no steps"
        )
    if args.out:
        check_output(args.out, args.overwrite)
    train, test = read_sets(args)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(args.out).expanduser() if args.out else Path(folder) / "result.json"
        subject = read_subject(args, config.data.image_size, config.data.crop_ratio, checkpoint)
        metrics = _fit(args, task, config, subject, train, test, out)
        if metrics is None:
            return {}
        print(f"{task}, {name}: top-1 {metrics['top1']:.2f}%")
        result = record(
            task, args, subject, recipe=name, settings=asdict(config), test_images=len(test), **metrics
        )
        if args.out:
            write_json(out, result)
    return result


def _fit(
    args: Namespace, task: str, config: ClassificationConfig, subject: Subject, train: ImageSet, test: ImageSet,
    out: Path,
) -> dict[str, Any] | None:  # fmt: skip
    """Returns what was measured, or None on all processes but the first and in a run that is not done yet."""
    indices = draw_labels(train, config.data.label_share, config.seed)
    batches = math.ceil(len(indices) / config.data.batch_size)
    parts = int(config.trainer.get("accumulate_grad_batches", 1))
    steps = math.ceil(batches / parts)
    total_steps = config.schedule.epochs * steps
    lr = starting_lr(config, subject.untrained)
    settings = {key: value for key, value in asdict(config).items() if key not in MAY_CHANGE}
    settings["data"].pop("workers")
    identity = {
        "protocol": task, "settings": settings, "train": args.train, "test": args.test, "encoder": args.encoder,
        "untrained": args.untrained, "weights_sha256": subject.checkpoint.sha256,
    }  # fmt: skip
    pl.seed_everything(config.seed, verbose=False)
    module = ClassifierModule(
        subject.backbone,
        subject.dim,
        class_count(train),
        config,
        lr,
        subject.view,
        total_steps,
        identity,
        (len(indices), len(test)),
    )
    digest = weights_digest(subject.backbone) if config.frozen else ""

    run = out.with_name(f"{out.stem}_run")
    log, last, guard = CSVLog(run / "metrics.csv"), run / "last.ckpt", Guard()
    trainer = _trainer(config, [TQDMProgressBar(), guard, Saver(last, config.save_every, log)], log, steps)
    if config.data.batch_size % trainer.world_size:
        raise UsageError(
            f"data.batch_size is {config.data.batch_size}, which {trainer.world_size} processes do not divide; "
            "choose a multiple"
        )
    loaders = _loaders(config, subject, train, test, indices.long(), trainer)

    resume = last.exists() and not args.overwrite
    if resume:
        state = load_file(last)
        _check_same_run(last, (state.get("hyper_parameters") or {}).get("identity"), identity)
        step = int(state["global_step"])
        epoch, done = divmod(step, steps)
        loaders[0].sampler.skip(epoch, done * parts)  # type: ignore[attr-defined]
        log.forget_from(step + 1)
    else:
        step = 0
        log.forget_from(0)
    if trainer.is_global_zero:
        print(
            f"{task}, {subject.checkpoint.architecture} on {trainer.strategy.root_device}: {len(indices)} training, "
            f"{len(test)} test images, {config.schedule.epochs} epochs, batch {config.data.batch_size}, lr {lr:g}"
            + (f"\ngoing on from {last}, step {step}" if resume else "")
        )
    trainer.fit(module, *loaders, ckpt_path=last if resume else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if digest and weights_digest(subject.backbone) != digest:
        last.unlink(missing_ok=True)
        raise UserError(
            "the frozen backbone changed while its classifier was trained; the result was thrown away"
        )
    if not trainer.is_global_zero:
        return None
    rest = f"{last} holds it and the same command goes on" if args.out else "without --out nothing was kept"
    if guard.signal:
        name = signal.Signals(guard.signal).name
        raise Stopped(f"stopped by {name} after step {trainer.global_step}; {rest}", guard.signal)
    if trainer.global_step < total_steps:
        print(f"stopped after step {trainer.global_step} of {total_steps}; {rest}")
        return None
    found = log.latest()
    measured: dict[str, Any] = {
        key: found.get(key) for key in ("top1", "top5", "mean_per_class", "loss", "train_top1")
    }
    measured |= {
        "lr": lr,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "train_images": len(indices),
    }
    if digest:
        measured["backbone_sha256"] = digest
    return measured


def _trainer(
    config: ClassificationConfig, callbacks: list[pl.Callback], log: CSVLog, steps: int
) -> pl.Trainer:
    """Returns Lightning's Trainer with what the config says of it."""
    # neither is news: the network is frozen, and the sampler goes on where it was
    for message in (
        "does not have many workers",
        "in eval mode at the start of",
        "dataloader is not resumable",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    given = dict(config.trainer)
    if limit := given.pop("max_time", None):
        callbacks.insert(0, TimeLimit(limit))
    arguments = {
        "max_epochs": config.schedule.epochs,
        "logger": log,
        "plugins": [WholeFiles()],
        "callbacks": callbacks,
        "log_every_n_steps": min(10, steps),
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**{**arguments, **given})


def _loaders(
    config: ClassificationConfig, subject: Subject, train: ImageSet, test: ImageSet, indices: Any, trainer: pl.Trainer
) -> tuple[DataLoader[Any], DataLoader[Any]]:  # fmt: skip
    """Returns the training batches and the test images of one of several processes."""
    data, view = config.data, subject.view
    rank, processes = trainer.global_rank, trainer.world_size
    share = data.batch_size // processes
    workers = loader_processes(data.workers)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    crops = TrainingCrops(train, indices, training_crop(view.image_size, data.min_scale), config.seed)
    order = WholeEpochOrder(len(crops), config.seed, data.batch_size, rank, processes)
    shown = LabelledImages(test, evaluation_transform(view.image_size, view.crop_ratio))
    mine = Subset(shown, range(rank, len(shown), processes))
    return (
        DataLoader(crops, share, sampler=order, **options),
        DataLoader(mine, share, collate_fn=keep_whole, **options),
    )


def _check_same_run(path: Path, then: Any, now: dict[str, Any]) -> None:
    """Raises UsageError if a checkpoint is of another evaluation."""
    if then == now:
        return
    then = then if isinstance(then, dict) else {}
    key = next(key for key in now if then.get(key) != now[key])
    raise UsageError(
        f"{path} holds another evaluation, cut off (its {key} differ{'' if key == 'settings' else 's'}), and was kept; "
        "choose another --out, or --overwrite to start again"
    )
