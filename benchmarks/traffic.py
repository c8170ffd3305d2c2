"""Bytes that processes send to shuffle keys."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from moco_plugin.benchmarks.timing import at_least
from moco_plugin.errors import UserError
from moco_plugin.methods.distributed import all_gather, exchange


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise UserError(
        "no loopback device in /proc/net/dev; expected Linux, where the bytes between processes are counted"
    )


def _exchange_rank(rank: int, processes: int, port: int, shape: list[int], rounds: int, way: str, out: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    images, sizes = torch.randn(shape), [shape[0]] * processes
    for turn in range(-1, rounds):
        if turn == 0:
            dist.barrier()
            before = _loopback_bytes()
            dist.barrier()
        order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(turn + 1))
        if way == "exchange":
            exchange(images, order, sizes)
        else:
            all_gather(images, sizes)[order[rank * shape[0] : (rank + 1) * shape[0]]]
    dist.barrier()
    if rank == 0:
        out.put((_loopback_bytes() - before) / rounds / processes)
    dist.destroy_process_group()


def measure(
    processes: Sequence[int] = (2, 4, 8), batch_size: int = 8, image_size: int = 64, rounds: int = 10
) -> dict[str, Any]:
    """Count the bytes that a process sends to shuffle keys, compared with gathering all images.

    The bytes are the kernel's count on the loopback device, over gloo.

    Args:
        processes: Numbers of processes.
        batch_size: Images of each process.
        image_size: Pixels.
        rounds: Exchanges.
    """
    at_least(1, batch_size=batch_size, image_size=image_size, rounds=rounds)
    at_least(2, processes=min(processes))
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
