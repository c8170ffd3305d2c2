"""Transfer experiments as in the papers: several trials from the same weights, their mean and spread."""

import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode

import moco_plugin
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.errors import Stopped, UsageError, UserError, command
from moco_plugin.files import parse_json, read_json, write_json
from moco_plugin.runs.run_folder import differences, locked
from moco_plugin.transfer.checks import check_datasets
from moco_plugin.transfer.config import fit_device, load_detector_config, merge, scale_to_batch
from moco_plugin.transfer.initial_weights import check_weights, find_weights
from moco_plugin.transfer.launch import Machines, default_gpus
from moco_plugin.transfer.tasks import Task, find_task
from moco_plugin.transfer.trainer import RESULTS, Options, train_checked

CONTEXT = multiprocessing.get_context("spawn")
OWN = {"OUTPUT_DIR": "--out", "SEED": "--trials", "MODEL.WEIGHTS": "--weights"}
"""Config keys that the runner sets, and the options in their place."""
DRAWN_ABOVE = 0.3  # smallest score of a drawn detection
Draw = Callable[[Path, Path, float], None]
"""Draws the predictions of a trial: its folder, the folder to write, the smallest score."""


def run_trials(
    task: Task | str,
    init: str = "moco",
    weights: str | Checkpoint | None = None,
    out: str | Path | None = None,
    *,
    trials: int = 5,
    machines: Machines | None = None,
    images_per_batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    draw: Draw | None = None,
) -> dict[str, Any]:
    """Train and evaluate the trials that are not finished yet.

    Config, data sets and weights are checked before the first trial. Trial n has the seed n and the folder ``trial_n``;
    an interrupted trial resumes from its last checkpoint. ``results.json`` is written after each trial. Several machines
    must share the folder, as detectron2 requires.

    Args:
        task: The experiment, or its name.
        init: "random", "supervised" or "moco": the config.
        weights: A checkpoint that ``convert_to_d2`` reads, or as read, a released one's name, or a detectron2 ``.pkl``;
            None takes those that the config names.
        out: Folder for everything; None for ``runs/transfer/TASK/INIT``.
        trials: Number of trials; the paper has 5 for VOC, LVIS and semantic segmentation.
        machines: Where they run; None for all GPUs of this machine, or its CPU.
        images_per_batch: Scales learning rate, warm-up, drops and length to it; None leaves them.
        settings: Changes of the config that the task needs, by key.
        overrides: ``KEY VALUE`` pairs for the config, applied after all else.
        overwrite: Delete the trials in the folder.
        draw: Draws the first trial's predictions for a few test images into ``predictions``; None draws none.

    Returns:
        The content of ``results.json``.

    Raises:
        UsageError: Invalid arguments, or a folder with trials of other settings.
        UserError: Data sets or weights are missing or do not fit, or a trial failed.
    """
    task = find_task(task) if isinstance(task, str) else task
    machines = machines or Machines(default_gpus())
    out = Path(out or Path("runs/transfer") / task.name / init).expanduser()
    if trials < 1:
        raise UsageError(f"--trials is {trials}; expected 1 or more")
    _check_overrides(overrides)
    of_task = [part for pair in (settings or {}).items() for part in pair]
    cfg = load_detector_config(task.config(init), of_task)
    sentence = scale_to_batch(cfg, images_per_batch, overrides)
    merge(cfg, overrides)
    check_batch(cfg, machines)
    check_datasets(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    start = find_weights(init, weights, cfg.MODEL.WEIGHTS)
    record: dict[str, Any] = {
        "task": task.name,
        "init": init,
        "config": task.config(init),
        "overrides": [*map(str, of_task), *overrides],
        "images_per_batch": images_per_batch,
        "drawn_above": DRAWN_ABOVE,
        "settings": _settings(cfg),
        "versions": {
            "moco_plugin": moco_plugin.__version__,
            "torch": torch.__version__,
            "detectron2": str(detectron2.__version__),
        },
        "weights": start.given,
        "weights_sha256": start.sha256,
    }
    first = not machines.machine_rank  # it alone writes into the folder, which all share
    with locked(out) if first else nullcontext():
        if overwrite and first:
            _remove_trials(out)
        earlier = [] if overwrite else _earlier(out, record)
        cfg.MODEL.WEIGHTS, content = start.for_detectron2(out, machines.machine_rank)
        record |= {"pretraining": check_weights(cfg, content), "requested_trials": trials, "trials": earlier}
        save = _write if first else lambda out, record: None
        if sentence:
            print(sentence, flush=True)
        fit_device(cfg.clone())  # only to log the changes, which each trial makes itself
        save(out, record)
        done = {trial["trial"] for trial in earlier}
        for index in range(1, trials + 1):
            folder = out / f"trial_{index}"
            if index in done:
                print(f"trial {index} of {trials}: finished earlier ({folder})", flush=True)
                continue
            cfg.SEED, cfg.OUTPUT_DIR = index, str(folder)
            command_line = f"moco-train-net --config-file {folder / 'config.yaml'} --resume {machines.arguments()}"
            print(f"trial {index} of {trials}: {command_line}", flush=True)
            if code := _train(cfg, machines):
                raise UserError(
                    f"trial {index} stopped with exit code {code}, its message is above; the same command resumes "
                    "it from its last checkpoint"
                )
            record["trials"] = sorted(
                [*record["trials"], _read_trial(folder, index, machines)], key=itemgetter("trial")
            )
            save(out, record)
        if draw and first:
            _draw(draw, out, record)
        return record


def _check_overrides(overrides: Sequence[str]) -> None:
    for key in overrides[::2]:
        if key.startswith("--"):
            raise UsageError(f"{key} comes after KEY VALUE pairs; put options first")
        if key in OWN:
            raise UsageError(f"{key} is set by the runner; give {OWN[key]} in its place")


def check_batch(cfg: CfgNode, machines: Machines) -> None:
    """Raise UsageError unless the machines exist and the batch can be divided evenly among them."""
    machines.check()
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, machines.processes
    if batch < 1:
        raise UsageError(f"SOLVER.IMS_PER_BATCH is {batch}; expected 1 or more images per batch")
    if batch % processes:
        raise UsageError(
            f"{batch} images per batch cannot be spread evenly over {processes} processes; pass --gpus or "
            "--images-per-batch so that one divides the other"
        )


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """Return a config as JSON values, without what differs between trials and machines."""
    settings: dict[str, Any] = parse_json(json.dumps(cfg), "the config")
    del settings["OUTPUT_DIR"], settings["SEED"], settings["MODEL"]["WEIGHTS"], settings["MODEL"]["DEVICE"]
    return settings


def _remove_trials(out: Path) -> None:
    for folder in (*out.glob("trial_*"), out / "predictions"):
        shutil.rmtree(folder, ignore_errors=True)
    (out / RESULTS).unlink(missing_ok=True)


def _earlier(out: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the finished trials in the folder.

    Raises:
        UsageError: They are of another experiment, or the folder contains something else.
    """
    path = out / RESULTS
    if not path.exists():
        if folders := sorted(out.glob("trial_*")):
            raise UsageError(f"{out} contains {folders[0].name} but no {RESULTS}; pass --overwrite or another --out")
        return []
    earlier = read_json(path)
    kinds = {"trials": list, "settings": dict}
    if not isinstance(earlier, dict) or not all(isinstance(earlier.get(key), kind) for key, kind in kinds.items()):
        raise UsageError(f"{path} is not of a transfer run and was kept; choose another --out")
    keys = ("task", "init", "weights_sha256")
    before, now = ({**part["settings"], **{key: part.get(key) for key in keys}} for part in (earlier, record))
    if changed := differences(before, now):
        raise UsageError(
            f"{out} contains trials of other settings ({changed[0]}); pass --overwrite to delete them, or another --out"
        )
    return [trial for trial in earlier["trials"] if isinstance(trial, dict)]


def _trial(cfg: CfgNode, machines: Machines) -> None:
    """Train one trial and exit with the tool's code.

    Its loader processes start by the platform's default, not by spawning as this process: spawned ones would import
    detectron2 without ``compat``'s shims, unless the main module imports ``moco_plugin.transfer``.
    """
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(command(lambda _: train_checked(cfg, Options(resume=True, brief=True), machines))())


def _end_with_parent() -> None:
    """End this process when its parent was killed, so that the same command can train in the folder again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(cfg: CfgNode, machines: Machines) -> int:
    """Run a trial in its own process, so that no state reaches the next; return its exit code.

    Raises:
        Stopped: By a signal, which ends the trial as well.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name}; the same command resumes the trial from its last checkpoint", number)

    process = CONTEXT.Process(target=_trial, args=(cfg, machines))
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in known if signal.getsignal(number) != signal.SIG_IGN}
    try:
        process.start()
        process.join()
    finally:
        if process.is_alive():  # a signal or Ctrl-C
            process.kill()
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    return process.exitcode or 0


def _read_trial(folder: Path, index: int, machines: Machines) -> dict[str, Any]:
    """Return the record of a trial; its metrics are those of the first test set, as ``group/metric``."""
    results = read_json(folder / RESULTS)
    first = next(iter(results.values()))
    metrics = {f"{group}/{key}": value for group, values in first.items() for key, value in values.items()}
    return {"trial": index, "seed": index, "folder": folder.name, "processes": machines.processes, "metrics": metrics}


def _write(out: Path, record: dict[str, Any]) -> None:
    """Write ``results.json`` with mean and sample standard deviation of each metric over the finished trials."""
    trials = [trial["metrics"] for trial in record["trials"]]
    names = [name for name in trials[0] if all(name in trial for trial in trials)] if trials else []
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for name in names:
        values = [trial[name] for trial in trials]  # None where nothing was found
        mean[name] = None if None in values else statistics.fmean(values)
        std[name] = None if None in values or len(values) < 2 else statistics.stdev(values)
    record |= {"mean": mean, "std": std}
    write_json(out / RESULTS, record)


def _draw(draw: Draw, out: Path, record: dict[str, Any]) -> None:
    """Draw the first trial's predictions, unless they are drawn."""
    if not record["trials"] or (out / "predictions").exists():
        return
    try:
        draw(out / record["trials"][0]["folder"], out / "predictions", DRAWN_ABOVE)
    except UserError as error:  # the numbers are saved, with or without pictures
        print(f"no predictions were drawn: {error}")
