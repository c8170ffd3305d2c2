"""Recorded traces of the released code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.resnet import BasicBlock, ResNet

from moco_plugin.methods import MoCo

DATA = Path(__file__).parents[1] / "data"


def load_trace(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        trace = dict(file)
    return trace, json.loads(trace["config"].tobytes())


def trace_images(trace: dict[str, np.ndarray], config: dict[str, Any]) -> torch.Tensor:
    shape = (config["steps"], 2, config["batch"] * config["world_size"], 3, 32, 32)
    images = np.random.default_rng(config["seed"]).standard_normal(shape, dtype=np.float32)
    checksum = [images.sum(dtype=np.float64), images.flat[0]]
    np.testing.assert_allclose(checksum, trace["images_checksum"], rtol=1e-9)
    return torch.from_numpy(images)


def tiny_backbone() -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], channels=(4, 8, 16, 32), stem_width=4, num_classes=0)


def from_official(trace: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """Official names (encoder_q.layer1..., base_encoder.fc..., queue C x K) to ours."""
    encoders, state = {"base_encoder": "encoder_q", "momentum_encoder": "encoder_k"}, dict[str, torch.Tensor]()
    for key, value in trace.items():
        if not key.startswith(prefix):
            continue
        name, tensor = key.removeprefix(prefix), torch.from_numpy(value)
        if name == "queue":
            state |= {"queue.keys": tensor.T, "queue.filled": torch.tensor(0)}
        elif name == "queue_ptr":
            state["queue.pointer"] = tensor[0]
        else:
            encoder, rest = name.split(".", 1)
            if encoder != "predictor":
                rest = f"head{rest[2:]}" if rest.startswith("fc.") else f"backbone.{rest}"
            state[f"{encoders.get(encoder, encoder)}.{rest}"] = tensor
    return state


def recorded_moco(trace: dict[str, np.ndarray], config: dict[str, Any], **batch_norm: Any) -> MoCo:
    """The model of a recorded run of v1 or v2, with its initial weights."""
    names = {"dim": "dim", "queue_size": "K", "momentum": "m", "temperature": "T", "mlp": "mlp"}
    model = MoCo(tiny_backbone(), 32, **{ours: config[theirs] for ours, theirs in names.items()}, **batch_norm)
    model.load_state_dict(from_official(trace, "init/"))
    return model


def assert_final(model: MoCo, trace: dict[str, np.ndarray]) -> None:
    expected = from_official(trace, "final/")
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name in expected.keys() - {"queue.filled"}:
        torch.testing.assert_close(state[name], expected[name], rtol=1e-3, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}")
