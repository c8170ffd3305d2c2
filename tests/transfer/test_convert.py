"""Conversion to detectron2: what the released code's converter writes, and the proof."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from moco_plugin.tools.convert_to_d2 import main

from moco_plugin.checkpoints.detectron2 import detectron2_name
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.transfer import convert
from tests.checkpoints.test_read import OFFICIAL, official
from tests.processes import Tool

# the names that the released converter gives to the tensors of its own checkpoints
NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_mean": "stem.conv1.norm.running_mean",
    "bn1.num_batches_tracked": "stem.conv1.norm.num_batches_tracked",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer1.0.bn3.weight": "res2.0.conv3.norm.weight",
    "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
    "layer3.0.downsample.1.running_var": "res4.0.shortcut.norm.running_var",
    "layer4.2.bn2.bias": "res5.2.conv2.norm.bias",
    "fc.0.weight": "stem.fc.0.weight",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names(name: str, expected: str) -> None:
    assert detectron2_name(name) == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoint(name: str, tmp_path: Path) -> None:
    file = official(name, mlp=name != "resnet34")
    torch.save(file, tmp_path / "moco.pth.tar")
    differences = convert.convert_to_detectron2(
        read_checkpoint(tmp_path / "moco.pth.tar"), tmp_path / "moco.pkl"
    )
    assert list(differences) == ["res2", "res3", "res4", "res5"]
    assert max(differences.values()) <= 1e-4
    content = pickle.loads((tmp_path / "moco.pkl").read_bytes())  # as detectron2 reads it
    assert content["__author__"] and content["matching_heuristics"] is True
    prefix = "module.encoder_q."
    expected = {
        detectron2_name(key.removeprefix(prefix)): value.numpy()
        for key, value in file["state_dict"].items()
        if key.startswith(prefix)
    }
    assert content["model"].keys() == expected.keys()
    for key, array in expected.items():
        assert content["model"][key].dtype == array.dtype and np.array_equal(content["model"][key], array), (
            key
        )


def test_own_checkpoint_through_the_tool(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    source, output = tiny_run / "checkpoints" / "last.ckpt", tmp_path / "tiny.pkl"
    shown = tool("convert_to_d2", source, output).stdout
    assert shown.count("largest difference between timm and detectron2") == 4
    content = pickle.loads(output.read_bytes())
    state = torch.load(source, weights_only=True)["state_dict"]
    weight = state["method.encoder_q.backbone.layer4.1.conv2.weight"].numpy()
    assert np.array_equal(content["model"]["res5.1.conv2.weight"], weight)
    assert content["moco_plugin"]["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    before = output.read_bytes()
    assert main([str(source), str(output)]) == 2  # kept
    assert main([str(source), str(output), "--encoder", "key", "--overwrite"]) == 0
    assert output.read_bytes() != before


def test_nothing_is_written_when_the_features_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(official("resnet18"), tmp_path / "moco.pth.tar")
    checkpoint = read_checkpoint(tmp_path / "moco.pth.tar")
    right = convert.to_detectron2

    def wrong(*args: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        arrays = right(*args)
        name = "res4.0.conv1.weight"
        return {**arrays, name: arrays[name] * np.float32(1.001)}

    monkeypatch.setattr(convert, "to_detectron2", wrong)
    with pytest.raises(UserError, match=r"was not written: detectron2's res[45] differs by"):
        convert.convert_to_detectron2(checkpoint, tmp_path / "moco.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moco.pth.tar"]


def test_dead_network_proves_nothing(tmp_path: Path) -> None:
    file = official("resnet18")
    file["state_dict"]["module.encoder_q.bn1.bias"].fill_(-1e3)
    for block in (0, 1):
        file["state_dict"][f"module.encoder_q.layer1.{block}.bn2.bias"].fill_(-1e3)
    torch.save(file, tmp_path / "moco.pth.tar")
    with pytest.raises(UserError, match="features are all zero"):
        convert.convert_to_detectron2(read_checkpoint(tmp_path / "moco.pth.tar"), tmp_path / "moco.pkl")


def test_network_without_a_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(official("resnet50d"), tmp_path / "moco.pth.tar")
    assert main([str(tmp_path / "moco.pth.tar"), str(tmp_path / "out.pkl")]) == 1
    assert "not those of a plain ResNet" in capsys.readouterr().err
    assert main([str(tmp_path / "moco.pth.tar"), str(tmp_path / "out.pth")]) == 2
    assert "does not end in .pkl" in capsys.readouterr().err
