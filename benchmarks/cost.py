"""Images per second that a cost model predicts for a number of GPUs, and what limits them."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from fvcore.nn import FlopCountAnalysis

from moco_plugin.backbones import create_backbone
from moco_plugin.benchmarks.timing import at_least

# milliseconds of one core a pair of 224-pixel views of a 500 x 375 JPEG, measured by the benchmark of views
LOADER_MILLISECONDS = {"fast": 2.9, "device": 1.8, "reference": 10.8}


def measure(
    backbone: str = "resnet50",
    image_size: int = 224,
    batch_size: int = 32,
    queue_size: int = 65536,
    symmetric: bool = False,
    gpus: Sequence[int] = (1, 8, 64, 256, 1024),
    teraflops: float = 100.0,
    cores: int = 8,
    engine: Literal["fast", "device", "reference"] = "fast",
    gigabytes_per_second: float = 10.0,
) -> dict[str, Any]:
    """Predict images per second of loading, encoders, contrast and traffic, and of the slowest of them.

    Args:
        backbone: A timm model; its multiply-adds are counted by fvcore.
        image_size: Side of a view.
        batch_size: Images of each GPU.
        queue_size: K; 0 for v3, whose negatives are the batch.
        symmetric: Both views are query and key, as in v3.
        gpus: Numbers of GPUs.
        teraflops: Floating-point operations per second that a GPU sustains on this network, in 10^12.
        cores: CPU cores for each GPU's loader processes.
        engine: Which makes the views.
        gigabytes_per_second: Bytes per second between GPUs, each way, for each GPU.
    """
    at_least(1, image_size=image_size, batch_size=batch_size, cores=cores, gpus=min(gpus))
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    network = create_backbone(backbone, image_size=image_size).eval()
    counts = FlopCountAnalysis(network, torch.zeros(1, 3, image_size, image_size))
    multiply_adds = counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    views = 2 if symmetric else 1
    # a query costs a forward and a backward of twice that, a key a forward; two operations a multiply-add
    encoders = teraflops * 1e12 / (2 * multiply_adds * 4 * views)
    loader = cores * 1000 / LOADER_MILLISECONDS[engine] * (224 / image_size) ** 2
    results = {}
    for count in gpus:
        keys = queue_size or batch_size * count
        contrast = teraflops * 1e12 / (2 * 2 * 2 * 128 * keys * views)  # two products, forward and for the gradient
        share = (count - 1) / count
        step_bytes = 2 * 4 * parameters * share + batch_size * views * share * (
            4 * 3 * image_size**2 * (queue_size > 0) + 4 * 128 * count
        )
        traffic = gigabytes_per_second * 1e9 / max(step_bytes, 1) * batch_size
        computed = 1 / (1 / encoders + 1 / contrast)
        parts = {"loading": loader, "encoders and contrast": computed} | ({"traffic": traffic} if count > 1 else {})
        limit = min(parts, key=lambda name: parts[name])
        rows = {name: round(value * count) for name, value in parts.items()}
        results[f"{count} GPU{'s' if count > 1 else ''}"] = {**rows, "images_per_second": rows[limit], "limit": limit}
    settings = {
        "backbone": backbone,
        "gigaflops": round(2 * multiply_adds / 1e9, 2),
        "megaparameters": round(parameters / 1e6, 1),
        "batch_size": batch_size,
        "teraflops": teraflops,
        "cores": cores,
        "engine": engine,
        "gigabytes_per_second": gigabytes_per_second,
    }
    return {"settings": settings, "results": results}
