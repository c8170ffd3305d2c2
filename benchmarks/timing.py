"""Interleaved timings of contestants, as ratios to one of them."""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from moco_plugin.errors import UsageError


def at_least(least: int, **values: int) -> None:
    """Raise UsageError unless all values are ``least`` or more."""
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name} is {value}; expected {least} or more")


def check_device(device: str) -> None:
    """Raise UsageError if the device is "cuda" and this machine has none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda; this machine has no usable CUDA device, so give --device cpu")


def compare(
    contestants: dict[str, Callable[[], object]], rounds: int, device: str = "cpu"
) -> dict[str, list[tuple[float, float]]]:
    """Return CPU seconds and wall seconds of each call, round by round; a round calls all, rotating who goes first."""
    names = list(contestants)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in tqdm(range(-2, rounds), desc="rounds", file=sys.stderr):  # the first two warm up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.process_time(), time.perf_counter()
            contestants[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return seconds


def count_kernels(call: Callable[[], object]) -> int:
    """Return the number of kernels that a call launches on a CUDA device, including copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in recorded.events())


def ratios(
    seconds: dict[str, list[tuple[float, float]]], to: str, device: str = "cpu", parts: int = 1
) -> dict[str, dict[str, float]]:
    """Return for each contestant median milliseconds, and the median of its ratios to ``to`` by round.

    Args:
        seconds: What ``compare`` returns.
        to: The contestant whose ratio is 1.
        device: On "cpu" ratios are of CPU time, which does not depend on what else the machine does; else of wall time.
        parts: Divides the milliseconds, such as images per call.
    """
    clock = 0 if device == "cpu" else 1
    return {
        name: {
            "cpu_milliseconds": round(statistics.median(cpu for cpu, _ in times) * 1000 / parts, 3),
            "wall_milliseconds": round(statistics.median(wall for _, wall in times) * 1000 / parts, 3),
            "ratio": round(statistics.median(t[clock] / s[clock] for t, s in zip(times, seconds[to], strict=True)), 3),
        }
        for name, times in seconds.items()
    }
