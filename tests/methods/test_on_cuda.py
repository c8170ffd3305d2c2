"""Operations of a training step on a GPU, and its waits, counted on pretended tensors: nothing here ran on a GPU."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moco_plugin.backbones import create_backbone
from moco_plugin.data.views import Views
from moco_plugin.methods import MoCo, MoCoV3, batch_norm
from moco_plugin.methods.contrast import queue_contrast
from moco_plugin.runs.config import OptimizerConfig
from moco_plugin.runs.optimizers import build_optimizer
from tests.helpers.counted_cuda import Pretended, copies, counted, on_cuda, operations, waits


class Kernels:
    """In place of the Triton kernels: three launches each way."""

    dense = staticmethod(lambda input: input)

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor, running: Any, groups: int, *_: Any) -> tuple[Tensor, ...]:
        operations["kernels"] += 3
        output, means, variances = batch_norm._in_parts(input.held, weight.held, bias.held, groups, 1e-5)
        return Pretended(output.contiguous(memory_format=torch.channels_last)), Pretended(means), Pretended(variances)

    @staticmethod
    def backward(grad: Tensor, input: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
        operations["kernels"] += 3
        return Pretended(grad.held), Pretended(weight.held), Pretended(weight.held)


@pytest.mark.parametrize(
    ("method", "arguments", "optimizer", "most"),
    [
        (MoCo, {"batch_norm": "plain"}, "sgd", 800),
        (MoCo, {"batch_norm": "shuffle"}, "sgd", 800),
        (MoCo, {}, "sgd", 1000),
        (MoCoV3, {"batch_norm": "plain"}, "lars", 1600),
        (MoCoV3, {"batch_norm": "plain"}, "adamw", 1600),
    ],
)
def test_step(
    method: Any, arguments: dict[str, Any], optimizer: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ResNet-50, K 65536."""
    monkeypatch.setattr(batch_norm, "kernels", lambda device: Kernels)
    model = on_cuda(method(create_backbone("resnet50", image_size=32), 2048, **arguments))
    views = [Pretended(torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)) for _ in range(2)]
    with counted():
        built = build_optimizer(
            OptimizerConfig(name=optimizer), [p for p in model.parameters() if p.requires_grad], 0.1
        )
    for step in range(2):  # the second is like all that follow
        with counted():
            model.seed_step(step)
            model(*views)[0].backward()
            built.step()
            built.zero_grad()
    assert sum(operations.values()) <= most, operations
    assert sum(waits.values()) == 0 and sum(copies.values()) <= 2, (waits, copies)


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_contrast(temperature: float) -> None:
    q, k, queue = (Pretended(F.normalize(torch.randn(rows, 128), dim=1)) for rows in (256, 256, 65536))
    with counted():
        queue_contrast(q.requires_grad_(), k, queue, temperature)[0].mean().backward()
    assert sum(operations.values()) <= 40 and not waits + copies, (operations, waits, copies)


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "moco_v3"])
def test_views(name: str) -> None:
    views = Views(name, 32, "device")
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    arrays, plans, _ = views.collate([(*views(photo, Random(index)), "") for index in range(64)])
    expected = views.finish(arrays, plans)
    with counted():
        made = views.finish([Pretended(array) for array in arrays], plans)
    assert sum(operations.values()) <= 150, operations
    assert not waits and sum(copies.values()) == 1, (waits, copies)
    assert all(torch.equal(one.held, other) for one, other in zip(made, expected, strict=True))


def test_mixed_devices_are_an_error() -> None:
    with counted(), pytest.raises(RuntimeError, match="mixed devices in add"):
        Pretended(torch.ones(2)) + torch.ones(2)
