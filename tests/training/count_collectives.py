"""Pre-train as tools/pretrain.py does, and print how often each step met the other processes, see test_waiting.py."""

import json
import sys
from collections import Counter
from typing import Any

import torch.distributed as dist

from moco_plugin.pretraining.monitor import Throughput
from moco_plugin.tools.pretrain import main

COLLECTIVES = (
    "all_reduce all_gather all_to_all_single broadcast broadcast_object_list barrier monitored_barrier".split()
)
counts: Counter[str] = Counter()


def counted(name: str) -> Any:
    function = getattr(dist, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return function(*args, **kwargs)

    return count


def show(self: Throughput, trainer: Any, *args: Any) -> None:
    """Print the count since the start of the step before, its callbacks and its log included."""
    if trainer.is_global_zero and trainer.global_step:
        print(f"step: {json.dumps(counts)}", flush=True)
    counts.clear()


for collective in COLLECTIVES:
    setattr(dist, collective, counted(collective))
Throughput.on_train_batch_start = show  # type: ignore[method-assign, assignment]
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
