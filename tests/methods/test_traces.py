"""The method reproduces the released code, step by step, from recorded runs (tests/data/README.md)."""

import numpy as np
import pytest
import torch

from moco_plugin.methods import MoCo, MoCoV3, contrast
from moco_plugin.methods.encoder import momentum_at
from moco_plugin.training.optimizers import lars
from tests.helpers.traces import assert_final, from_official, load_trace, tiny_backbone, trace_images


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
    images = trace_images(trace, config)
    # one group over the whole batch is plain batch norm, its keys in another order
    how = {"batch_norm": "split", "batch_norm_groups": 1} if shuffled else {"batch_norm": "plain"}
    model = MoCo(
        tiny_backbone(),
        32,
        dim=config["dim"],
        queue_size=config["K"],
        momentum=config["m"],
        temperature=config["T"],
        mlp=config["mlp"],
        **how,
    )
    model.load_state_dict(from_official(trace, "init/"))
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=config["lr"], momentum=0.9, weight_decay=1e-4)
    torch.manual_seed(0)
    for step in range(config["steps"]):
        loss = train_step(model, optimizer, images[step])
        assert loss == pytest.approx(trace["loss"][step, 0], rel=1e-4)
        assert int(model.queue.pointer) == trace["queue_ptr"][step]
    assert_final(model, trace)


def from_official_v3(trace: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """Official names (base_encoder, momentum_encoder, fc for the projector) to ours."""
    state = {}
    for key, value in trace.items():
        if key.startswith(prefix):
            encoder, _, rest = key[len(prefix) :].partition(".")
            if encoder == "predictor":
                state[f"predictor.{rest}"] = torch.from_numpy(value)
                continue
            encoder = {"base_encoder": "encoder_q", "momentum_encoder": "encoder_k"}[encoder]
            rest = f"head{rest[2:]}" if rest.startswith("fc.") else f"backbone.{rest}"
            state[f"{encoder}.{rest}"] = torch.from_numpy(value)
    return state


def test_moco_v3_resnet() -> None:
    torch.set_num_threads(2)  # as recorded: this run amplifies the rounding of sums in another order
    trace, config = load_trace("moco_v3_resnet_1rank")
    images = trace_images(trace, config)
    model = MoCoV3(
        tiny_backbone(),
        32,
        dim=config["dim"],
        hidden_dim=config["mlp_dim"],
        temperature=config["T"],
        momentum=config["m"],
    )
    model.load_state_dict(from_official_v3(trace, "init/"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = lars(parameters, lr=config["lr"], momentum=0.9, weight_decay=config["wd"])
    for step in range(config["steps"]):
        progress = step / config["steps"]
        assert momentum_at(config["m"], "cosine", progress) == pytest.approx(trace["momentum"][step])
        loss, _ = model(images[step, 0], images[step, 1], progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(loss.detach()) == pytest.approx(trace["loss"][step, 0], rel=1e-4)
    expected, state = from_official_v3(trace, "final/"), model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}")
