#!/usr/bin/env python3
"""Install detectron2: a pinned commit of its official source if it can be reached, else the index's copy of v0.6.

An installed detectron2 is kept. The official source compiles C++ operators and needs a compiler; the index's copy has
the same Python files without them, and is checked against its SHA-256. The evaluators of LVIS and Cityscapes are
installed as well.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    from moco_plugin.errors import UserError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

OFFICIAL = "https://github.com/facebookresearch/detectron2"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
EVALUATORS = ("lvis==0.5.3", "cityscapesScripts==2.3.0")
PURE_PYTHON = ["--config-settings=--global-option=build_py", "--config-settings=--build-option=--skip-build"]


def _pip(*arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", "pip", *arguments]).returncode == 0


def _reachable(url: str) -> bool:
    try:
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        check = subprocess.run(["git", "ls-remote", url, "HEAD"], capture_output=True, timeout=20, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return check.returncode == 0


def _install_sdist() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n")
        source = ["--no-deps", "--no-build-isolation"]
        if not _pip(
            "download", "-q", *source, "--no-binary=:all:", "--require-hashes", "-d", folder, "-r", str(requirement)
        ):
            return False
        (archive,) = Path(folder).glob("*.tar.gz")
        return _pip("install", "-q", *source, "--use-pep517", *PURE_PYTHON, str(archive))


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and install."""
    new_parser(__doc__, "example:\n  %(prog)s").parse_args(argv)
    if importlib.util.find_spec("detectron2"):
        print("detectron2 is installed already; kept")
    elif _reachable(OFFICIAL) and _pip("install", "--no-build-isolation", f"git+{OFFICIAL}.git@{COMMIT}"):
        print(f"detectron2: installed from its official source, commit {COMMIT[:7]}")
    elif _install_sdist():
        print("detectron2: installed v0.6 from the package index, pure Python")
    else:
        raise UserError(
            f"detectron2 could not be installed: neither {OFFICIAL} nor {SDIST} on the package index could be "
            "had; install it by hand, then run this again"
        )
    # without their own requirements: those name a full OpenCV, which replaces the headless one and wants libGL
    if not _pip("install", "-q", "--no-deps", *EVALUATORS):
        raise UserError(
            f"{' and '.join(EVALUATORS)}, which evaluate LVIS and Cityscapes, could not be installed; check the "
            "package index and run this again"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
