"""A wheel of a source tree."""

import subprocess
import sys
from pathlib import Path


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of ``source`` into ``folder``; return its path."""
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("moco_plugin-*.whl")
    return path
