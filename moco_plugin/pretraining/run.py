"""A pre-training run from a config."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from moco_plugin.data.datasets import TrainImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import training_loader_options
from moco_plugin.data.order import EpochOrder
from moco_plugin.data.statistics import describe_statistics, measure_statistics
from moco_plugin.data.views import Views
from moco_plugin.errors import UsageError
from moco_plugin.files import write_json
from moco_plugin.methods import Method
from moco_plugin.methods.batch_norm import SyncBatchNorm
from moco_plugin.pretraining.config import PretrainConfig, config_dict
from moco_plugin.pretraining.module import PretrainModule, accumulation, starting_lr, views_name
from moco_plugin.pretraining.monitor import CorruptImageWatch, GroupedTensorBoard, KNNMonitor, Throughput, ViewPairs
from moco_plugin.pretraining.prepare import open_images, queue_warning
from moco_plugin.pretraining.sizing import advice, available_memory, check_memory
from moco_plugin.runs.fit import Run
from moco_plugin.runs.run_folder import Identity
from moco_plugin.runs.trainer_arguments import check_trainer_arguments, describe_arithmetic

FILES = ("result.json", "checkpoints", "tensorboard", "metrics.csv", "config.yaml")


def pretrain(config: PretrainConfig, overwrite: bool = False, images: ImageSet | None = None) -> Path:
    """Train as configured, or resume the run in the ``out`` folder.

    The folder gets ``config.yaml``, ``metrics.csv``, ``tensorboard/``, ``checkpoints/last.ckpt`` and, when all
    steps are done, ``result.json``.

    Args:
        config: The run; ``prepare_run`` makes one that fits the images and the machine.
        overwrite: Remove the run in ``out``.
        images: The value of ``open_images(config)``, if the images were listed already.

    Returns:
        Path of the last checkpoint.

    Raises:
        UserError: Something in the config or the data is wrong; nothing saved is lost.
    """
    out = Path(config.out).expanduser()
    _check_folder(out)
    check_trainer_arguments(config.trainer)
    images = images or open_images(config)
    measure_missing_statistics(config, images)
    run = Run(
        folder=out,
        files=FILES,
        checkpoint="checkpoints/last.ckpt",
        identity=Identity(config_dict(config), {"data.root": images.identity()}),
        trainer=config.trainer,
        epochs=config.schedule.epochs,
        steps=config.schedule.steps,
        save_every=config.save_every,
        timeout=config.timeout,
        log_every=max(1, min(10, len(images) // config.data.batch_size)),
        overwrite=overwrite,
        config_text=yaml.safe_dump(config_dict(config), sort_keys=False),
    )
    if run.saved() and (out / "result.json").exists():
        print(f"{out} contains this run, finished; nothing to do (--overwrite starts again)")
        return run.last
    pl.seed_everything(config.seed, verbose=False)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    module = PretrainModule(config)
    callbacks = [Throughput(config.data.batch_size), CorruptImageWatch(len(images)), ViewPairs(config)]
    if config.knn.train and config.knn.test:
        callbacks.append(KNNMonitor(config))
    board = GroupedTensorBoard(out, name="tensorboard", version="", default_hp_metric=False)
    trainer = run.trainer_for(callbacks, [board])
    if sentence := module.choose_layout(trainer.strategy.root_device):
        rank_zero_only(print)(sentence)
    check_batch(config.data.batch_size, module.method, trainer.world_size)
    check_synchronized(module.method, trainer.strategy.root_device, trainer.world_size)
    device = trainer.strategy.root_device
    if trainer.is_global_zero:
        print(check_memory(config, module.method, device, trainer.world_size, trainer.num_devices))
        if device.type == "cuda":
            print(describe_arithmetic(trainer))
    total = available_memory(device) or 0
    run.out_of_memory = lambda: advice(config, module.method.cpu(), trainer.world_size, total, device)
    batches = train_loader(config, images, trainer.global_rank, trainer.world_size)
    message = _describe(config, module, len(images), run.total_steps(trainer, batches), trainer)
    if result := run.fit(trainer, module, batches, None, message):
        write_json(out / "result.json", result)
        print(f"checkpoint: {run.last}")
    return run.last


def _check_folder(out: Path) -> None:
    """Raise UsageError if a folder contains files but no run."""
    names = {path.name for path in out.iterdir() if path.name[0] != "."} if out.is_dir() else set()
    if names and not names & set(FILES):
        raise UsageError(f"{out} contains other files and was kept; choose another out=")


def measure_missing_statistics(config: PretrainConfig, images: ImageSet) -> None:
    """Measure ``data.mean`` and ``data.std`` where they are not of as many channels as the images have."""
    if len(config.data.mean) == images.channels:
        return
    config.data.mean, config.data.std = measure_statistics(images)
    rank_zero_only(print)(f"measured: {describe_statistics(config.data.mean, config.data.std)}")


def train_loader(config: PretrainConfig, images: ImageSet, rank: int = 0, processes: int = 1) -> DataLoader[Any]:
    """Return the shuffled batches of one of several training processes; a last smaller batch is dropped."""
    data = config.data
    if len(images) < data.batch_size:
        raise UsageError(
            f"data.batch_size is {data.batch_size} and {data.root} contains {len(images)} images; choose a smaller batch"
        )
    views = build_views(config, images)
    return DataLoader(
        TrainImages(images, views, config.seed, views.shrink if config.views.jpeg_scaling else None),
        data.batch_size // processes,
        sampler=EpochOrder(len(images), config.seed, data.batch_size, rank, processes),
        collate_fn=views.collate,
        drop_last=True,
        **training_loader_options(0 if views.whole else data.workers),
    )


def build_views(config: PretrainConfig, images: ImageSet) -> Views:
    """Return the views of an image set."""
    data, whole = config.data, images.array is not None
    return Views(views_name(config), data.image_size, config.views.engine, whole, images.channels, **data.view_args)


def check_batch(batch: int, method: Method, processes: int, key: str = "data.batch_size") -> None:
    """Raise UsageError if a batch of all processes does not divide into its parts, or outgrows the queue."""
    groups = method.groups(processes)
    parts = processes * groups
    if batch % parts:
        below, above = batch // parts * parts, -(-batch // parts) * parts
        raise UsageError(
            f"{key} is {batch}, which cannot be split evenly over {processes} "
            f"process{'es' if processes > 1 else ''} with {groups} batch norm groups each; choose a batch of "
            f"{f'{below} or ' if below else ''}{above}, or another batch_norm_groups"
        )
    keys = batch * method.keys_per_image
    if method.queue_size is not None and method.queue_size < keys:
        raise UsageError(
            f"method_args.queue_size is {method.queue_size}, below the {keys} keys of a batch; choose a larger queue"
        )


def check_synchronized(method: Method, device: torch.device, processes: int) -> None:
    """Raise UsageError if batch norm is to be synchronised between processes on a device that torch cannot do it on."""
    if processes > 1 and device.type != "cuda" and any(isinstance(m, SyncBatchNorm) for m in method.modules()):
        raise UsageError(
            f"method_args.batch_norm is sync, which torch has on CUDA only, and {processes} processes train on {device}; "
            "choose auto or plain"
        )


def _describe(
    config: PretrainConfig, module: PretrainModule, images: int, total_steps: int, trainer: pl.Trainer
) -> str:
    """Describe the run: the model, the images, the learning rate and how it follows from the batch."""
    encoder = sum(p.numel() for p in module.method.parameters() if p.requires_grad)
    optimizer, batch, parts = config.optimizer, config.data.batch_size, accumulation(config)
    lr = f"{starting_lr(config):g}"
    if optimizer.scale_lr and batch * parts != optimizer.reference_batch_size:
        lr += f" = {optimizer.lr:g} x {batch * parts}/{optimizer.reference_batch_size}"
    epochs = "epochs" if config.schedule.steps else f"{config.schedule.epochs} epochs"
    warning = queue_warning(module.method, images)
    return (
        f"{config.method}, {config.backbone}, {encoder / 1e6:.2f} M trained parameters, on {trainer.strategy.root_device}\n"
        f"{images} images of {config.data.root}, {epochs} of {images // batch} batches, {total_steps} steps\n"
        f"batch {batch} on {trainer.world_size} process{'es' if trainer.world_size > 1 else ''}, learning rate {lr}"
        + (f"\n{warning}" if warning else "")
    )
