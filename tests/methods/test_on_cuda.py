"""Operations of a training step on a GPU, and its waits, counted on pretended tensors: nothing here ran on a GPU."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moco_plugin.backbones import create_backbone
from moco_plugin.data.views import Views
from moco_plugin.methods import MoCo, MoCoV3
from moco_plugin.methods.contrast import queue_contrast
from moco_plugin.runs.config import OptimizerConfig
from moco_plugin.runs.optimizers import build_optimizer
from tests.helpers.pretend_cuda import Pretended, pretending


@pytest.mark.parametrize(
    ("method", "arguments", "optimizer", "most"),
    [
        (MoCo, {"batch_norm": "plain"}, "sgd", 800),
        (MoCo, {"batch_norm": "shuffle"}, "sgd", 800),
        (MoCo, {}, "sgd", 1000),
        (MoCoV3, {"batch_norm": "plain"}, "lars", 1500),
        (MoCoV3, {"batch_norm": "plain"}, "adamw", 1500),
    ],
)
def test_step(
    method: Any, arguments: dict[str, Any], optimizer: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ResNet-50, K 65536."""
    model = method(create_backbone("resnet50", image_size=32), 2048, **arguments)
    views = [Pretended(torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)) for _ in range(2)]
    with pretending(monkeypatch) as count:
        trained = [p for p in model.to("cuda").parameters() if p.requires_grad]
        built = build_optimizer(OptimizerConfig(name=optimizer), trained, 0.1)
        for step in range(2):  # the second is like all that follow
            count.clear()
            model.seed_step(step)
            model(*views)[0].backward()
            built.step()
            built.zero_grad()
    assert sum(count.operations.values()) <= most, count.operations
    assert not count.waits and sum(count.copies.values()) <= 1, count


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_contrast(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, queue = (Pretended(F.normalize(torch.randn(rows, 128), dim=1)) for rows in (256, 256, 65536))
    with pretending(monkeypatch) as count:
        queue_contrast(q.requires_grad_(), k, queue, temperature)[0].mean().backward()
    assert sum(count.operations.values()) <= 40 and not count.waits + count.copies, count


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "moco_v3"])
def test_views(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(name, 32, "device")
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    arrays, plans, _ = views.collate([(*views(photo, Random(index)), "") for index in range(64)])
    expected = views.finish(arrays, plans)
    with pretending(monkeypatch) as count:
        made = views.finish([Pretended(array) for array in arrays], plans)
    assert sum(count.operations.values()) <= 150, count.operations
    assert not count.waits and sum(count.copies.values()) == 1, count
    assert all(torch.equal(one.held, other) for one, other in zip(made, expected, strict=True))


def test_mixed_devices_are_an_error() -> None:
    with pytest.raises(AssertionError, match=r"add\.Tensor mixes devices"):
        Pretended(torch.ones(2)) + torch.ones(2)
