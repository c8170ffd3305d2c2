"""A training step of MoCo v2, compared with its bare encoders."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightly.loss import NTXentLoss
from lightly.models.utils import update_momentum

from moco_plugin.backbones import check_features, create_backbone
from moco_plugin.benchmarks.timing import at_least, check_device, compare, count_kernels, ratios
from moco_plugin.methods import MoCo
from moco_plugin.runs.config import OptimizerConfig
from moco_plugin.runs.optimizers import build_optimizer

BATCH_NORM = {"bare encoders": "plain", "plain batch norm": "plain", "groups": "auto", "lightly": "plain"}


def measure(
    backbone: str = "resnet18",
    image_size: int = 64,
    batch_size: int = 64,
    queue_size: int = 65536,
    rounds: int = 30,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    compile: bool = False,
) -> dict[str, Any]:
    """Time a training step of MoCo v2, compared with its encoders alone and with lightly's example.

    Batch norm is plain or grouped. The encoders alone compute a loss without negatives, its gradient and the
    optimizer's step; plain batch norm, nothing shuffled, no momentum update. lightly's example adds its momentum
    update, its loss and its memory bank.

    Args:
        backbone: A timm model.
        image_size: Pixels.
        batch_size: Images.
        queue_size: K.
        rounds: Number of steps of each.
        device: "cpu" or "cuda"; on CUDA the kernels of a step are also counted.
        precision: "float32", or "bfloat16" or "float16" for autocast; "float16" with scaled gradients.
        compile: Compile the encoders.
    """
    at_least(1, batch_size=batch_size, image_size=image_size, rounds=rounds)
    at_least(batch_size, queue_size=queue_size)
    check_device(device)

    def contestant(name: str) -> Callable[[], None]:
        torch.manual_seed(0)
        network = create_backbone(backbone, image_size=image_size)
        dim = check_features(network, backbone, image_size)
        ours = name in ("plain batch norm", "groups")
        model = MoCo(network, dim, queue_size=queue_size if ours else batch_size, batch_norm=BATCH_NORM[name])
        model.to(device).to(memory_format=torch.channels_last)
        for encoder in model.modules_to_compile() if compile else ():
            encoder.compile()
        optimizer = build_optimizer(OptimizerConfig(), model.encoder_q.parameters(), lr=0.03)
        scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
        ntxent = NTXentLoss(temperature=0.2, memory_bank_size=(queue_size, 128)).to(device)

        def loss() -> Any:
            if ours:
                return model(*views)[0]
            if name == "lightly":
                update_momentum(model.encoder_q, model.encoder_k, m=0.999)
            q = model.encoder_q(views[0])
            with torch.no_grad():
                k = model.encoder_k(views[1])
            return ntxent(q, k) if name == "lightly" else -(q * k).sum(dim=1).mean()

        def run() -> None:
            optimizer.zero_grad()
            with torch.autocast(device, getattr(torch, precision), enabled=precision != "float32"):
                value = loss()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()

        return run

    shape = (batch_size, 3, image_size, image_size)
    views = [torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    contestants = {name: contestant(name) for name in BATCH_NORM}
    results: dict[str, dict[str, Any]] = {**ratios(compare(contestants, rounds, device), "bare encoders", device)}
    for name, row in results.items() if device == "cuda" else ():
        row["images_per_second"] = round(1000 * batch_size / row["wall_milliseconds"])
        row["kernels"] = count_kernels(contestants[name])
    settings = {
        "backbone": backbone,
        "image_size": image_size,
        "batch_size": batch_size,
        "queue_size": queue_size,
        "rounds": rounds,
        "device": device,
        "precision": precision,
        "compile": compile,
    }
    return {"settings": settings, "threads": torch.get_num_threads(), "results": results}
