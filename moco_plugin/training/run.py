"""Pre-training from a config: builds everything, trains with Lightning's Trainer, resumes what was cut off."""

from __future__ import annotations

import inspect
import math
import os
import shutil
import signal
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from moco_plugin.checkpoints.read import load_file
from moco_plugin.config import PretrainConfig, config_dict, queue_warning
from moco_plugin.data.images import ImageSet, RawImages, TrainImages
from moco_plugin.data.order import EpochOrder
from moco_plugin.data.views import build_views
from moco_plugin.errors import Stopped, UsageError, UserError, nearest
from moco_plugin.files import atomic_path, write_json
from moco_plugin.training.callbacks import (
    CorruptImageWatch,
    Guard,
    KNNMonitor,
    Saver,
    Throughput,
    TimeLimit,
    WholeFiles,
)
from moco_plugin.training.logs import CSVLog
from moco_plugin.training.module import PretrainModule, accumulation, scaled_lr, views_name

# keys that a resumed run may give other values
MAY_CHANGE = ("trainer", "knn", "data.workers", "save_every", "compile")


def train_loader(
    config: PretrainConfig, images: ImageSet, rank: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """Returns the shuffled batches of one of several training processes; a last smaller batch is left out."""
    data = config.data
    if len(images) < data.batch_size:
        raise UsageError(
            f"data.batch_size is {data.batch_size} and {data.root} holds {len(images)} images; choose a smaller batch"
        )
    dataset: Any
    if data.batched_views:
        dataset = RawImages(images)
        workers = 0
    else:
        name = views_name(config)
        dataset = TrainImages(images, build_views(name, data.image_size, **data.view_args), config.seed)
        workers = min(16, len(os.sched_getaffinity(0))) if data.workers < 0 else data.workers
    return DataLoader(
        dataset,
        data.batch_size // processes,
        sampler=EpochOrder(len(images), config.seed, data.batch_size, rank, processes),
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_same_config(path: Path, config: PretrainConfig) -> None:
    """Raises UsageError if the run in this folder was started with another config."""
    then, now = _flat(yaml.safe_load(path.read_text())), _flat(config_dict(config))
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    keys = [key for key in keys if not key.startswith(MAY_CHANGE) and key != "out"]
    if keys:
        key = keys[0]
        raise UsageError(
            f"{path.parent} holds a run with another config ({key} was {then.get(key)}, now {now.get(key)}"
            f"{f', and {len(keys) - 1} more' if keys[1:] else ''}) and was kept; "
            "choose another out=, or --overwrite to start again"
        )


def check_trainer_keys(given: Iterable[str]) -> None:
    """Raises UsageError if one of the ``trainer.KEY`` is no argument of Lightning's Trainer."""
    parameters = inspect.signature(pl.Trainer).parameters
    for key in given:
        if key not in parameters:
            raise UsageError(
                f"unknown key trainer.{key}; it is no argument of Lightning's Trainer{nearest(key, parameters)}"
            )


def pretrain(config: PretrainConfig, overwrite: bool = False) -> Path:
    """Trains as the config says, or goes on with the run that its ``out`` folder holds.

    The folder gets ``config.yaml``, ``metrics.csv``, ``tensorboard/``, ``checkpoints/last.ckpt`` and, when all
    is done, ``result.json``.

    Args:
        config: The run.
        overwrite: Throw away what ``out`` holds.

    Returns:
        Path of the last checkpoint.

    Raises:
        UserError: Something in the config or the data is wrong; nothing saved is lost.
    """
    out = Path(config.out).expanduser()
    last = out / "checkpoints" / "last.ckpt"
    if (out / "config.yaml").exists() and not overwrite:
        _check_same_config(out / "config.yaml", config)
        if (out / "result.json").exists():
            print(f"{out} holds this run, finished; nothing to do (--overwrite starts again)")
            return last
    elif (
        getattr(rank_zero_only, "rank", 0) == 0
        and out.exists()
        and not (out / "config.yaml").exists()
        and any(out.iterdir())
    ):
        raise UsageError(f"{out} holds files of something else and was kept; choose another out=")

    check_trainer_keys(config.trainer)
    pl.seed_everything(config.seed, verbose=False)
    images = ImageSet(config.data.root)
    batches = len(images) // config.data.batch_size  # an epoch's
    steps = math.ceil(batches / accumulation(config))
    total_steps = config.schedule.steps or config.schedule.epochs * steps
    module = PretrainModule(config, total_steps)
    csv_log, guard = CSVLog(out / "metrics.csv"), Guard()
    callbacks: list[pl.Callback] = [
        TQDMProgressBar(),
        Throughput(config.data.batch_size),
        CorruptImageWatch(len(images)),
        guard,
        Saver(last, config.save_every, csv_log),
    ]
    if config.knn.train and config.knn.test:
        callbacks.insert(2, KNNMonitor(config))
    given = dict(config.trainer)
    if limit := given.pop("max_time", None):
        callbacks.insert(0, TimeLimit(limit))

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    arguments = {
        "max_epochs": -1 if config.schedule.steps else config.schedule.epochs,
        "max_steps": config.schedule.steps or -1,
        "logger": [csv_log, TensorBoardLogger(out, name="tensorboard", version="")],
        "plugins": [WholeFiles()],
        "callbacks": callbacks,
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    trainer = pl.Trainer(**{**arguments, **given})
    if trainer.world_size > 1 and "strategy" not in config.trainer:
        # queues are equal on all processes, and batch norm's statistics are the first process's: nothing to send
        arguments["strategy"] = DDPStrategy(broadcast_buffers=False)
        trainer = pl.Trainer(**{**arguments, **given})
    check_batch(config.data.batch_size, module.method, trainer.world_size)
    loader = train_loader(config, images, trainer.global_rank, trainer.world_size)

    resume = last.exists() and not overwrite
    step = _resumed_step(last) if resume else 0
    if trainer.is_global_zero:
        if overwrite and out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        with atomic_path(out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(config_dict(config), sort_keys=False))
        _describe(config, module, len(images), total_steps, trainer)
        if resume:
            csv_log.forget_from(step + 1)
            print(f"going on from {last}, step {step}")
    if resume:  # within an epoch: what it had already is not loaded again
        epoch, done = divmod(step, steps)
        cast(EpochOrder, loader.sampler).skip(epoch, done * accumulation(config))
    else:
        csv_log.forget_from(0)
    trainer.fit(module, loader, ckpt_path=last if resume else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if not trainer.is_global_zero:
        return last
    if guard.signal:
        name = signal.Signals(guard.signal).name
        raise Stopped(
            f"stopped by {name} after step {trainer.global_step}; {last} holds it and the same command goes on",
            guard.signal,
        )
    if trainer.global_step < total_steps:
        print(f"stopped after step {trainer.global_step} of {total_steps}; the same command goes on")
        return last
    result = {"epochs": trainer.current_epoch, "steps": trainer.global_step, **csv_log.latest()}
    write_json(out / "result.json", result)
    print(f"checkpoint: {last}")
    return last


def check_batch(batch: int, method: Any, processes: int, key: str = "data.batch_size") -> None:
    """Raises UsageError if a batch of all processes does not divide into its parts, or outgrows the queue."""
    groups = method.groups(processes) if hasattr(method, "groups") else 1
    parts = processes * groups
    if batch % parts:
        below, above = batch // parts * parts, -(-batch // parts) * parts
        raise UsageError(
            f"{key} is {batch}, which {processes} processes with {groups} batch norm groups each do not "
            f"divide; choose a batch of {f'{below} or ' if below else ''}{above}, or another batch_norm_groups"
        )
    if hasattr(method, "queue") and len(method.queue) < batch * (1 + method.symmetric):
        raise UsageError(
            f"method_args.queue_size is {len(method.queue)}, below the {batch * (1 + method.symmetric)} keys of a "
            "batch; choose a larger queue"
        )


def _resumed_step(path: Path) -> int:
    state = load_file(path)
    if "global_step" not in state:
        raise UserError(f"{path} is no checkpoint of a run; --overwrite starts again")
    return int(state["global_step"])


def _describe(
    config: PretrainConfig, module: PretrainModule, images: int, total_steps: int, trainer: pl.Trainer
) -> None:
    """Says what is about to happen: the model, the images, the learning rate and how it came about."""
    encoder = sum(p.numel() for p in module.method.parameters() if p.requires_grad)
    optimizer, batch, parts = config.optimizer, config.data.batch_size, accumulation(config)
    lr = f"{scaled_lr(config):g}"
    if optimizer.scale_lr and batch * parts != optimizer.reference_batch_size:
        lr += f" = {optimizer.lr:g} x {batch * parts}/{optimizer.reference_batch_size}"
    epochs = "epochs" if config.schedule.steps else f"{config.schedule.epochs} epochs"
    print(
        f"{config.method}, {config.backbone}, {encoder / 1e6:.2f} M trained parameters, on {trainer.strategy.root_device}\n"
        f"{images} images of {config.data.root}, {epochs} of {images // batch} batches, {total_steps} steps\n"
        f"batch {batch} on {trainer.world_size} process{'es' if trainer.world_size > 1 else ''}, learning rate {lr}"
    )
    if sentence := queue_warning(module.method, images):
        print(sentence)
