"""Arguments of Lightning's Trainer from a config: checks, and objects by name."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks, loggers
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from moco_plugin.data.loading import available_cores
from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.runs.callbacks import ProgressBar

LOGGERS = {
    "tensorboard": "TensorBoardLogger",
    "csv": "CSVLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "comet": "CometLogger",
    "neptune": "NeptuneLogger",
}
PROFILERS = ("simple", "advanced", "pytorch", "xla")
STRATEGIES = ("auto", "ddp", "single_device")
PRECISIONS_OF_16_BITS = ("16", "16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")


def check_trainer_arguments(given: Mapping[str, Any]) -> None:
    """Check the ``trainer.KEY=VALUE`` of a config.

    Raises:
        UsageError: A key is not an argument of Lightning's Trainer, or a value cannot train.
    """
    parameters = inspect.signature(pl.Trainer).parameters
    for key, value in given.items():
        if key not in parameters:
            raise UsageError(
                f"unknown key trainer.{key}; it is not an argument of Lightning's Trainer{did_you_mean(key, parameters)}"
            )
        if key in ("plugins", "barebones", "use_distributed_sampler") and value:
            raise UsageError(f"trainer.{key}={value} cannot be combined with the run's own; leave it out")
    if str(given.get("precision")) in PRECISIONS_OF_16_BITS:
        raise UsageError(
            f"trainer.precision={given['precision']} keeps the weights in 16 bits, which round small updates away (the key "
            "encoder's among them); choose 16-mixed, bf16-mixed or 32-true"
        )
    if given.get("enable_checkpointing", True) is False:
        raise UsageError("trainer.enable_checkpointing=false: a run is resumed from its checkpoint; leave it out")
    accelerator = given.get("accelerator")
    there = {"cuda": torch.cuda.is_available(), "gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    if not there.get(str(accelerator), True):
        raise UsageError(f"trainer.accelerator={accelerator}, and torch finds no GPU here; choose cpu, or leave it out")
    _choose("strategy", given.get("strategy"), STRATEGIES)
    _choose("profiler", given.get("profiler"), PROFILERS)
    _loggers(given.get("logger"), None)
    _callbacks(given.get("callbacks"))


def _choose(key: str, value: Any, known: Sequence[str]) -> None:
    if value is not None and value not in known and not str(value).startswith("ddp_find_unused"):
        raise UsageError(f"trainer.{key}={value}; expected {', '.join(known)}{did_you_mean(str(value), known)}")


def torchrun_arguments() -> dict[str, int]:
    """Return ``devices`` and ``num_nodes`` of torchrun's environment; nothing where torchrun did not start us."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    return {"devices": int(os.environ["LOCAL_WORLD_SIZE"]), "num_nodes": int(os.environ.get("GROUP_WORLD_SIZE", "1"))}


def build_trainer(
    given: Mapping[str, Any], defaults: dict[str, Any], own_loggers: list[Logger], folder: Path
) -> pl.Trainer:
    """Build a Trainer from a run's defaults, torchrun's processes and a config's arguments, which win.

    Args:
        given: Arguments that ``check_trainer_arguments`` accepts.
        defaults: Of the run; its callbacks come before those given.
        own_loggers: Of the run: the CSV log first, which is always kept.
        folder: Of the run.

    Raises:
        UsageError: Lightning refuses a value, or a logger's package is not installed.
    """
    given = torchrun_arguments() | dict(given)
    every = [*defaults.pop("callbacks"), *_callbacks(given.pop("callbacks", None))]
    if given.get("enable_progress_bar", True) and not any(isinstance(c, callbacks.ProgressBar) for c in every):
        every.append(ProgressBar())
    logger = given.pop("logger", None)
    chosen = own_loggers if logger in (None, True) else [own_loggers[0], *_loggers(logger, folder)]
    try:
        trainer = pl.Trainer(**{**defaults, **given, "callbacks": every, "logger": chosen})
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    cores, processes = available_cores(), trainer.num_devices
    if isinstance(trainer.accelerator, CPUAccelerator) and processes > cores and trainer.is_global_zero:
        print(f"{processes} processes share {cores} cores; trainer.devices={cores} is as fast")
    return trainer


def describe_arithmetic(trainer: pl.Trainer) -> str:
    """Describe the GPU's numerics: TF32, and how cuDNN selects convolutions."""
    products = torch.get_float32_matmul_precision() != "highest"
    convolutions = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
    choice = "benchmarks, which may differ between runs" if torch.backends.cudnn.benchmark else "heuristics"
    return (
        f"float32 convolutions in {convolutions}, matrix products in {'TF32' if products else 'float32'} (tf32); cuDNN "
        f"selects convolutions by {choice} (trainer.benchmark, trainer.deterministic)"
    )


def _loggers(value: Any, folder: Path | None) -> list[Logger]:
    """Return Lightning's loggers of these names; with no folder, only check the names."""
    names = _names(None if value in (True, False) else value)
    for name in names:
        _choose("logger", name, tuple(LOGGERS))
    if folder is None:
        return []
    built: list[Logger] = []
    for name in names:
        arguments = {} if name in ("neptune", "comet") else {"save_dir": str(folder)}
        try:
            built.append(getattr(loggers, LOGGERS[name])(**arguments))
        except ImportError as error:
            raise UsageError(f"trainer.logger={name} needs its package, which is not installed ({error})") from error
    return built


def _callbacks(value: Any) -> list[pl.Callback]:
    """Return Lightning's callbacks of these names, without arguments."""
    known = [name for name, kind in vars(callbacks).items() if isinstance(kind, type) and issubclass(kind, pl.Callback)]
    built: list[pl.Callback] = []
    for name in _names(value):
        if name not in known:
            raise UsageError(f"trainer.callbacks: Lightning has no {name!r}{did_you_mean(str(name), known)}")
        try:
            built.append(getattr(callbacks, name)())
        except (TypeError, ImportError) as error:
            raise UsageError(
                f"trainer.callbacks={name}: {error}; only callbacks without arguments can be named"
            ) from error
    return built


def _names(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
