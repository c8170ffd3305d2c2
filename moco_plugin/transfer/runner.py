"""Transfer experiments as in the papers: several trials from the same weights, their mean and spread."""

import multiprocessing
import shlex
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode

import moco_plugin
from moco_plugin.errors import Stopped, UsageError, UserError, command
from moco_plugin.files import read_json, write_json
from moco_plugin.runs.run_folder import differences, locked
from moco_plugin.transfer.annotations import check_annotations
from moco_plugin.transfer.class_count import check_class_count
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.examples import MIN_SCORE, draw_examples
from moco_plugin.transfer.initial_weights import check_weights, find_weights
from moco_plugin.transfer.launch import Machines, default_gpus
from moco_plugin.transfer.scaling import scale_to_batch
from moco_plugin.transfer.tasks import Task, find_task
from moco_plugin.transfer.trainer import RESULTS, load_detector_config, train

CONTEXT = multiprocessing.get_context("spawn")
OWN = ("OUTPUT_DIR", "SEED")  # config keys that the runner sets


def run_trials(
    task: Task | str,
    init: str = "moco",
    weights: str | None = None,
    out: str | Path | None = None,
    *,
    trials: int = 5,
    machines: Machines | None = None,
    images_per_batch: int | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and evaluate the trials that are not finished yet.

    Everything that can be wrong is checked before the first trial. Trial n has the seed n and the folder
    ``trial_n``; an interrupted trial resumes from its last checkpoint. ``results.json`` is written
    after each trial. Several machines must share the folder, as detectron2 requires.

    Args:
        task: The experiment, or its name.
        init: "random", "supervised" or "moco": the config.
        weights: A checkpoint that ``convert_to_d2`` reads, a released one's name, or a detectron2 ``.pkl``; None
            takes those that the config names.
        out: Folder for everything; None for ``runs/transfer/TASK/INIT``.
        trials: Number of trials; the paper has 5 for VOC, LVIS and semantic segmentation.
        machines: Where they run; None for all GPUs of this machine, or its CPU.
        images_per_batch: Scales learning rate, warm-up, drops and length to it; None leaves them.
        overrides: ``KEY VALUE`` pairs for the config, applied after scaling.
        overwrite: Throw away the trials that the folder holds.

    Returns:
        What ``results.json`` holds.

    Raises:
        UsageError: Arguments that cannot be right, or a folder with trials of other settings.
        UserError: Data sets or weights that are missing or do not fit, or a trial that failed.
    """
    task = find_task(task) if isinstance(task, str) else task
    machines = machines or Machines(default_gpus())
    out = Path(out or Path("runs/transfer") / task.name / init).expanduser()
    if trials < 1:
        raise UsageError(f"--trials is {trials}; expected 1 or more")
    _check_overrides(overrides)
    config = task.config(init)
    scaled, sentence = scale_to_batch(load_detector_config(config, []), images_per_batch, overrides)
    cfg = load_detector_config(config, [*scaled, *overrides])
    _check_batch(cfg, machines)
    datasets = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    for name in datasets:
        require_dataset(name)
        check_annotations(name)
    check_class_count(cfg, datasets)
    found = find_weights(init, weights, cfg.MODEL.WEIGHTS)
    record = _record(task, init, config, cfg, overrides, images_per_batch)
    record |= {"weights": found.given, "weights_sha256": found.sha256}
    with nullcontext() if machines.machine_rank else locked(out):
        earlier = _earlier(out, record, overwrite, machines)
        cfg.MODEL.WEIGHTS = found.detectron2_file(out, machines.machine_rank)
        record["pretraining"] = check_weights(cfg)
        record |= {"requested_trials": trials, "trials": earlier}
        if sentence:
            print(sentence, flush=True)

        done = {trial["trial"] for trial in earlier}
        for number in range(1, trials + 1):
            if number in done:
                print(f"trial {number} of {trials}: finished earlier ({out / f'trial_{number}'})", flush=True)
                continue
            if not machines.machine_rank:
                _write(out, record)
            folder = out / f"trial_{number}"
            settings = ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, "SEED", str(number), "OUTPUT_DIR", str(folder)]
            changes = [*scaled, *overrides, *settings]
            typed = shlex.join(["--config-file", config, "--resume", *machines.arguments(), *changes])
            print(f"trial {number} of {trials}: moco-train-net {typed}", flush=True)
            if code := _train(config, changes, machines):
                raise UserError(
                    f"trial {number} stopped with exit code {code}, its message is above; the same command resumes "
                    "it from its last checkpoint"
                )
            if not machines.machine_rank:
                record["trials"].append(_read_trial(folder, number, machines))
                record["trials"].sort(key=lambda trial: int(trial["trial"]))
                _write(out, record)
        if not machines.machine_rank:
            _write(out, record)  # even if no trial was left: another number of them may be asked for
            _draw_examples(out, record)
        return record


def _check_overrides(overrides: Sequence[str]) -> None:
    for key in overrides[::2]:
        if key.startswith("--"):
            raise UsageError(f"{key} comes after KEY VALUE pairs; put options first")
        if key in (*OWN, "MODEL.WEIGHTS"):
            option = {"OUTPUT_DIR": "--out", "MODEL.WEIGHTS": "--weights"}.get(key, "--trials")
            raise UsageError(f"{key} is set by the runner; give {option} in its place")


def _check_batch(cfg: CfgNode, machines: Machines) -> None:
    """Raise UsageError unless the machines exist and the batch can be spread over them evenly."""
    machines.check()
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, machines.processes
    if batch < 1:
        raise UsageError(f"SOLVER.IMS_PER_BATCH is {batch}; expected 1 or more images per batch")
    if batch % processes:
        raise UsageError(
            f"{batch} images per batch cannot be spread evenly over {processes} processes; pass --gpus or "
            "--images-per-batch so that one divides the other"
        )


def _record(
    task: Task, init: str, config: str, cfg: CfgNode, overrides: Sequence[str], images_per_batch: int | None
) -> dict[str, Any]:
    """Return the content of ``results.json`` before the first trial."""
    settings = _plain(cfg)
    for key in OWN:
        del settings[key]
    del settings["MODEL"]["WEIGHTS"], settings["MODEL"]["DEVICE"]
    return {
        "task": task.name,
        "init": init,
        "config": config,
        "overrides": list(overrides),
        "images_per_batch": images_per_batch,
        "drawn_above": MIN_SCORE,
        "settings": settings,
        "versions": {
            "moco_plugin": moco_plugin.__version__,
            "torch": torch.__version__,
            "detectron2": str(detectron2.__version__),
        },
    }


def _plain(value: Any) -> Any:
    """Turn a config into JSON values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _earlier(out: Path, record: dict[str, Any], overwrite: bool, machines: Machines) -> list[dict[str, Any]]:
    """Return the finished trials that the folder holds, and check that they are of the same experiment.

    Raises:
        UsageError: They are not, or the folder holds something else.
    """
    path = out / RESULTS
    folders = sorted(out.glob("trial_*"))
    if overwrite:
        if not machines.machine_rank:  # the folder is shared
            for folder in (*folders, out / "predictions"):
                shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)
        return []
    if not path.exists():
        if folders:
            raise UsageError(f"{out} holds {folders[0].name} but no {RESULTS}; pass --overwrite or another --out")
        return []
    earlier = read_json(path)
    kinds = {"trials": list, "settings": dict}
    if not isinstance(earlier, dict) or not all(isinstance(earlier.get(key), kind) for key, kind in kinds.items()):
        raise UsageError(f"{path} is not of a transfer run and was kept; choose another --out")
    keys = ("task", "init", "weights_sha256")
    before, now = ({**part["settings"], **{key: part.get(key) for key in keys}} for part in (earlier, record))
    if changed := differences(before, now):
        raise UsageError(
            f"{out} holds trials of other settings ({changed[0]}); pass --overwrite to throw them away, or another --out"
        )
    return [trial for trial in earlier["trials"] if isinstance(trial, dict)]


def _trial(config: str, overrides: Sequence[str], machines: Machines) -> None:
    """Train one trial and exit with the tool's code.

    Its loader processes start as the platform does it, not by spawning as this process: spawned ones would import
    detectron2 without what ``moco_plugin.transfer`` prepares, unless the main module imports it, as notebooks do not.
    """
    multiprocessing.set_start_method(None, force=True)
    sys.exit(command(lambda _: train(config, overrides, resume=True, machines=machines, brief=True))())


def _train(config: str, overrides: Sequence[str], machines: Machines) -> int:
    """Run a trial in its own process, so that no state reaches the next; return its exit code.

    Raises:
        Stopped: By a signal, which ends the trial as well.
    """
    received: list[int] = []
    process = CONTEXT.Process(target=_trial, args=(config, overrides, machines))

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process.pid is not None:
            process.terminate()

    names = [name for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        process.start()
        if received:  # before there was a process
            process.terminate()
        try:
            process.join()
        except BaseException:  # Ctrl-C
            process.kill()
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Stopped(
            f"stopped by {signal.Signals(received[0]).name}; the same command resumes the trial from its last checkpoint",
            received[0],
        )
    return process.exitcode or 0


def _read_trial(folder: Path, number: int, machines: Machines) -> dict[str, Any]:
    """Return the record of a trial; its metrics are those of the first test set, as ``group/metric``."""
    results = read_json(folder / RESULTS)
    first = next(iter(results.values()))
    metrics = {f"{group}/{key}": value for group, values in first.items() for key, value in values.items()}
    return {"trial": number, "seed": number, "folder": folder.name, "processes": machines.processes, "metrics": metrics}


def _write(out: Path, record: dict[str, Any]) -> None:
    """Write ``results.json`` with mean and sample standard deviation of each metric over the finished trials."""
    trials = [trial["metrics"] for trial in record["trials"]]
    names = [name for name in trials[0] if all(name in trial for trial in trials)] if trials else []
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for name in names:
        values = [trial[name] for trial in trials]
        known = None not in values  # detectron2 has no number where nothing was found
        mean[name] = statistics.fmean(values) if known else None
        std[name] = statistics.stdev(values) if known and len(values) > 1 else None
    record |= {"mean": mean, "std": std}
    write_json(out / RESULTS, record)


def _draw_examples(out: Path, record: dict[str, Any]) -> None:
    """Draw the first trial's predictions for a few test images, unless they are drawn."""
    if not record["trials"] or (out / "predictions").exists():
        return
    try:
        draw_examples(out / record["trials"][0]["folder"], out / "predictions")
    except UserError as error:  # the numbers are saved, with or without pictures
        print(f"no predictions were drawn: {error}")
