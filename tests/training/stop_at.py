"""Pre-trains as tools/pretrain.py does, and sends itself a signal within a step: SIGNAL STEP ARGUMENTS..."""

import os
import signal
import sys
from typing import Any

from moco_plugin.methods import MoCo
from moco_plugin.runs.logs import CSVLog
from moco_plugin.tools.pretrain import main

number, step = signal.Signals[sys.argv[1]], int(sys.argv[2])
forward, calls = MoCo.forward, 0


def stopping_forward(self: MoCo, *args: Any, **kwargs: Any) -> Any:
    global calls
    calls += 1
    # SIGKILL takes every process; the others are sent to the first alone
    if calls == step and (number == signal.SIGKILL or not int(os.environ.get("LOCAL_RANK", 0))):
        os.kill(os.getpid(), number)
    return forward(self, *args, **kwargs)


MoCo.forward = stopping_forward  # type: ignore[method-assign]
CSVLog.save = lambda self: None  # type: ignore[method-assign]  # no row lies on disk but what a checkpoint wrote
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
