"""Pre-train as tools/pretrain.py does, with one fault: FAULT VALUE ARGUMENTS..., see test_failures.py.

``size N``: no file may grow beyond N bytes (a full disk); ``delete STEP``: the output folder is deleted at that step;
``pause STEP``: wait at that step, having written ``paused``; ``crash STEP`` and ``freeze STEP``: the last process ends
or stops at that step.
"""

import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from moco_plugin.methods import MoCo
from moco_plugin.tools.pretrain import main

fault, value = sys.argv[1], int(sys.argv[2])
out = Path(next(a for a in sys.argv if a.startswith("out=")).removeprefix("out="))
last_process = os.environ.get("LOCAL_RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
forward, calls = MoCo.forward, 0


def faulty(self: MoCo, *args: Any, **kwargs: Any) -> Any:
    global calls
    calls += 1
    if calls == value:
        if fault == "delete":
            shutil.rmtree(out)
        elif fault == "pause":
            (out / "paused").write_text(str(os.getpid()))
            while (out / "paused").exists():
                time.sleep(0.05)
        elif fault == "crash" and last_process:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "freeze" and last_process:
            os.kill(os.getpid(), signal.SIGSTOP)
    return forward(self, *args, **kwargs)


MoCo.forward = faulty  # type: ignore[method-assign]
if fault == "size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
