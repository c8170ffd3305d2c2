"""The training processes of detectron2, on one machine or several."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import detectron2.engine  # noqa: F401  (imports the launcher)
import torch

from moco_plugin.errors import UsageError


@dataclass(frozen=True)
class Machines:
    """The processes of a run, in the terms of detectron2's launcher.

    Attributes:
        gpus: Processes of this machine, one per GPU; 1 is the CPU on a machine without GPUs.
        num_machines: Machines that train together.
        machine_rank: Index of this machine.
        dist_url: Address at which the machines meet, such as ``tcp://10.0.0.1:29500``; None on a single machine.
    """

    gpus: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str | None = None

    @property
    def processes(self) -> int:
        """Training processes on all machines."""
        return self.gpus * self.num_machines

    def arguments(self) -> str:
        """Return the options of train_net for these machines."""
        several = f" --num-machines {self.num_machines} --machine-rank {self.machine_rank}" * (self.num_machines > 1)
        return f"--num-gpus {self.gpus}{several}" + (f" --dist-url {self.dist_url}" if self.dist_url else "")

    def check(self) -> None:
        """Raise UsageError if this machine lacks GPUs, or its rank or the address is invalid."""
        if not 1 <= self.gpus <= default_gpus():
            raise UsageError(
                f"--num-gpus (--gpus) is {self.gpus}, and this machine has {torch.cuda.device_count()} GPUs; expected 1"
                + (f" to {default_gpus()}" if default_gpus() > 1 else ", which is the CPU")
            )
        if self.num_machines > 1 and not self.dist_url:
            raise UsageError("several machines need --dist-url, such as tcp://10.0.0.1:29500 of the first of them")
        if self.num_machines < 1 or not 0 <= self.machine_rank < self.num_machines:
            raise UsageError(
                f"--machine-rank is {self.machine_rank} of --num-machines {self.num_machines}; expected "
                "0 for the first machine to one less than their number for the last"
            )


def default_gpus() -> int:
    """Return the number of GPUs of this machine; 1, which is the CPU, if there are none."""
    return max(1, torch.cuda.device_count())


def launch(function: Callable[..., None], machines: Machines, *args: Any) -> None:
    """Call ``function(*args)`` in the processes of this machine, by detectron2's launcher.

    Its processes would import detectron2 before ``compat``, which 0.6 needs, unless the main module imports
    ``moco_plugin.transfer``; so they start at ``_worker`` in its place.
    """
    module: Any = sys.modules["detectron2.engine.launch"]  # as an attribute of its package it is the function
    original, module._distributed_worker = module._distributed_worker, _worker
    try:
        module.launch(
            function,
            machines.gpus,
            num_machines=machines.num_machines,
            machine_rank=machines.machine_rank,
            dist_url=machines.dist_url or "auto",
            args=args,
        )
    finally:
        module._distributed_worker = original


def _worker(*arguments: Any) -> None:
    """Run detectron2's own worker in a spawned process."""
    from detectron2.engine.launch import _distributed_worker

    _distributed_worker(*arguments)
