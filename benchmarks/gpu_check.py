"""Checks of a GPU: results compared with the CPU, speed, and complete runs; on the CPU as a rehearsal at toy size."""

import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from moco_plugin.backbones import create_backbone
from moco_plugin.benchmarks import contrast, step, views
from moco_plugin.benchmarks.timing import check_device
from moco_plugin.data.views import VIEWS, Views
from moco_plugin.errors import UserError
from moco_plugin.methods import MoCo, MoCoV3
from moco_plugin.methods.batch_norm import SplitBatchNorm, kernels
from moco_plugin.methods.contrast import queue_contrast
from moco_plugin.runs.config import OptimizerConfig
from moco_plugin.runs.optimizers import build_optimizer

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 1e-2}
RUN_SECONDS = 300  # time limit of one run of a tool


def measure(cpu: bool = False) -> dict[str, Any]:
    """Check a GPU: results compared with the CPU, speed, and complete runs.

    Every check is run, also after failures.

    Args:
        cpu: Rehearse on the CPU, at toy size.
    """
    device = "cpu" if cpu else "cuda"
    check_device(device)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, check in _checks(device, Path(folder)):
            print(name, flush=True)
            start = time.perf_counter()
            try:
                row = {"passed": True, **(check() or {})}
            except Exception as error:  # later checks still run
                row = {"passed": False, "error": f"{type(error).__name__}: {error}"}
            results[name] = {**row, "seconds": round(time.perf_counter() - start, 1)}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    where = {"device": card, "torch": torch.__version__, "commit": commit.stdout.strip()}
    failed = [name for name, row in results.items() if not row["passed"]]
    return {"settings": where, "results": results, "failed": failed, "advice": _table(where, results)}


def _checks(device: str, folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any] | None]]]:
    yield "batch norm", lambda: _batch_norm(device)
    for temperature in (0.07, 0.01):
        yield f"contrast, T {temperature}", lambda t=temperature: _contrast(device, t)  # type: ignore[misc]
    yield "views", lambda: _views(device)
    for method in (MoCo, MoCoV3):
        yield f"{method.title} step, no waiting", lambda m=method: _step(device, m)  # type: ignore[misc]
    big = {"backbone": "resnet50", "image_size": 224, "batch_size": 256, "precision": "bfloat16"}
    toy = {"backbone": "resnet18", "image_size": 32, "batch_size": 8, "queue_size": 64, "rounds": 1}
    steps: list[dict[str, Any]] = (
        [{}, {"compile": True}, {"precision": "float16"}] if device == "cuda" else [{"precision": "float16"}]
    )
    for more in steps:
        sizes = {**(big if device == "cuda" else toy), "device": device, **more}
        name = "".join(f", {key} {value}" for key, value in more.items())
        yield f"step{name}", lambda s=sizes: _step_speed(**s)  # type: ignore[misc]
    yield "contrast", lambda: _contrast_speed(device)
    sizes = {} if device == "cuda" else {"image_size": 32, "images": 2, "rounds": 1}
    yield "views, speed", lambda: views.measure(**sizes, device=device)["results"]
    yield from _runs(device, folder)


def _batch_norm(device: str) -> dict[str, Any]:
    """Compare outputs, gradients and running statistics with those of the CPU in float64."""
    largest: dict[str, float] = {}
    for dtype, close in CLOSE.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            for groups in (1, 4, 8):
                torch.manual_seed(0)
                x, towards = (torch.randn(36, 72, 7, 5) + 1).to(dtype), torch.randn(36, 72, 7, 5).to(dtype)
                found, expected = (
                    _normalised(x.to(where, of).contiguous(memory_format=layout), towards.to(where, of), groups)
                    for where, of in ((device, dtype), ("cpu", torch.float64))
                )
                torch.testing.assert_close(found, expected, rtol=close, atol=close)
                error = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
                largest[str(dtype)] = max(error, largest.get(str(dtype), 0.0))
    return {
        "kernels": kernels(torch.device(device, 0) if device == "cuda" else torch.device(device)) is not None,
        **largest,
    }


def _normalised(x: Tensor, towards: Tensor, groups: int) -> list[Tensor]:
    layer = SplitBatchNorm(nn.BatchNorm2d(x.shape[1])).to(x.device, torch.promote_types(x.dtype, torch.float32))
    layer.groups = groups
    output = layer(x.requires_grad_())
    gradients = torch.autograd.grad(output, [x, *layer.parameters()], towards)
    return [value.detach().cpu().double() for value in (output, *gradients, layer.running_mean, layer.running_var)]


def _contrast(device: str, temperature: float) -> None:
    torch.manual_seed(0)
    made = [F.normalize(torch.randn(rows, 128), dim=1) for rows in (64, 64, 4096)]
    both = []
    for where, dtype in ((device, torch.float32), ("cpu", torch.float64)):
        q, k, queue = (vectors.to(where, dtype) for vectors in made)
        loss, _ = queue_contrast(q.requires_grad_(), k, queue, temperature)
        (gradient,) = torch.autograd.grad(loss.mean(), q)
        both.append([loss.detach().cpu().double(), gradient.cpu().double()])
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


def _views(device: str) -> None:
    """Compare every view with the CPU's; values may differ by one, and 0.1% of them by more."""
    photos = [np.asarray(image) for image in load_sample_images().images]
    for name in VIEWS:
        maker = Views(name, 96, "device")
        arrays, plans, _ = maker.collate([(*maker(photo, Random(seed)), "") for seed in range(16) for photo in photos])
        found = maker.finish([array.to(device) for array in arrays], plans)
        for one, other in zip(found, maker.finish(arrays, plans), strict=True):
            share = float(((one.cpu().int() - other.int()).abs() > 1).float().mean())
            if share > 1e-3:
                raise UserError(f"{name}: {share:.2%} of the values differ by more than one; expected 0.1% at most")


def _step(device: str, method: Any) -> None:
    """Run steps, optimizer included, in which torch refuses to wait for the GPU, after one step that compiles kernels."""
    model = method(create_backbone("resnet18", image_size=64), 512).to(device).to(memory_format=torch.channels_last)
    pair = [torch.randn(16, 3, 64, 64, device=device).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    optimizer = build_optimizer(OptimizerConfig(), [p for p in model.parameters() if p.requires_grad], 0.03)
    for mode in ("default", "error"):
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)
        try:
            loss, _ = model(*pair)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def _step_speed(**sizes: Any) -> dict[str, Any]:
    """Time steps; on a GPU the check passes where plain and grouped batch norm reach 0.90 of the bare encoders' speed."""
    results = step.measure(**sizes)["results"]
    ours = [results[name]["ratio"] for name in ("plain batch norm", "groups")]
    return {"passed": sizes["device"] == "cpu" or max(ours) <= 1 / 0.9, **results}


def _contrast_speed(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {**contrast.measure(8, queue_size=2048, rounds=1)["results"]}
    torch.cuda.reset_peak_memory_stats()
    results = contrast.measure(device=device)["results"]
    return {**results, "peak_megabytes": torch.cuda.max_memory_allocated() >> 20}


def _runs(device: str, folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any] | None]]]:
    """Yield pre-training on JPEG files with both engines, stopped and resumed, kNN, evaluation, conversion, detection."""
    cuda = device == "cuda"
    photos, count = folder / "photos", 512 if cuda else 8
    for index in range(2 * count):
        (photos / str(index % 2)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(load_sample_images().images[index % 2])
        left, top = index % 70, index % 50
        image.crop((left, top, left + 500, top + 375)).save(photos / str(index % 2) / f"{index:05}.jpg")
    settings = [f"data.root={photos}", f"knn.train={photos}", f"knn.test={photos}", "knn.k=2", "schedule.epochs=2"]
    if cuda:
        settings += ["method=moco", "backbone=resnet50", "data.batch_size=128", "data.workers=16"]
        settings += ["trainer.accelerator=gpu", "trainer.devices=1"]
    else:
        settings += ["method=moco", "backbone=resnet18", "data.batch_size=8", "data.image_size=32", "data.workers=1"]
        settings += ["method_args.queue_size=64", "trainer.accelerator=cpu"]
    for engine, precision in (("fast", "bf16-mixed"), ("device", "16-mixed")) if cuda else (("device", "32-true"),):
        out = folder / engine
        run = ["pretrain", *settings, f"views.engine={engine}", f"trainer.precision={precision}", f"out={out}"]
        yield f"pretrain, {engine}, {precision}, stopped and resumed", lambda r=run, o=out: _stop_and_resume(r, o)  # type: ignore[misc]
    last = folder / "device" / "checkpoints" / "last.ckpt"
    sets = ["--weights", last, "--train", photos, "--test", photos]
    yield "evaluate", lambda: _tool("evaluate", "knn", *sets, "--out", folder / "knn")
    weights, detector = folder / "network.pkl", folder / "detector"
    yield "convert", lambda: _tool("convert", last, weights, "--to", "detectron2")
    configs = ("coco/coco_R_50_FPN_1x_moco", "demo/scenes_R_18_FPN_quarter_moco")
    keys = f"MODEL.WEIGHTS {weights} MODEL.MASK_ON False MODEL.ROI_HEADS.NUM_CLASSES 2 SOLVER.AMP.ENABLED True"
    keys += f" DATASETS.TRAIN ('{_boxes(photos)}',) DATASETS.TEST () SOLVER.IMS_PER_BATCH 4 SOLVER.STEPS ()"
    keys += f" SOLVER.MAX_ITER {50 if cuda else 2} TEST.PRECISE_BN.ENABLED False OUTPUT_DIR {detector}"
    keys += "" if cuda else " MODEL.RESNETS.RES2_OUT_CHANNELS 64"
    train = ["train_net", "--config-file", configs[not cuda], *keys.split()]
    yield "train_net, mixed precision", lambda: _tool(*train)
    model = ["--weights", detector / "model_final.pth", "--config-file", detector / "config.yaml"]
    yield "predict", lambda: _tool("predict", *model, "--out", folder / "pictures", *sorted(photos.glob("0/*"))[:8])


def _boxes(photos: Path) -> str:
    """Write a COCO file of a box in each photo, and return its name for detectron2."""
    images = [{"id": n, "file_name": str(path)} for n, path in enumerate(sorted(photos.rglob("*.jpg")))]
    images = [{**image, "width": 500, "height": 375} for image in images]
    box = {"bbox": [100, 100, 200, 150], "area": 30000, "iscrowd": 0}
    boxes = [{**box, "id": n + 1, "image_id": n, "category_id": 1 + n % 2} for n in range(len(images))]
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "other"}]
    file = photos.parent / "boxes.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return f"coco:{file}"


def _command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", f"moco_plugin.tools.{arguments[0]}", *map(str, arguments[1:])]


def _tool(*arguments: Any) -> None:
    ran = subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=RUN_SECONDS)
    if ran.returncode:
        raise UserError(f"{arguments[0]} ended with {ran.returncode}: {ran.stderr[-500:]}")


def _stop_and_resume(run: list[str], out: Path) -> None:
    """Stop a run by SIGTERM as soon as it has logged a step, and run the same command to its end."""
    with subprocess.Popen(_command(*run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + RUN_SECONDS
        while process.poll() is None and not list(out.glob("*.csv")) and time.monotonic() < limit:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(RUN_SECONDS)
    _tool(*run)
    if not (out / "result.json").is_file():
        raise UserError(f"{out} contains no result.json after the run was resumed")


def _table(where: dict[str, str], results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a table for docs/hardware.md."""
    lines = ["", f"{where['device']}, torch {where['torch']}, commit {where['commit'][:12]}", ""]
    lines += ["| check | passed | seconds | |", "|---|---|---|---|"]
    for name, row in results.items():
        rest = {key: value for key, value in row.items() if key not in ("passed", "seconds")}
        lines.append(f"| {name} | {'yes' if row['passed'] else 'NO'} | {row['seconds']} | {json.dumps(rest)} |")
    return lines
