"""Broken and hostile variants of checkpoints, read in a process of limited memory and time."""

import functools
import json
import os
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.weight_files.load import load_file

SECONDS = 10  # for one file
MEMORY = 1 << 30  # bytes of address space beyond those at the start


class TimeOut(BaseException):
    """Not an Exception, so that no reader can take it for a broken file."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeOut after so many seconds of this process's own time, or ten times as many of the clock's."""

    def stop(signum: int, frame: Any) -> None:
        raise TimeOut

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory() -> None:
    if os.path.exists("/proc/self/statm"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def outcome(path: Path) -> str:
    """Read a file: "read", the error's sentence after "error: ", or what must not happen after "BAD: "."""
    try:
        with time_limit(SECONDS):
            checkpoint = read_checkpoint(path)
            assert all(not p.is_meta for p in checkpoint.backbone.state_dict().values())
            return "read"
    except UserError as error:
        sentence = str(error)
        bad = "\n" in sentence or len(sentence) > 1500 or str(path) not in sentence
        return f"{'BAD' if bad else 'error'}: {sentence}"
    except TimeOut:
        return f"BAD: more than {SECONDS} seconds"
    except BaseException:  # whatever else: a traceback that a user would see
        return f"BAD: {traceback.format_exc()[-1500:]}"


def mutate_bytes(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Flip bits, cuts, overwrites, or puts in a piece of another file; where headers and pickles lie above all."""
    mutated = bytearray(data)
    near_an_end = dice.random() < 0.7
    reach = min(len(data), 6000) if near_an_end else len(data)

    def offset() -> int:
        distance = dice.randrange(reach)
        return len(data) - 1 - distance if near_an_end and dice.random() < 0.4 else distance

    kind = dice.choice(("flip", "flip", "flips", "cut", "overwrite", "splice", "repeat", "number"))
    if kind.startswith("flip"):
        for _ in range(1 if kind == "flip" else dice.randrange(2, 30)):
            mutated[offset()] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del mutated[offset() :]
    elif kind == "overwrite":
        start = offset()
        end = min(len(data), start + dice.randrange(1, 200))
        mutated[start:end] = bytes([dice.choice((0, 255, dice.randrange(256)))]) * (end - start)
    elif kind == "number":  # a length or a count becomes huge
        start = offset()
        mutated[start : start + 8] = dice.choice((2**31 - 1, 2**40, 2**62, 2**63 + 5)).to_bytes(8, "little")
    elif kind == "splice":
        other, start = dice.choice(others), offset()
        begin = dice.randrange(len(other))
        mutated[start : start + dice.randrange(1, 500)] = other[begin : begin + dice.randrange(1, 500)]
    else:
        start = offset()
        mutated[start:start] = mutated[start : start + dice.randrange(1, 300)]
    return bytes(mutated)


def mutate_content(content: Any, dice: random.Random) -> Any:
    """Change keys, shapes, types and numbers of what a file holds."""
    spots = [(part, key) for part in _dicts(content) for key in part if isinstance(part[key], torch.Tensor)]
    for part, key in dice.sample(spots, min(len(spots), dice.choice((1, 1, 3, 20)))):
        value = part.pop(key)
        kind = dice.randrange(4 + len(TENSORS))
        if kind == 0:  # it stays away
            continue
        if kind == 1:
            key = dice.choice((7, None, (1, 2), b"bytes", "", ".", "a" * 600, "layer1..conv1.weight"))
        elif kind == 2:
            key = str(key).replace("0", str(dice.choice((1, 99, 10**6, "x"))))
        elif kind == 3:
            value = dice.choice((None, 3, "text", [1], {}, {"a": {"b": 1}}, float("nan"), 10**5000, part))
        else:
            value = TENSORS[kind - 4](value, dice)
        part[key] = value
    if isinstance(content, dict) and dice.random() < 0.3:
        content[dice.choice(("epoch", "hyper_parameters", "meta", "arch", "moco_plugin", "lightly_train", "args"))] = (
            dice.choice((None, -5, 10**30, "x", [], {"config": {}}, {"config": None}, {"models": {"model": 1}}))
        )
    return content


# Tensors of another shape, type or kind, or with other numbers.
TENSORS: tuple[Callable[[torch.Tensor, random.Random], torch.Tensor], ...] = (
    lambda value, dice: value[None],
    lambda value, dice: torch.zeros(0),
    lambda value, dice: torch.zeros(1).expand(1000, 1000),
    lambda value, dice: value.to(dice.choice((torch.int8, torch.bool, torch.complex64, torch.float64, torch.bfloat16))),
    lambda value, dice: torch.full_like(value.float(), float(dice.choice(("nan", "inf", "-inf")))),
    lambda value, dice: torch.eye(3).to_sparse(),
    lambda value, dice: value.transpose(0, -1) if value.ndim > 1 else value + 1,
    lambda value, dice: torch.zeros([2 * n for n in value.shape]),
    lambda value, dice: torch.empty(value.shape, device="meta"),
    lambda value, dice: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
)


def _dicts(content: Any) -> list[dict[Any, Any]]:
    found: list[dict[Any, Any]] = []
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict) and len(found) < 50:
            found.append(part)
            waiting += list(part.values())
    return found


def variants(
    path: Path, others: list[bytes], count: int, dice: random.Random
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield names of variants, each with what writes it over the file."""
    target, config = path, path / "config.json"
    if path.is_dir():
        target, about = path / "model.safetensors", config.read_bytes()
    data = target.read_bytes()
    for index in range(count):
        if index % 3 == 0 and data[:2] == b"PK":
            content, legacy = mutate_content(load_file(path).content, dice), dice.random() < 0.5
            yield f"{path.name} {index} content", functools.partial(_save, content, target, legacy)
        elif index % 3 == 0 and path.is_dir():
            changed = mutate_bytes(about, [about], dice)
            yield f"{path.name} {index} config", functools.partial(_write, changed, config)
            _write(about, config)
        else:
            changed = mutate_bytes(data, others, dice)
            yield f"{path.name} {index} bytes", functools.partial(_write, changed, target)
        _write(data, target)


def _write(data: bytes, path: Path) -> None:
    path.unlink(missing_ok=True)  # tensors may still look at the old file
    path.write_bytes(data)


def _save(content: Any, path: Path, legacy: bool) -> None:
    path.unlink(missing_ok=True)
    try:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    except Exception:  # what torch cannot save is no file
        path.write_bytes(b"")


def fuzz(folder: str, count: int, seed: int, result: str) -> None:
    """The body of the process: reads ``count`` variants of the samples in a folder; writes what came out as JSON."""
    torch.set_num_threads(1)
    samples = sorted(Path(folder).iterdir())
    files = [path / "model.safetensors" if path.is_dir() else path for path in samples]
    others = [path.read_bytes() for path in files]
    read_checkpoint(samples[0])
    limit_memory()
    before = peak_memory()
    outcomes = {}
    for index, path in enumerate(samples):
        dice = random.Random(seed * 1000 + index)
        for name, write in variants(path, others, -(-count // len(samples)), dice):
            write()
            outcomes[name] = outcome(path)
    files = sorted(path.name for path in Path(folder).iterdir())
    report = {"outcomes": outcomes, "memory": peak_memory() - before, "files": files}
    Path(result).write_text(json.dumps(report))


def read_all(folder: str, result: str) -> None:
    """The body of another: reads every file of a folder as it is."""
    paths = sorted(Path(folder).iterdir())
    read_checkpoint(paths[0])
    limit_memory()
    before = peak_memory()
    report = {"outcomes": {path.name: outcome(path) for path in paths}, "memory": peak_memory() - before}
    Path(result).write_text(json.dumps(report))
