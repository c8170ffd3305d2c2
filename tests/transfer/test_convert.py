"""Conversion to detectron2: what the released code's converter writes, and the proof."""

import pickle
from pathlib import Path
from typing import Any

import detectron2.checkpoint
import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.layers import ShapeSpec

from moco_plugin.checkpoints.convert import convert
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.tools.convert import main as convert_main
from moco_plugin.tools.convert_to_d2 import main
from moco_plugin.transfer.components.timm_backbone import build_timm_backbone
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.to_detectron2 import detectron2_name
from moco_plugin.transfer.weights import check_input
from moco_plugin.weight_files.load import load_file
from tests.helpers.checkpoints import OFFICIAL, official
from tests.helpers.checkpoints import checkpoint as read
from tests.helpers.processes import Tool

# the names that the released converter gives to the tensors of its own checkpoints
NAMES = """conv1.weight stem.conv1.weight
bn1.running_mean stem.conv1.norm.running_mean
bn1.num_batches_tracked stem.conv1.norm.num_batches_tracked
layer1.0.conv1.weight res2.0.conv1.weight
layer1.0.bn3.weight res2.0.conv3.norm.weight
layer2.0.downsample.0.weight res3.0.shortcut.weight
layer3.0.downsample.1.running_var res4.0.shortcut.norm.running_var
layer4.2.bn2.bias res5.2.conv2.norm.bias
fc.0.weight stem.fc.0.weight"""


def test_names() -> None:
    for line in NAMES.splitlines():
        name, expected = line.split()
        assert detectron2_name(name) == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoint(name: str, tmp_path: Path) -> None:
    file = official(name, mlp=name != "resnet34")
    torch.save(file, tmp_path / "moco.pth.tar")
    checkpoint = read_checkpoint(tmp_path / "moco.pth.tar")
    proof = convert(checkpoint, tmp_path / "moco.pkl")["proof"]
    assert (proof["source"], proof["target"]) == ("torchvision", "detectron2")
    assert list(proof["largest_differences"]) == ["res2", "res3", "res4", "res5"]
    assert max(proof["largest_differences"].values()) <= proof["tolerance"] == 1e-6
    content = pickle.loads((tmp_path / "moco.pkl").read_bytes())  # as detectron2 reads it
    assert content["__author__"] and content["matching_heuristics"] is True
    weights, prefix = file["state_dict"], "module.encoder_q."
    names = {name: detectron2_name(name.removeprefix(prefix)) for name in weights if name.startswith(prefix)}
    expected = {theirs: weights[name].numpy() for name, theirs in names.items()}
    assert content["model"].keys() == expected.keys()
    for key, array in expected.items():
        assert content["model"][key].dtype == array.dtype and np.array_equal(content["model"][key], array), key


def test_own_checkpoint_through_the_tool(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    source, output = tiny_run / "checkpoints" / "last.ckpt", tmp_path / "tiny.pkl"
    shown = tool("convert_to_d2", source, output).stdout
    assert shown.count("largest difference between timm and detectron2") == 4
    content = pickle.loads(output.read_bytes())
    state = torch.load(source, weights_only=True)["state_dict"]
    weight = state["method.encoder_q.backbone.layer4.1.conv2.weight"].numpy()
    assert np.array_equal(content["model"]["model.layer4.1.conv2.weight"], weight)
    assert content["moco_plugin"]["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    before = output.read_bytes()
    assert main([str(source), str(output)]) == 2  # kept
    assert main([str(source), str(output), "--encoder", "key", "--overwrite"]) == 0
    assert output.read_bytes() != before


# reduced in depth, not in kind
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50d": {"layers": [1, 1, 1, 1]},
    "efficientnet_b0": {},
    "regnety_002": {},
    "mobilenetv3_small_100": {},
    "convnext_atto": {"depths": [1, 1, 2, 1]},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": [96, 96]},
    "vit_small_patch16_224": {"depth": 2, "num_heads": 12},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_network(name: str, tmp_path: Path) -> None:
    source, output = read(name, **TIMM[name]), tmp_path / "timm.pkl"
    to = "detectron2-timm" if name == "resnet18" else "detectron2"  # detectron2 has that one itself
    proof = convert(source, output, to=to)["proof"]
    assert (proof["source"], proof["target"]) == ("timm", "detectron2")
    assert len(proof["largest_differences"]) >= 2
    content = load_file(output).content
    assert content["model"].keys() == {f"model.{key}" for key in source.backbone.state_dict()}
    told = content["moco_plugin"]
    assert (told["timm_name"], told["proof"]["target"]) == (name, "detectron2")
    overrides = [part for pair in told["settings"].items() for part in pair]
    cfg = load_detector_config("Base-init-moco", [*overrides, "MODEL.BACKBONE.NAME", "build_timm_backbone"])
    check_input(cfg, told)  # what the converter writes is what the check reads
    cfg.MODEL.BACKBONE.NAME = "build_any_width_resnet_backbone"
    with pytest.raises(UserError, match=f"{name} for build_timm_fpn_backbone and its like"):
        check_input(cfg, told)
    network = build_timm_backbone(cfg, ShapeSpec(channels=3)).eval()
    detectron2.checkpoint.DetectionCheckpointer(network).load(str(output))
    for key, value in network.state_dict().items():
        assert torch.equal(value, source.backbone.state_dict()[key.removeprefix("model.")]), key


def test_vit_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """official v3 -> torchvision -> timm, query and key"""
    vit = read("vit_small_patch16_224", depth=1, num_heads=12, img_size=64).backbone.state_dict()
    weights = {f"module.base_encoder.{key}": value for key, value in vit.items()}
    weights |= {f"module.momentum_encoder.{key}": value + 1 for key, value in vit.items()}
    weights |= {"module.odd.weight": torch.ones(2), "module.predictor.0.weight": torch.ones(2, 2)}
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": weights}, tmp_path / "v3.pth.tar")
    for encoder, added in (("query", 0), ("key", 1)):
        middle, last = tmp_path / f"{encoder}.pth", tmp_path / encoder
        arguments = [str(middle), "--to", "torchvision", "--encoder", encoder]
        assert convert_main([str(tmp_path / "v3.pth.tar"), *arguments]) == 0
        shown = capsys.readouterr().out
        assert "odd.weight" in shown and "predictor" not in shown  # the one is no known head
        assert "opens with: torchvision.models.VisionTransformer(image_size=64, patch_size=16, num_layers=1" in shown
        assert convert_main([str(middle), str(last), "--to", "timm"]) == 0
        assert "largest difference between torchvision and timm" in capsys.readouterr().out
        state = safetensors.torch.load_file(last / "model.safetensors")
        assert state.keys() == vit.keys() and all(torch.equal(state[key], vit[key] + added) for key in vit)
        told = torch.load(middle, weights_only=True)._metadata["moco_plugin"]
        assert (told["encoder"], told["method"], told["epoch"]) == (encoder, "moco_v3", 300)
    assert convert_main(["inspect", str(tmp_path / "v3.pth.tar")]) == 0
    shown = capsys.readouterr().out
    assert "official MoCo v3" in shown and "vit_small_patch16_224" in shown and "query and key" in shown
    for arguments in (["inspect"], ["a.pth", "b.pkl"], ["a.pth", "b.pkl", "--to", "caffe"]):
        with pytest.raises(SystemExit, match="2"):
            convert_main(arguments)
    assert convert_main([str(tmp_path / "v3.pth.tar"), str(middle), "--to", "detectron2"]) == 2
    assert convert_main([str(tmp_path / "v3.pth.tar"), str(middle), "--to", "timm"]) == 2
    assert "exists already and was kept" in capsys.readouterr().err


def test_detectron2_source_is_proven_with_its_own_network(tmp_path: Path) -> None:
    torch.save(official("resnet18"), tmp_path / "moco.pth.tar")
    convert(read_checkpoint(tmp_path / "moco.pth.tar"), tmp_path / "moco.pkl")
    back = read_checkpoint(tmp_path / "moco.pkl")
    back.backbone.get_parameter("layer2.0.conv1.weight").data *= 1.001  # as if it had been read wrongly
    with pytest.raises(UserError, match=r"timm's layer2 differs by .* from detectron2's"):
        convert(back, tmp_path / "back.pth", "timm")


def test_resnet_of_twice_the_width(tmp_path: Path) -> None:
    proof = convert(read("resnet50", width=2, layers=[1, 1, 1, 1]), tmp_path / "wide.pkl")["proof"]
    assert (proof["source"], proof["target"]) == ("timm", "detectron2")
    assert load_file(tmp_path / "wide.pkl").content["model"]["stem.conv1.weight"].shape[0] == 128


def test_network_without_a_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="the stem's filters are 3 x 3; detectron2 has 7 x 7"):
        convert(read("resnet18", small_stem=True, channels=[8, 16, 32, 64]), tmp_path / "small.pkl")
    torch.save(official("resnet50d"), tmp_path / "moco.pth.tar")
    assert main([str(tmp_path / "moco.pth.tar"), str(tmp_path / "out.pkl")]) == 1
    assert "not those of a plain ResNet" in capsys.readouterr().err
    assert main([str(tmp_path / "moco.pth.tar"), str(tmp_path / "out.pth")]) == 2
    assert "does not end in .pkl" in capsys.readouterr().err
