"""The parts of a run, and which of them limits it."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

import cv2
import torch
from tqdm import tqdm

from moco_plugin.benchmarks.timing import at_least
from moco_plugin.data.datasets import TrainImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import loader_processes
from moco_plugin.errors import UsageError
from moco_plugin.pretraining.module import PretrainModule
from moco_plugin.pretraining.prepare import open_images, prepare_run
from moco_plugin.pretraining.run import build_views, measure_missing_statistics
from moco_plugin.runs.optimizers import build_optimizer


def measure(config: str | None = None, overrides: Sequence[str] = (), batches: int = 4) -> dict[str, Any]:
    """Find which part of a run is the slowest, and what to change.

    Reading, decoding, views and collation are timed on one core, transfer and step on the device.

    Args:
        config: A config file, or the name of a shipped one.
        overrides: As for tools/pretrain.py.
        batches: Of each part; medians are returned.
    """
    at_least(1, batches=batches)
    prepared = prepare_run(overrides, config)
    run = prepared.config
    images = prepared.images or open_images(run)
    measure_missing_statistics(run, images)
    size, workers = run.data.batch_size, loader_processes(run.data.workers)
    if len(images) < size:
        raise UsageError(f"data.batch_size is {size} and {run.data.root} contains {len(images)} images")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = build_views(run, images)
    dataset = TrainImages(images, views, run.seed, views.shrink if run.views.jpeg_scaling else None)
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    module = PretrainModule(run)
    module.to(device).train()
    parameters = [parameter for parameter in module.method.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(run.optimizer, parameters, 0.0)
    parts: dict[str, list[float]] = {
        name: [] for name in ("read", "decode", "views", "collate", "transfer and device views", "step")
    }

    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        parts[part].append((time.perf_counter() - start) / size)
        return result

    for batch in tqdm(range(batches + 1), desc="batches", file=sys.stderr):
        indices = [(batch * size + offset) % len(images) for offset in range(size)]
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        timed("read", lambda indices=indices: [_read(images, i) for i in indices])  # type: ignore[misc]
        arrays = timed("decode", lambda n=indices: [images.try_load_array(i, dataset.shrink)[0] for i in n])  # type: ignore[misc]
        whole = [array for array in arrays if array is not None]
        made = timed("views", lambda w=whole: [(*views(array, Random(i)), "") for i, array in enumerate(w)])  # type: ignore[misc]
        collated = timed("collate", lambda items=made: views.collate(items))  # type: ignore[misc]
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)

        def to_device(batch: Any = collated) -> list[torch.Tensor]:
            arrays, plans, names = batch
            moved = ([array.to(device) for array in arrays], plans, names)
            return cast(list[torch.Tensor], module.on_after_batch_transfer(moved, 0)[0])

        tensors = timed("transfer and device views", to_device)

        def step(tensors: list[torch.Tensor] = tensors) -> None:
            optimizer.zero_grad()
            module.method(*tensors)[0].backward()
            optimizer.step()

        timed("step", step)

    milliseconds = {name: statistics.median(values[1:]) * 1000 for name, values in parts.items()}  # the first warms up
    milliseconds["decode"] = max(0.0, milliseconds["decode"] - milliseconds["read"])  # it reads again, from memory
    results = {name: {"milliseconds_per_image": round(value, 3)} for name, value in milliseconds.items()}
    loader = sum(milliseconds[name] for name in ("read", "decode", "views", "collate"))
    trained = milliseconds["transfer and device views"] + milliseconds["step"]
    settings = {
        "root": run.data.root,
        "engine": run.views.engine,
        "batch_size": size,
        "workers": workers,
        "device": device.type,
        "loader_images_per_second_and_core": round(1000 / loader, 1),
        "device_images_per_second": round(1000 / trained, 1),
    }
    return {"settings": settings, "results": results, "advice": _advice(milliseconds, loader, trained, settings)}


def _read(images: ImageSet, number: int) -> bytes:
    content = images.source.read(number)
    return content.read_bytes() if isinstance(content, Path) else bytes(content)


def _advice(parts: dict[str, float], loader: float, trained: float, settings: dict[str, Any]) -> list[str]:
    """Return what limits the run, and which settings change it."""
    needed = loader / trained  # loader processes that keep up with the device
    workers, cpu = settings["workers"], settings["device"] == "cpu"
    kept = f"{needed:.1f} loader process{'es keep' if needed > 1 else ' keeps'} up with the device"
    if cpu or needed <= max(1, workers):
        sentences = [f"the step limits this run ({trained:.1f} ms per image against {loader:.1f} of a loader); {kept}"]
        if needed < 0.5 * workers and not cpu:
            sentences.append(f"data.workers={max(1, round(needed + 1))} is enough")
        faster = "" if cpu else "trainer.precision=bf16-mixed and compile=true, "
        sentences.append(f"change: {faster}a smaller data.image_size or backbone")
        return sentences
    sentences = [
        f"loading limits this run: {kept}, and data.workers is {workers}",
        f"change: data.workers={round(needed + 1)}",
    ]
    share = {name: parts[name] / loader for name in ("read", "decode", "views")}
    largest = max(share, key=lambda name: share[name])
    if largest == "read":
        sentences.append(f"reading takes {share['read']:.0%}: pack shards with tools/make_shards.py, on a local disk")
    if largest == "decode":
        sentences.append(
            f"decoding takes {share['decode']:.0%}: views.jpeg_scaling=true, or tools/make_shards.py --short-side 320"
        )
    if largest == "views" and settings["engine"] != "device":
        sentences.append(f"views take {share['views']:.0%}: views.engine=device moves the colours to the device")
    return sentences
