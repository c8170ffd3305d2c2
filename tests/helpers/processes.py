"""Runs tools as a user types them, each in a process of its own."""

import itertools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parents[2] / "tools"
Tool = Callable[..., subprocess.CompletedProcess[str]]
_count = itertools.count()
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["moco_plugin.pretraining.run"])  # detectron2 reads the environment when imported


def _enter(script: str, arguments: list[str], environment: dict[str, str], output: str, cwd: str) -> None:
    """The body of a tool's process: ``script`` as ``__main__``, its streams in files."""
    for stream, name in enumerate((os.devnull, f"{output}.out", f"{output}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for name in ("SIGINT", "SIGHUP"):  # a shell's background jobs ignore them
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a user starts
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def start_tool(
    folder: Path,
    name: str | Path,
    *arguments: str | Path,
    processes: int = 1,
    cwd: str | Path = "/",
    **environment: str,
) -> list[BaseProcess]:
    """Start ``tools/NAME.py ARGUMENTS`` in ``cwd``; its output goes to files in ``folder``.

    ``name`` may also be the path of another script. Several processes find each other as torchrun's do. All are
    forked from one process that has only imported the large packages.
    """
    script = str(name if isinstance(name, Path) else TOOLS / f"{name}.py")
    output = f"{folder}/{next(_count)}"
    started: list[BaseProcess] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        shared = {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
        added = {key: str(value) for key, value in (ranks | shared).items()} if processes > 1 else {}
        call = script, [*map(str, arguments)], {**os.environ, **added, **environment}
        name_of_output = f"{output}.{rank}"
        process = context.Process(target=_enter, args=(*call, name_of_output, str(cwd)), name=name_of_output)
        process.start()
        started.append(process)
    return started


def output_of(process: BaseProcess) -> tuple[str, str]:
    """Return what a process printed on stdout and stderr."""
    out, err = (Path(f"{process.name}.{stream}").read_text() for stream in ("out", "err"))
    return out, err


def run_tool(
    folder: Path, name: str | Path, *arguments: str | Path, code: int = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end and return what its first process printed; see ``start_tool``."""
    started = start_tool(folder, name, *arguments, **options)
    for process in started:
        process.join()
    shown, errors = output_of(started[0])
    assert started[0].exitcode == code, f"exit code {started[0].exitcode}\n{shown[-2000:]}\n{errors[-3000:]}"
    if code:
        assert "Traceback" not in errors
    return subprocess.CompletedProcess([str(name), *map(str, arguments)], code, shown, errors)
