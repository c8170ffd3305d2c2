"""Files for timm, torchvision and LightlyTrain: opened as their users do, proven, and written whole or not at all."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import timm
import torch
from torch import nn
from torchvision import models

from moco_plugin.checkpoints.convert import convert
from moco_plugin.checkpoints.networks import resnet_from_state
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.errors import UsageError, UserError
from moco_plugin.exports import to_torchvision as module
from moco_plugin.exports.to_torchvision import to_torchvision
from moco_plugin.tools.convert import main
from tests.helpers.checkpoints import NETWORKS, checkpoint
from tests.helpers.networks import features


def assert_equal(found: Any, network: nn.Module) -> None:
    expected = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_opens_the_folder_alone(name: str, tmp_path: Path) -> None:
    source = checkpoint(name, **NETWORKS[name])
    proof = convert(source, tmp_path / "model", "timm")["proof"]
    assert proof["target"] == "timm" and len(proof["largest_differences"]) > 2
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    network = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert_equal(network.state_dict(), source.backbone)
    torch.testing.assert_close(features(network), features(source.backbone))
    data = timm.data.resolve_model_data_config(network)
    assert (list(data["mean"]), list(data["std"])) == (source.view.mean, source.view.std)
    assert data["crop_pct"] == source.view.crop_ratio
    metadata = json.loads((tmp_path / "model" / "config.json").read_text())["moco_plugin"]
    assert metadata["source_sha256"] == "5d2e" and metadata["proof"]["target"] == "timm"


def test_state_dicts_load_as_any_other_and_say_where_they_come_from(tmp_path: Path) -> None:
    source = checkpoint("resnet18", "official MoCo v1/v2")
    proof = convert(source, tmp_path / "a.pth", "timm")["proof"]
    assert (proof["source"], proof["target"]) == ("torchvision", "timm")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert_equal(state, source.backbone)
    timm.create_model("resnet18", num_classes=0).load_state_dict(state)
    convert(source, tmp_path / "a.safetensors", "timm")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert_equal({name: file.get_tensor(name) for name in file.keys()}, source.backbone)  # noqa: SIM118
        header = json.loads(file.metadata()["moco_plugin"])
    assert header == state._metadata["moco_plugin"]
    said = "source source_sha256 layout architecture encoder method epoch".split()
    expected = ["source.pth", "5d2e", "official MoCo v1/v2", "resnet18", "query", "moco_v2", 7]
    assert [header[key] for key in said] == expected
    assert header["input_format"] == "RGB" and header["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert list(header["proof"]["largest_differences"]) == ["layer1", "layer2", "layer3", "layer4", "output"]
    assert max(header["proof"]["largest_differences"].values()) <= header["proof"]["tolerance"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("resnext50_32x4d", {"layers": [1, 1, 1, 1]}),
        ("wide_resnet50_2", {"layers": [1, 1, 1, 1]}),
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32}),
        ("vit_small_patch16_224", {"depth": 2, "num_heads": 12}),  # v3's ViT-S has 12 heads, timm's 6
    ],
)
def test_torchvision(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    source = checkpoint(name, **arguments)
    proof = convert(source, tmp_path / "weights.pth", "torchvision")["proof"]
    assert (proof["source"], proof["target"]) == ("timm", "torchvision")
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    told = state._metadata["moco_plugin"]
    arguments = dict(told["torchvision_arguments"])
    if "block" in arguments:
        arguments["block"] = getattr(models.resnet, arguments["block"])
    network = getattr(models, told["torchvision_class"])(**arguments)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert unexpected == [] and all(key.startswith(("fc.", "heads.")) for key in missing)
    setattr(network, "heads" if name.startswith("vit") else "fc", nn.Identity())
    side = arguments.get("image_size", 64)
    images = torch.randn(1, 3, side, side)
    torch.testing.assert_close(network.eval()(images), source.backbone(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_lightly_train_starts_from_the_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lightly_train")
    from lightly_train._models.package_helpers import get_wrapped_model
    from lightly_train._models.timm.timm_package import TIMM_PACKAGE

    source, output = checkpoint(name, **NETWORKS[name]), tmp_path / "start.pt"
    convert(source, output, "lightly-train")
    model_args = {**NETWORKS[name], "num_classes": 0, "checkpoint_path": str(output)}
    wrapped = get_wrapped_model(f"timm/{name}", num_input_channels=3, model_args=model_args)
    assert_equal(wrapped.get_model().state_dict(), source.backbone)
    TIMM_PACKAGE.export_model(wrapped, tmp_path / "export.pt", log_example=False)  # what it writes itself
    assert list(torch.load(tmp_path / "export.pt", weights_only=True)) == list(torch.load(output, weights_only=True))


def small() -> Checkpoint:
    return checkpoint("resnet18", **NETWORKS["resnet18"])


def test_wider_networks_that_timm_has_no_name_for(tmp_path: Path) -> None:
    source = checkpoint("resnet50", width=2, layers=[1, 1, 1, 1], channels=[32, 32, 32, 32])  # as R50w2x: stem of 128
    convert(source, tmp_path / "wide.safetensors", "timm")
    for output, to in (("folder", "timm"), ("a.pth", "lightly-train"), ("a.pth", "torchvision")):
        with pytest.raises(UserError, match="does not fit these weights") as error:
            convert(source, tmp_path / output, to)
        assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["wide.safetensors"]


def test_convolutional_stem_and_heads_are_read_back(tmp_path: Path) -> None:
    """Neither is told by shapes alone, and timm has no such network."""
    source = checkpoint("vit_small_patch16_224", conv_stem=True, depth=1, num_heads=12, img_size=64)
    convert(source, tmp_path / "a.safetensors", "timm")
    back = read_checkpoint(tmp_path / "a.safetensors")
    torch.testing.assert_close(features(back.backbone), features(source.backbone))
    torch.save(source.backbone.state_dict(), tmp_path / "plain.pth")
    plain = read_checkpoint(tmp_path / "plain.pth")
    assert plain.arguments["conv_stem"] and "6 attention heads" in plain.notes[0]


@pytest.mark.parametrize("name", ["resnet34", "resnext50_32x4d", "wide_resnet50_2"])
def test_resnets_known_by_their_shapes_have_a_name_in_timm(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = timm.create_model(name, num_classes=0, layers=[1, 1, 1, 1], channels=[32, 32, 64, 64])
    found = resnet_from_state(small.state_dict())
    source = Checkpoint(Path("source.pth"), "official MoCo v1/v2", found.architecture, found.network, found.untrained)
    for output in (tmp_path / "folder", tmp_path / "weights.pth"):
        convert(source, output, "timm")
        printed = capsys.readouterr().out.partition("opens with: ")[2]
        opened = eval(printed, {"timm": timm})  # as a user types it
        assert_equal(opened.state_dict(), small)


def test_networks_that_torchvision_does_not_have(tmp_path: Path) -> None:
    registers = {"depth": 1, "img_size": 32, "reg_tokens": 1, "no_embed_class": True}
    for name, arguments, message in (
        ("resnet50d", NETWORKS["resnet50d"], "does not fit"),
        ("convnext_atto", NETWORKS["convnext_atto"], "this is a ConvNeXt"),
        ("vit_tiny_patch16_224", registers, "no tensor like 'reg_token'"),
    ):
        with pytest.raises(UserError, match=message):
            convert(checkpoint(name, **arguments), tmp_path / "a.pth", "torchvision")


@pytest.mark.parametrize("wrong", ["swapped", "rounded", "nan"])
def test_nothing_is_written_when_features_differ(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint("vit_tiny_patch16_224", depth=2, img_size=32)

    def spoiled(backbone: nn.Module) -> dict[str, torch.Tensor]:
        state = to_torchvision(backbone)
        block = "encoder.layers.encoder_layer_1"
        if wrong == "swapped":  # queries for values
            name = f"{block}.self_attention.in_proj_weight"
            return {**state, name: state[name].flip(0)}
        name = f"{block}.mlp.0.weight"
        return {**state, name: state[name].half().float() if wrong == "rounded" else state[name] / 0}

    monkeypatch.setattr(module, "to_torchvision", spoiled)
    with pytest.raises(UserError, match=r"was not written: torchvision's encoder.layers.encoder_layer_1 differs by"):
        convert(source, tmp_path / "a.pth", "torchvision")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_that_is_read_back_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.save

    def torn(state: dict[str, torch.Tensor], path: Path) -> None:
        right({**state, "conv1.weight": state["conv1.weight"] + 1e-7}, path)

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(UserError, match=r"read back, its conv1.weight differs from what"):
        convert(small(), tmp_path / "a.pth", "timm")
    assert list(tmp_path.iterdir()) == []


def test_torchvision_source_is_proven_with_its_own_network(tmp_path: Path) -> None:
    convert(checkpoint("vit_tiny_patch16_224", depth=2, img_size=32), tmp_path / "a.pth", "torchvision")
    source = read_checkpoint(tmp_path / "a.pth")
    assert source.layout == "torchvision"
    source.backbone.get_parameter("blocks.1.mlp.fc1.weight").data *= 1.001  # as if it had been read wrongly
    with pytest.raises(UserError, match=r"timm's blocks.1 differs by .* from torchvision's"):
        convert(source, tmp_path / "b.pth", "timm")


def test_dead_networks_prove_nothing(tmp_path: Path) -> None:
    source = small()
    for name, value in source.backbone.state_dict().items():
        if name.endswith(("bn1.bias", "bn2.bias")):
            value.fill_(-1e3)
    with pytest.raises(UserError, match="features are all zero"):
        convert(source, tmp_path / "a.pth", "timm")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    source = small()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(source, tmp_path / "model", "timm")
    with pytest.raises(UsageError, match="contains other files than a timm model"):
        convert(source, tmp_path / "model", "timm", overwrite=True)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    for output, to in (("a.pkl", "timm"), ("a", "torchvision"), ("a.safetensors", "lightly-train")):
        with pytest.raises(UsageError, match="does not end in"):
            convert(source, tmp_path / output, to)
    convert(source, tmp_path / "again", "timm")
    convert(source, tmp_path / "again", "timm", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "vit_tiny_patch16_224", "convnext_atto"])
def test_onnx_gives_the_features_for_any_batch_and_size(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    source = checkpoint(name, **NETWORKS[name])
    source.view = replace(source.view, image_size=64)
    told = convert(source, tmp_path / "model.onnx", "onnx")
    of_any_size = not name.startswith("vit")
    assert told["opset"] == 18 and told["images"] == ["batch", 3, *(("height", "width") if of_any_size else (64, 64))]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["moco_plugin"])["source_sha256"] == "5d2e"
    for count, height, width in ((1, 64, 64), (5, 64, 64), *([(1, 224, 96), (2, 65, 131)] if of_any_size else [])):
        images = torch.randn(count, 3, height, width)
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), source.backbone(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match=r"does not end in .onnx"):
        convert(source, tmp_path / "model.pth", "onnx")


def test_networks_with_tied_weights_are_written(tmp_path: Path) -> None:
    model = timm.create_model("coat_tiny", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "coat.pth")
    os.umask(umask := os.umask(0o022))
    convert(read_checkpoint(tmp_path / "coat.pth", architecture="coat_tiny"), tmp_path / "coat", "timm")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "coat").iterdir()}
    assert modes == {"config.json": 0o666 & ~umask, "model.safetensors": 0o666 & ~umask}
    assert_equal(timm.create_model(f"local-dir:{tmp_path / 'coat'}", pretrained=True).state_dict(), model)


def test_conversion_without_detectron2(tmp_path: Path) -> None:
    """Only formats of detectron2 need it."""
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "plain.pth")
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "detectron2":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
from moco_plugin import convert
from moco_plugin.errors import UserError
convert("{tmp_path}/plain.pth", "{tmp_path}/timm.pth", "timm")
try:
    convert("{tmp_path}/plain.pth", "{tmp_path}/d2.pkl")
except UserError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "needs detectron2, which is not installed; run `moco-install-detectron2`" in shown
    assert (tmp_path / "timm.pth").exists() and not (tmp_path / "d2.pkl").exists()


def test_another_package_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md describes it: a distribution on the path whose entry point names a Format."""
    (tmp_path / "other_format.py").write_text(
        "from dataclasses import replace\n"
        "from moco_plugin.checkpoints.to_timm import TIMM\n"
        "FORMAT = replace(TIMM, name='other', suffixes=('.pth',))\n"
    )
    info = tmp_path / "other_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moco_plugin.formats]\nother = other_format:FORMAT\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "plain.pth")
    assert main([str(tmp_path / "plain.pth"), str(tmp_path / "other.pth"), "--to", "other"]) == 0
    assert read_checkpoint(tmp_path / "other.pth").architecture == "resnet18"


def test_onnx_of_one_size_where_torch_exports_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    export = torch.onnx.export

    def fails(*args: Any, dynamic_shapes: Any, **options: Any) -> None:
        if len(dynamic_shapes[0]) > 1:
            raise RuntimeError("Constraints violated")
        export(*args, dynamic_shapes=dynamic_shapes, **options)

    monkeypatch.setattr(torch.onnx, "export", fails)
    source = checkpoint("resnet18", **NETWORKS["resnet18"])
    source.view = replace(source.view, image_size=64)
    assert convert(source, tmp_path / "model.onnx", "onnx")["images"] == ["batch", 3, 64, 64]
    assert "images: batch x 3 x 64 x 64 only" in capsys.readouterr().out
