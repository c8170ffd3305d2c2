"""Run a tool and keep a copy of every checkpoint with its log: TOOL KEPT ARGUMENTS..., see test_resume.py."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

from moco_plugin.runs.callbacks import AtomicCheckpoints

tool, kept = sys.argv[1], Path(sys.argv[2])
save_checkpoint = AtomicCheckpoints.save_checkpoint


def keeping(self: AtomicCheckpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
    save_checkpoint(self, checkpoint, path, storage_options)
    folder = kept / str(checkpoint["global_step"])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / "last.ckpt")
    (log,) = (f for f in (Path(path).parent, Path(path).parent.parent) if (f / "metrics.csv").exists())
    shutil.copy(log / "metrics.csv", folder)


AtomicCheckpoints.save_checkpoint = keeping  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(importlib.import_module(f"moco_plugin.tools.{tool}").main(sys.argv[3:]))
