"""What a step costs, as ratios to a peer measured in the same run."""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightly.loss import NTXentLoss
from tqdm import tqdm

from moco_plugin.backbones import check_features, create_backbone
from moco_plugin.errors import UsageError, UserError
from moco_plugin.methods import MoCo
from moco_plugin.methods.batch_norm import set_groups
from moco_plugin.methods.distributed import all_gather, exchange, shared_permutation
from moco_plugin.methods.momentum import update_momentum


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name} is {value}; expected {least} or more")


def compare(contestants: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Returns seconds of each call, round by round; each round calls all once, in turn first."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(-2, rounds), desc="rounds", file=sys.stderr):  # the first two warm up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            contestants[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Returns for each contestant the median milliseconds, and the median of its ratios to ``to`` by round."""
    return {
        name: {
            "milliseconds": round(statistics.median(times) * 1000, 2),
            "ratio": round(statistics.median(t / s for t, s in zip(times, seconds[to], strict=True)), 3),
        }
        for name, times in seconds.items()
    }


def step(
    backbone: str = "resnet18",
    image_size: int = 64,
    batch_size: int = 64,
    queue_size: int = 65536,
    rounds: int = 30,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times MoCo v2's whole step, the same two encoders without a contrast, and with lightly's loss and bank."""
    _at_least(1, batch_size=batch_size, image_size=image_size, rounds=rounds)
    _at_least(batch_size, queue_size=queue_size)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda; this machine has no usable CUDA device, so give --device cpu")

    def contestant(contrast: str) -> Callable[[], None]:
        torch.manual_seed(0)
        network = create_backbone(backbone, image_size=image_size)
        dim = check_features(network, backbone, image_size)
        model = MoCo(network, dim, queue_size=queue_size if contrast == "moco" else batch_size).to(device)
        optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
        lightly = NTXentLoss(temperature=0.2, memory_bank_size=(queue_size, 128)).to(device)

        def loss() -> Any:
            if contrast == "moco":
                return model(*views)[0]
            set_groups(model, model.groups(1))
            q = model.encoder_q(views[0])
            update_momentum(model.encoder_q, model.encoder_k, 0.999)
            with torch.no_grad():
                order = shared_permutation(batch_size, views.device)
                k = model.encoder_k(views[1][order])[order.argsort()]
            return lightly(q, k) if contrast == "lightly" else -(q * k).sum(dim=1).mean()

        def run() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return run

    views = torch.randn(2, batch_size, 3, image_size, image_size, device=device)
    seconds = compare({name: contestant(name) for name in ("no contrast", "moco", "lightly")}, rounds, device)
    settings = {"backbone": backbone, "image_size": image_size, "batch_size": batch_size,
                "queue_size": queue_size, "rounds": rounds, "device": device}  # fmt: skip
    return {
        "settings": settings,
        "threads": torch.get_num_threads(),
        "results": ratios(seconds, "no contrast"),
    }


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise UserError(
        "no loopback device in /proc/net/dev; expected Linux, where the bytes between processes are counted"
    )


def _exchange_rank(
    rank: int, processes: int, port: int, shape: list[int], rounds: int, way: str, out: Any
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    images, sizes = torch.randn(shape), [shape[0]] * processes
    for turn in range(-1, rounds):
        if turn == 0:
            dist.barrier()
            before = _loopback_bytes()
            dist.barrier()
        order = shared_permutation(sum(sizes), images.device)
        if way == "exchange":
            exchange(images, order, sizes)
        else:
            all_gather(images, sizes)[order[rank * shape[0] : (rank + 1) * shape[0]]]
    dist.barrier()
    if rank == 0:
        out.put((_loopback_bytes() - before) / rounds / processes)
    dist.destroy_process_group()


def traffic(
    processes: tuple[int, ...] = (2, 4, 8), batch_size: int = 8, image_size: int = 64, rounds: int = 10
) -> dict[str, Any]:
    """Counts the bytes that each process sends a step when keys are shuffled: here, and by gathering all images.

    ``batch_size`` is each process's own. The bytes are the kernel's count on the loopback device, over gloo.
    """
    _at_least(1, batch_size=batch_size, image_size=image_size, rounds=rounds)
    _at_least(2, processes=min(processes))
    shape = [batch_size, 3, image_size, image_size]
    batch_bytes = 4 * batch_size * 3 * image_size**2
    context = torch.multiprocessing.get_context("spawn")
    results: dict[str, dict[str, float]] = {}
    for count in tqdm(processes, desc="processes", file=sys.stderr):
        results[str(count)] = {"batch_bytes": batch_bytes}
        for way in ("exchange", "gather"):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            out = context.SimpleQueue()
            torch.multiprocessing.spawn(_exchange_rank, (count, port, shape, rounds, way, out), nprocs=count)
            results[str(count)][way] = round(out.get() / batch_bytes, 3)
    settings = {"batch_size": batch_size, "image_size": image_size, "rounds": rounds}
    return {"settings": settings, "results": results}
