"""The folder of a training run: its lock, its files and the checkpoint that a resumed run continues from."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moco_plugin.errors import UsageError, UserError

LOCK = ".lock"

# Keys that a resumed run may change: they set where, how long and how visibly it runs, never what it computes.
MAY_CHANGE = (
    "out knn save_every timeout compile tf32 data.workers trainer.benchmark trainer.deterministic trainer.accelerator "
    "trainer.devices trainer.num_nodes "
    "trainer.strategy trainer.max_epochs trainer.max_steps trainer.max_time trainer.log_every_n_steps "
    "trainer.check_val_every_n_epoch trainer.enable_progress_bar trainer.enable_model_summary "
    "trainer.num_sanity_val_steps trainer.profiler trainer.detect_anomaly"
).split()

# Keys from which a run without a config derives others (see pretraining/prepare.py).
CAUSES = ("method was", "backbone was", "schedule.steps was", "data.root was")


@dataclass(frozen=True)
class Identity:
    """The identity of a run: every setting that changes the result, and the image sets.

    Args:
        settings: Nested settings; the keys in MAY_CHANGE are ignored.
        images: For each key that names an image set: ``{"count": N, "digest": SHA-256 of names and labels}``.
    """

    settings: Mapping[str, Any]
    images: Mapping[str, Mapping[str, Any]]

    def state(self) -> dict[str, Any]:
        """Return the plain values that a checkpoint keeps."""
        return {"settings": flatten(self.settings), "images": {k: dict(v) for k, v in self.images.items()}}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between nested settings, as in ``seed was 0, now 1``, sorted by key."""
    one, other = flatten(before), flatten(now)
    return [
        f"{key} was {one.get(key, 'not set')}, now {other.get(key, 'not set')}"
        for key in sorted(one.keys() | other.keys())
        if (key in one, one.get(key)) != (key in other, other.get(key))
    ]


@dataclass(frozen=True)
class SavedRun:
    """The run that wrote ``last.ckpt``.

    Attributes:
        path: The checkpoint.
        identity: The value of ``Identity.state``.
        step: Optimizer steps done.
        epoch: Epochs done.
        batches: Batches done of the epoch that was interrupted.
    """

    path: Path
    identity: dict[str, Any]
    step: int = 0
    epoch: int = 0
    batches: int = 0

    @classmethod
    def read(cls, path: Path) -> SavedRun | None:
        """Read a checkpoint; None if the file does not exist.

        Raises:
            UserError: The file is not a checkpoint of a run.
        """
        if not path.exists():
            return None
        from moco_plugin.weight_files.load import load_file  # imports torch

        state = load_file(path).content
        try:
            loops = state["loops"]["fit_loop"]
            epoch, batch = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]["current"]
            within = epoch["started"] > epoch["processed"]
            done = int(state["global_step"]), int(epoch["processed"]), int(batch["processed"]) if within else 0
            identity = next(v for v in state["callbacks"].values() if "settings" in v and "images" in v)
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise UserError(
                f"{path} is not a checkpoint that a run can resume from; choose another output folder, "
                "or --overwrite to start again"
            ) from error
        return cls(path, identity, *done)

    def check_same(self, now: Identity) -> None:
        """Raise UsageError if a setting or an image set differs from those of the run that resumes."""
        then, state = self.identity, now.state()
        free = tuple(f"{name}." for name in MAY_CHANGE)
        settings = ({k: v for k, v in p["settings"].items() if not f"{k}.".startswith(free)} for p in (then, state))
        # keys that others are derived from come first: the user typed them
        if changed := sorted(differences(*settings), key=lambda text: not text.startswith(CAUSES)):
            more = f", and {len(changed) - 1} more" if changed[1:] else ""
            raise UsageError(
                f"{self.path.parent} contains a run with other settings ({changed[0]}{more}) and was kept; "
                "choose another output, or --overwrite to start again"
            )
        sets = then["images"], state["images"]
        for key in sorted(sets[0].keys() | sets[1].keys()):
            if sets[0].get(key) == sets[1].get(key):
                continue
            before, after = (s.get(key, {}).get("count", 0) for s in sets)
            what = (
                f"{before} images when {self.path} was saved and {after} now"
                if before != after
                else f"other names or labels than when {self.path} was saved ({after} images)"
            )
            raise UsageError(
                f"the images of {key} changed: {what}; restore them, choose another output, or --overwrite to start again"
            )


def check_unlocked(folder: Path) -> None:
    """Raise UsageError if a folder is locked by another process; only the first process of a run checks."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    if (folder / LOCK).is_file() and all(os.environ.get(name, "0") == "0" for name in ranks):
        with locked(folder):
            pass


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a run's folder and lock it; the operating system releases the lock when the process ends.

    Raises:
        UsageError: The folder is locked by another process.
        UserError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        owner = ""
        with suppress(OSError):  # Windows forbids to read what another process has locked
            owner = (folder / LOCK).read_text(errors="replace").strip()
        raise UsageError(
            f"{folder} is in use by {owner or 'another process'}; wait until it ends, or choose another output folder"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another output folder") from error
    try:
        with suppress(OSError):
            (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def remove_files(folder: Path, names: tuple[str, ...]) -> None:
    """Remove a run's own files and folders, and nothing else; the last name last."""
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_stale(*paths: Path) -> None:
    """Remove the temporary files that killed processes left next to these paths (see ``files.atomic_path``)."""
    for path in paths:
        for temporary in path.parent.glob(f".{path.stem}.*{path.suffix}"):
            temporary.unlink(missing_ok=True)
