"""Estimate of the duration of trainings, from a few steps and test images."""

import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from moco_plugin.errors import duration
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.config import fit_device
from moco_plugin.transfer.launch import Machines
from moco_plugin.transfer.runner import CONTEXT
from moco_plugin.transfer.trainer import Trainer

TIMED = 3  # steps and test images, after a first one that is not timed


def describe_duration(cfg: CfgNode, machines: Machines, trainings: int, images: int) -> str:
    """Say how long trainings take in all.

    The steps are timed in a process of their own, on one device with its share of the batch and random weights.

    Args:
        cfg: Config of a training.
        machines: Where it will run.
        trainings: Number of trainings, which run one after another.
        images: Number of test images of each.
    """
    try:
        with ProcessPoolExecutor(1, CONTEXT) as pool:
            step, image = pool.submit(_times, cfg, machines.processes).result()
    except Exception:  # the training will say why
        return f"{trainings} trainings follow, and how long they take could not be measured"
    steps = cfg.SOLVER.MAX_ITER
    return (
        f"{trainings} trainings of {steps} steps follow, about {duration(trainings * (steps * step + images * image))} in "
        f"all ({step:.2g} s a step, {image:.2g} s a test image); the eta shown is that of one"
    )


def _times(cfg: CfgNode, processes: int) -> tuple[float, float]:
    """Return the seconds of a step and of a test image."""
    warnings.simplefilter("ignore")
    cfg.SOLVER.IMS_PER_BATCH //= processes
    fit_device(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        require_dataset(name)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)

    def train(batch: Any) -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    with EventStorage():  # the model's losses log into it
        step = _seconds(train, Trainer.build_train_loader(cfg))
    model.eval()
    with torch.no_grad():
        return step, _seconds(model, Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))


def _seconds(function: Any, batches: Any) -> float:
    """Return the mean seconds of loading a batch and a call with it, without the first."""
    start, count = time.perf_counter(), 0
    for count, batch in enumerate(islice(batches, TIMED + 1)):
        function(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not count:
            start = time.perf_counter()
    return (time.perf_counter() - start) / max(1, count)
