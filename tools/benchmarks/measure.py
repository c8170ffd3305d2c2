"""Cost of a step and of a conversion, as ratios to a peer measured in the same run."""

from __future__ import annotations

import os
import pickle
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
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
from moco_plugin.methods.encoder import update_momentum


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name} is {value}; expected {least} or more")


def compare(contestants: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return seconds of each call, round by round; each round calls all once, in turn first."""
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
    """Return for each contestant the median milliseconds, and the median of its ratios to ``to`` by round."""
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
    """Time MoCo v2's whole step, the same two encoders without a contrast, and with lightly's loss and bank."""
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
    settings = {
        "backbone": backbone,
        "image_size": image_size,
        "batch_size": batch_size,
        "queue_size": queue_size,
        "rounds": rounds,
        "device": device,
    }
    return {"settings": settings, "threads": torch.get_num_threads(), "results": ratios(seconds, "no contrast")}


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
    """Count the bytes that each process sends a step when keys are shuffled: here, and by gathering all images.

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


def _write_official(path: Path, backbone: str) -> None:
    """Write random weights as the released code saves a MoCo v2 checkpoint: two encoders and the queue."""
    torch.manual_seed(0)
    weights = {f"module.encoder_q.{k}": v for k, v in create_backbone(backbone).state_dict().items()}
    weights |= {key.replace("encoder_q", "encoder_k"): value.clone() for key, value in weights.items()}
    weights |= {"module.queue": torch.randn(128, 65536), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    torch.save({"epoch": 200, "arch": backbone, "state_dict": weights}, path)


def _with_proof(source: Path, output: Path) -> None:
    from moco_plugin import conversion

    with redirect_stdout(None):
        conversion.convert(source, output)


def _renaming_alone(source: Path, output: Path) -> None:
    from moco_plugin.checkpoints.renaming import detectron2_name

    prefix = "module.encoder_q."
    weights = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    model = {
        detectron2_name(name.removeprefix(prefix)): value.numpy()
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    with open(output, "wb") as file:
        pickle.dump({"model": model, "__author__": "MOCO", "matching_heuristics": True}, file)


CONVERTERS = {"with proof": _with_proof, "renaming alone": _renaming_alone}


def _memory(name: str) -> int:
    """Return bytes that the kernel counts for this process: VmRSS held now, VmHWM held at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"no {name} in /proc/self/status; expected Linux, where the memory of a process is counted")


def _conversion(converter: str, source: Path, output: Path, out: Any) -> None:
    """Run one conversion and sends what it took once everything was imported, or why it failed."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")  # not the user's to mend
    import moco_plugin.conversion
    import moco_plugin.transfer.to_detectron2  # noqa: F401

    torch.set_num_threads(1)
    before, start = _memory("VmRSS"), time.process_time()
    try:
        CONVERTERS[converter](source, output)
        out.put((time.process_time() - start, _memory("VmHWM") - before))
    except UserError as error:
        out.put(error)


def convert(file: Path | None = None, backbone: str = "resnet50", rounds: int = 3) -> dict[str, Any]:
    """Count CPU seconds and peak memory of a conversion to detectron2 with its proof, and of renaming alone.

    Each conversion runs in a process of its own, on one thread; what the imports took is left out. CPU seconds do
    not depend on what else the machine does, seconds of a clock would.

    Args:
        file: An official MoCo v1/v2 checkpoint; by default one of random weights is written.
        backbone: The ResNet of that.
        rounds: Conversions of each kind; the medians are returned.
    """
    _at_least(1, rounds=rounds)
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no such file; expected an official MoCo v1/v2 checkpoint")
    context = torch.multiprocessing.get_context("spawn")
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in CONVERTERS}
    with tempfile.TemporaryDirectory() as folder:
        source, output = file or Path(folder) / "official.pth.tar", Path(folder) / "converted.pkl"
        if file is None:
            _write_official(source, backbone)
        size = source.stat().st_size
        for _ in tqdm(range(rounds), desc="rounds", file=sys.stderr):
            for name, rows in measured.items():
                out = context.SimpleQueue()
                process = context.Process(target=_conversion, args=(name, source, output, out))
                process.start()
                process.join()
                if process.exitcode:
                    raise UserError(f"{source} could not be converted ({name}); the reason is printed above")
                row = out.get()
                if isinstance(row, UserError):
                    raise row
                rows.append(row)
                output.unlink()
    results = {}
    for name, rows in measured.items():
        seconds, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        results[name] = {
            "cpu_seconds": round(seconds, 2),
            "peak_megabytes": round(memory / 1e6, 1),
            "peak_to_file": round(memory / size, 2),
        }
    settings = {"file": str(file or f"random {backbone}"), "file_megabytes": round(size / 1e6, 1), "rounds": rounds}
    return {"settings": settings, "results": results}
