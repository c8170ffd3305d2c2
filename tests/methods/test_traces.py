"""The method reproduces the released code, step by step, from recorded runs (tests/data/README.md)."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from moco_plugin.methods import MoCo, MoCoV3, contrast
from moco_plugin.methods.encoder import momentum_at
from moco_plugin.runs.optimizers import LARS
from tests.helpers.traces import assert_final, from_official, load_trace, recorded_moco, tiny_backbone, trace_images

DEVICE = os.environ.get("MOCO_TEST_DEVICE", "cpu")  # `make gpu-check` says cuda


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train_step(model: MoCo, optimizer: torch.optim.Optimizer, views: torch.Tensor) -> float:
    loss, _ = model(views[0], views[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize("shuffled", [False, True])
def test_moco_v2_one_process(shuffled: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "QUEUE_BLOCK", block)  # K is 64: in blocks as longer queues, and at once
    trace, config = load_trace("moco_v2_1rank")
    images = trace_images(trace, config).to(DEVICE)
    # one group over the whole batch is plain batch norm, its keys in another order
    how = {"batch_norm": "split", "batch_norm_groups": 1} if shuffled else {"batch_norm": "plain"}
    model = recorded_moco(trace, config, **how)
    model.to(DEVICE)
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=config["lr"], momentum=0.9, weight_decay=1e-4)
    torch.manual_seed(0)
    for step in range(config["steps"]):
        loss = train_step(model, optimizer, images[step])
        assert loss == pytest.approx(trace["loss"][step, 0], rel=1e-4)
        assert int(model.queue.pointer) == trace["queue_ptr"][step]
    assert_final(model.cpu(), trace)


def run_v3(
    trace: dict[str, np.ndarray], config: dict[str, Any], noise: float = 0.0
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final state of the recorded run, from initial weights changed by a share of ``noise``."""
    images = trace_images(trace, config).to(DEVICE)
    names = {"dim": "dim", "hidden_dim": "mlp_dim", "temperature": "T", "momentum": "m"}
    model = MoCoV3(tiny_backbone(), 32, **{name: config[key] for name, key in names.items()})
    model.load_state_dict(from_official(trace, "init/"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
    model.to(DEVICE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = LARS(parameters, lr=config["lr"], momentum=0.9, weight_decay=config["wd"])
    losses = []
    for step in range(config["steps"]):
        progress = step / config["steps"]
        assert momentum_at(config["m"], "cosine", progress) == pytest.approx(trace["momentum"][step])
        loss, _ = model(images[step, 0], images[step, 1], progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, model.cpu().state_dict()


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")  # as recorded
def test_moco_v3_resnet() -> None:
    """The run amplifies round-off, which differs between CPUs: what a change of 1e-7 in the weights does is allowed."""
    trace, config = load_trace("moco_v3_resnet_1rank")
    losses, state = run_v3(trace, config)
    others, other = run_v3(trace, config, noise=1e-7)
    spread = np.maximum.accumulate(np.abs(np.array(others) - losses) / np.array(losses))
    errors = np.abs(np.array(losses) - trace["loss"][:, 0]) / trace["loss"][:, 0]
    assert (spread[:6] < 1e-4).all()  # the steps in which the recording is the measure
    assert (errors < np.maximum(1e-4, 2 * spread)).all(), errors
    expected = from_official(trace, "final/")
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        allowed = 5e-4 + 1e-3 * value.abs() + 2 * (other[name] - state[name]).abs().max()
        assert ((state[name] - value).abs() <= allowed).all(), name
