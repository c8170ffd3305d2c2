"""Run a tool of detectron2's on the CPU and record what each process's model is given: TOOL FOLDER ARGUMENTS...

Several processes, as torchrun's, are the machines of one training, over gloo: detectron2's launcher wants a GPU each.
``FOLDER/RANK.jsonl`` gets a line for each call of the model: the iteration (null outside of one), whether it trains, and
of each image its file and, by field, shape, type and digest of what the model gets. At the iteration that ``KILLED_AT``
names the processes end.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import moco_plugin.transfer  # noqa: F401  (before detectron2)

# isort: split
import detectron2.utils.comm as comm
import numpy as np
import torch
from detectron2.engine import defaults
from detectron2.structures import Instances
from torch import Tensor, distributed

from moco_plugin.transfer import trainer
from moco_plugin.transfer.launch import Machines

FOLDER = Path(sys.argv[2])
iteration: int | None = None


def described(value: Any) -> Any:
    """Return JSON for what a model is given: numbers as they are, arrays by their digests."""
    if isinstance(value, Instances):
        return {**{name: described(field) for name, field in value.get_fields().items()}, "size": value.image_size}
    value = next((getattr(value, name) for name in ("tensor", "polygons") if hasattr(value, name)), value)
    if isinstance(value, list):
        return [described(item) for item in value]
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(value)
        return [list(array.shape), str(array.dtype), sha256(array.tobytes()).hexdigest()[:16]]
    return value


def record(model: torch.nn.Module, inputs: tuple[list[dict[str, Any]]]) -> None:
    images = [{name: described(value) for name, value in image.items()} for image in inputs[0]]
    with open(FOLDER / f"{comm.get_rank()}.jsonl", "a") as file:
        print(json.dumps({"iteration": iteration, "trains": model.training, "images": images}), file=file)


class Trainer(trainer.Trainer):
    """The product's trainer, whose model is watched."""

    @classmethod
    def build_model(cls, cfg: Any) -> torch.nn.Module:
        model: torch.nn.Module = super().build_model(cfg)
        model.register_forward_pre_hook(record)
        return model

    def run_step(self) -> None:
        global iteration
        iteration = self.iter
        if str(iteration) == os.environ.get("KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().run_step()
        iteration = None


def launch(function: Callable[..., None], machines: Machines, *arguments: Any) -> None:
    if machines.num_machines > 1:
        size, rank = machines.num_machines, machines.machine_rank
        distributed.init_process_group("gloo", init_method=machines.dist_url, world_size=size, rank=rank)
        groups = [distributed.new_group([other]) for other in range(size)]
        comm._LOCAL_PROCESS_GROUP = groups[rank]
    function(*arguments)


trainer.Trainer = Trainer
trainer.launch = launch
defaults.create_ddp_model = partial(defaults.create_ddp_model, device_ids=None)
if __name__ == "__main__":  # the processes that a trial spawns import this file as well
    FOLDER.mkdir(parents=True, exist_ok=True)
    arguments = sys.argv[3:]
    if size := os.environ.get("WORLD_SIZE"):
        address = f"tcp://127.0.0.1:{os.environ['MASTER_PORT']}"
        arguments[:0] = ["--num-machines", size, "--machine-rank", os.environ["RANK"], "--dist-url", address]
    sys.exit(import_module(f"moco_plugin.tools.{sys.argv[1]}").main(arguments))
