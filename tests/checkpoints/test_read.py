"""Reading checkpoints: found by content, safe, complete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.checkpoints.resnet import resnet_from_state
from moco_plugin.errors import UserError

OFFICIAL = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
)


def official(name: str, mlp: bool = True, **arguments: Any) -> dict[str, Any]:
    """A file as the released code saves it, of a network that has seen some images."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=16, zero_init_last=False, **arguments)
    for key, value in model.state_dict().items():
        if "running_mean" in key:
            value.normal_(std=0.1)
        elif "running_var" in key:
            value.uniform_(0.5, 1.5)
    state = dict(model.state_dict())
    if mlp:
        width = state["fc.weight"].shape[1]
        state |= {"fc.2.weight": state.pop("fc.weight"), "fc.2.bias": state.pop("fc.bias")}
        state |= {"fc.0.weight": torch.randn(width, width), "fc.0.bias": torch.randn(width)}
    weights = {f"module.encoder_q.{key}": value for key, value in state.items()}
    weights |= {f"module.encoder_k.{key}": value + 1 for key, value in state.items()}
    weights |= {"module.queue": torch.randn(16, 32), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return {"epoch": 200, "arch": name, "state_dict": weights, "optimizer": {}}


@pytest.mark.parametrize("name", OFFICIAL)
def test_shape_is_read_off_the_weights(name: str) -> None:
    model = timm.create_model(name, num_classes=0)
    found, untrained, network = resnet_from_state(model.state_dict())
    assert found.startswith(name.split("_")[0] if name != "wide_resnet50_2" else "wide_resnet50")
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network(images), model.eval()(images))
    assert untrained().state_dict().keys() == model.state_dict().keys()


def test_official_layout(tmp_path: Path) -> None:
    file = official("resnet18")
    torch.save(file, tmp_path / "no_hint_in_the_name")
    checkpoint = read_checkpoint(tmp_path / "no_hint_in_the_name")
    assert (checkpoint.layout, checkpoint.architecture) == ("official MoCo v1/v2", "resnet18")
    assert (checkpoint.method, checkpoint.epoch) == ("moco_v2", 200)
    weights: dict[str, Tensor] = file["state_dict"]
    for key, value in checkpoint.backbone.state_dict().items():
        assert torch.equal(value, weights[f"module.encoder_q.{key}"])
    assert sorted(checkpoint.head) == ["fc.0.bias", "fc.0.weight", "fc.2.bias", "fc.2.weight"]
    key_encoder = read_checkpoint(tmp_path / "no_hint_in_the_name", "key").backbone
    assert torch.equal(key_encoder.state_dict()["conv1.weight"], weights["module.encoder_k.conv1.weight"])


def test_own_layout(tiny_run: Path) -> None:
    path = tiny_run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    assert (checkpoint.layout, checkpoint.architecture) == ("moco_plugin", "resnet18")
    assert (checkpoint.method, checkpoint.epoch, checkpoint.view.image_size) == ("moco", 2, 32)
    state = torch.load(path, weights_only=True)["state_dict"]
    for key, value in checkpoint.backbone.state_dict().items():
        assert torch.equal(value, state[f"method.encoder_q.backbone.{key}"])


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o777)


def test_files_that_are_no_checkpoints(tmp_path: Path, tiny_run: Path) -> None:
    whole = (tiny_run / "checkpoints" / "last.ckpt").read_bytes()
    incomplete = official("resnet18")
    del incomplete["state_dict"]["module.encoder_q.layer2.0.conv1.weight"]
    cases: dict[str, tuple[Any, str]] = {
        "truncated": (whole[: len(whole) // 2], "is no whole torch checkpoint"),
        "text": (b"hello", "is no whole torch checkpoint"),
        "empty": (b"", "is no whole torch checkpoint"),
        "hostile": ({"state_dict": Hostile(tmp_path / "pwned")}, "could run code"),
        "list": ([1, 2], "holds a list"),
        "other": ({"weights": {"a": torch.zeros(1)}}, "of no known layout .its first keys: weights."),
        "incomplete": (incomplete, "Missing key.*layer2.0.conv1.weight"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=message) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "absent")
