"""Number and set-up of loader processes."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_processes(workers: int) -> int:
    """Return the number of loader processes: -1 takes the available cores, at most 16."""
    return workers if workers >= 0 else min(16, available_cores())


def training_loader_options(workers: int) -> dict[str, Any]:
    """Return arguments of a training ``DataLoader``; use it inside ``ended_with``."""
    workers = loader_processes(workers)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": _begin_worker if workers else None,
        "pin_memory": torch.cuda.is_available(),
    }


@contextmanager
def ended_with(*loaders: DataLoader[Any] | None) -> Iterator[None]:
    """Terminate the processes of these loaders after the block, since they ignore Python's signal."""
    try:
        yield
    finally:
        for loader in loaders:
            if iterator := getattr(loader, "_iterator", None):
                iterator._shutdown_workers()


def _begin_worker(worker: int) -> None:
    """Decode on one thread, and leave signals to the training process.

    Ctrl-C and job schedulers send them to all processes at once.
    """
    cv2.setNumThreads(0)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
