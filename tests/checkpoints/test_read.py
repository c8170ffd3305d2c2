"""Reading checkpoints: what is found in them, complete or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone
from moco_plugin.checkpoints.convert import describe
from moco_plugin.checkpoints.networks import resnet_from_state, vit_from_state
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UsageError, UserError
from moco_plugin.methods.moco import MoCo
from moco_plugin.pretraining.config import config_dict, load_config
from moco_plugin.transfer.to_detectron2 import save_zoo_pickle
from tests.helpers.checkpoints import OFFICIAL, official
from tests.helpers.foreign import detectron2_pickle
from tests.helpers.networks import features, narrow_resnet, prefixed, seen, tiny_vit


def zeros(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The names and shapes of a network's weights, at no cost."""
    with torch.device("meta"):
        state = build().state_dict()
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("model", "expected"),
    [*zip(OFFICIAL[:-1], OFFICIAL[:-1], strict=True), ("wide_resnet50_2", "wide_resnet50, base width 128")],
)
def test_resnets_are_known_by_their_shapes(model: str, expected: str) -> None:
    state = zeros(lambda: timm.create_model(model, num_classes=0))
    backbone = resnet_from_state(state)
    assert backbone.architecture == expected
    assert backbone.network.state_dict().keys() == state.keys()
    if model in ("resnet18", "resnext50_32x4d"):
        assert backbone.untrained().state_dict().keys() == state.keys()


@pytest.mark.parametrize(
    "build",
    [
        lambda: create_backbone("resnet50", width=2, layers=[1, 1, 1, 1], channels=(32, 16, 16, 16)),  # R50w2x
        lambda: create_backbone("resnet18", width=2, layers=[1, 1, 1, 1], channels=(8, 16, 32, 64)),
        lambda: timm.create_model("resnext50_32x4d", num_classes=0, layers=(1, 1, 1, 1)),
        lambda: timm.create_model("wide_resnet50_2", num_classes=0, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)),
        lambda: create_backbone("resnet18", small_stem=True, layers=[1, 1, 1, 1], channels=(64, 8, 8, 8)),
        lambda: narrow_resnet(in_chans=1),
    ],
)
def test_resnets_of_other_widths_compute_the_same(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = seen(build())
    network = resnet_from_state(model.state_dict()).network
    images = torch.randn(2, model.state_dict()["conv1.weight"].shape[1], 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch16_224", {"depth": 2}),
        ("vit_base_patch16_224", {"depth": 1, "img_size": 64}),
        ("vit_small_patch32_224", {"depth": 1, "img_size": 96}),
        ("vit_tiny_patch16_224", {"depth": 1, "patch_size": 8, "img_size": 32}),
        ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"depth": 1, "init_values": 0.5, "qk_norm": True, "qkv_bias": False}),
        ("vit_tiny_patch16_224", {"depth": 1, "pre_norm": True, "reg_tokens": 4, "no_embed_class": True}),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 128, "num_heads": 2, "mlp_ratio": 3.0}),
    ],
)
def test_vits_are_known_by_their_shapes(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    found = vit_from_state(model.state_dict())
    torch.testing.assert_close(features(found.network), features(model))
    assert found.untrained().state_dict().keys() == model.state_dict().keys()
    if "embed_dim" not in arguments and "patch_size" not in arguments:
        assert found.architecture == name
    if not arguments:
        assert found.arguments == {}


HEAD = "fc.0.bias fc.0.weight fc.2.bias fc.2.weight".split()


def test_own_layout(tiny_run: Path) -> None:
    path = tiny_run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    assert (checkpoint.layout, checkpoint.architecture) == ("moco_plugin", "resnet18")
    assert (checkpoint.method, checkpoint.epoch, checkpoint.view.image_size) == ("moco", 2, 32)
    assert sorted(checkpoint.head) == HEAD
    assert checkpoint.unused == [] and checkpoint.encoders == ("query", "key")
    state = torch.load(path, weights_only=True)["state_dict"]
    for key, value in checkpoint.backbone.state_dict().items():
        assert torch.equal(value, state[f"method.encoder_q.backbone.{key}"])
    state, one, other = torch.get_rng_state(), checkpoint.untrained(), checkpoint.untrained()
    assert torch.equal(one.state_dict()["conv1.weight"], other.state_dict()["conv1.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def own(backbone: str, image_size: int = 64, **arguments: Any) -> tuple[dict[str, Any], nn.Module]:
    """A checkpoint of this project, as Lightning saves it, and its backbone."""
    overrides = ["data.root=x", f"backbone={backbone}", f"data.image_size={image_size}"]
    config = config_dict(load_config("moco_v2", overrides))
    config["backbone_args"] = arguments
    model = seen(create_backbone(backbone, image_size=image_size, **arguments))
    method = MoCo(model, 8, queue_size=16)
    content = {
        "epoch": 4,
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"config": config},
        "state_dict": prefixed("method.", method.state_dict()),
    }
    return content, model.eval()  # the method's own batch norm starts in training mode


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("efficientnet_b0", {}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
        ("resnet50d", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1], "embed_dim": 12, "num_heads": [1, 2]}),
        ("vit_small_patch16_224", {"depth": 1, "num_heads": 12, "sincos_position": True}),
    ],
)
def test_own_checkpoints_name_their_architecture(backbone: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    content, model = own(backbone, **arguments)
    torch.save(content, tmp_path / "last.ckpt")
    before = torch.get_rng_state()
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(torch.get_rng_state(), before)
    assert (checkpoint.architecture, checkpoint.epoch, checkpoint.view.image_size) == (backbone, 5, 64)
    torch.testing.assert_close(features(checkpoint.backbone), features(model))


def test_architecture_of_a_plain_state_dict_is_given(tmp_path: Path) -> None:
    model = seen(timm.create_model("efficientnet_b0", num_classes=7))
    path = tmp_path / "weights.pth"
    torch.save({"model": prefixed("module.", model.state_dict())}, path)
    with pytest.raises(UserError, match=r"no known layout|give --architecture"):
        read_checkpoint(path)
    model.reset_classifier(0)
    checkpoint = read_checkpoint(path, architecture="efficientnet_b0")
    torch.testing.assert_close(features(checkpoint.backbone), features(model))
    assert (checkpoint.layout, checkpoint.unused) == ("timm", [])
    with pytest.raises(UserError, match=r"not those of efficientnet_b1: Missing keys: blocks"):
        read_checkpoint(path, architecture="efficientnet_b1")
    with pytest.raises(UsageError, match=r"timm has no model of that name; did you mean 'efficientnet_b0'"):
        read_checkpoint(path, architecture="eficientnet_b0")


def detector(config: str, *overrides: Any) -> Any:
    import moco_plugin.transfer  # isort: skip  # makes what detectron2 lacks, and registers the backbones
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from moco_plugin.schema import find_config

    cfg = get_cfg()
    cfg.merge_from_file(str(find_config(config, "detectron2")))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *overrides])
    assert moco_plugin.transfer
    return build_model(cfg).eval()


@pytest.mark.parametrize("kind", ["C4", "FPN"])
def test_whole_detectors_are_read_back(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "FPN":
        model = detector("demo/scenes_R_18_FPN_quarter")
        trunk = model.backbone.bottom_up
    else:
        resnets = "NORM BN STEM_OUT_CHANNELS 8 RES2_OUT_CHANNELS 32 WIDTH_PER_GROUP 8 NUM_BLOCKS [1,1,1,1]".split()
        names = [f"MODEL.RESNETS.{name}" for name in resnets[::2]]
        overrides = [part for pair in zip(names, resnets[1::2], strict=True) for part in pair]
        name = "build_any_width_resnet_backbone"
        model = detector("voc/pascal_voc_R_50_C4_24k_moco", "MODEL.BACKBONE.NAME", name, *overrides)
        trunk = model.backbone
    seen(model)
    torch.save({"model": model.state_dict(), "iteration": 5, "optimizer": {}}, tmp_path / "model_final.pth")
    checkpoint = read_checkpoint(tmp_path / "model_final.pth")
    assert (checkpoint.layout, checkpoint.unused) == ("detectron2", [])
    assert "strides in 3x3 convolutions and RGB images" in checkpoint.notes[0]
    images = torch.randn(1, 3, 64, 64)
    stages: Any = checkpoint.backbone.forward_intermediates(images, intermediates_only=True)
    expected = trunk(images)
    if kind == "C4":
        expected["res5"] = model.roi_heads.res5[:1](expected["res4"])
    for stage in (4, 5) if kind == "C4" else (2, 3, 4, 5):
        torch.testing.assert_close(stages[stage - 1], expected[f"res{stage}"])


def test_detectron2_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    sample = detectron2_pickle()
    sample.write(tmp_path / "ours.pkl")
    ours = read_checkpoint(tmp_path / "ours.pkl")
    assert (ours.method, ours.epoch, ours.notes) == ("moco_v2", 7, [])
    assert sorted(ours.head) == ["fc.0.weight", "fc.2.weight"]
    from moco_plugin.weight_files.load import load_file

    arrays = load_file(tmp_path / "ours.pkl").content["model"]
    msra = {**arrays, "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).numpy(), "pixel_std": torch.ones(3).numpy()}
    save_zoo_pickle(tmp_path / "zoo.pkl", msra, {})
    with pytest.raises(UserError, match="trained from MSRA's ResNet"):
        read_checkpoint(tmp_path / "zoo.pkl")
    save_zoo_pickle(tmp_path / "strided.pkl", arrays, {"stride_in_1x1": True, "input_format": "RGB"})
    with pytest.raises(UserError, match="strides in 1x1"):
        read_checkpoint(tmp_path / "strided.pkl")


def test_unused_tensors_are_listed(tmp_path: Path) -> None:
    file = official("resnet18", channels=(8, 8, 8, 8))
    file["state_dict"] |= {"module.gate.weight": torch.zeros(1), "module.mystery": torch.zeros(1)}
    torch.save(file, tmp_path / "moco.pth")
    unused = ["state_dict.module.gate.weight", "state_dict.module.mystery"]
    checkpoint = read_checkpoint(tmp_path / "moco.pth")
    assert (checkpoint.method, checkpoint.epoch, list(checkpoint.head)) == ("moco_v2", 200, HEAD)
    lines = describe(checkpoint)
    assert "unused        2 tensors, neither read nor known to be heads or queues:" in lines
    assert [line.strip() for line in lines[-2:]] == unused


def test_files_that_are_no_checkpoints(tmp_path: Path, tiny_run: Path) -> None:
    whole = (tiny_run / "checkpoints" / "last.ckpt").read_bytes()

    def spoiled(name: str, value: Tensor | None) -> dict[str, Any]:
        """An official checkpoint in which a weight is another, new, or missing."""
        file = official("resnet18", channels=(8, 8, 8, 8))
        file["state_dict"].pop(f"module.encoder_q.{name}", None)
        file["state_dict"] |= {} if value is None else {f"module.encoder_q.{name}": value}
        return file

    convolutions = tiny_vit("vit_tiny_patch16_224").state_dict()
    convolutions["patch_embed.proj.0.weight"] = convolutions.pop("patch_embed.proj.weight")
    unnamed, _ = own("resnet18", channels=[8, 8, 8, 8])
    unnamed["hyper_parameters"]["config"]["backbone"] = "convnext_of_tomorrow"
    huge, _ = own("vit_tiny_patch16_224", depth=1)
    huge["hyper_parameters"]["config"]["backbone_args"]["depth"] = 10**7
    cases: dict[str, tuple[Any, str]] = {
        "truncated": (whole[: len(whole) // 2], "is not a complete torch checkpoint"),
        "text": (b"hello", "is not a complete torch checkpoint"),
        "empty": (b"", "is not a complete torch checkpoint"),
        "list": ([1, 2], "contains a list"),
        "other": ({"weights": {"a": torch.zeros(1)}}, "has no known layout .its first keys: weights."),
        "tuple": (b"\x80\x02})" + b"2\x86" * 20 + b"K\x01s.", "its first keys: tuple"),  # of a million empty ones
        "incomplete": (spoiled("layer2.0.conv1.weight", None), r"Missing keys: layer2\.0\.conv1\.weight"),
        "block": (spoiled("layer1.0.se.weight", torch.zeros(1)), r"unknown keys: layer1\.0\.se\.weight"),
        "layer": (spoiled("gate.weight", torch.zeros(1)), r"encoder were not read, .*gate\.weight first.*--archi"),
        "diverged": (spoiled("bn1.bias", torch.full((64,), torch.nan)), r"bn1\.bias contains numbers that are not"),
        "integers": (spoiled("bn1.bias", torch.zeros(64).char()), r"bn1\.bias contains int8 numbers; expected float32"),
        "sparse": (spoiled("conv1.weight", torch.eye(3).to_sparse()), r"not those of a plain ResNet"),
        "convolutions": (prefixed("module.base_encoder.", convolutions), "Missing keys: one of patch_embed.proj"),
        "two": ({"a": narrow_resnet().state_dict(), "b": narrow_resnet().state_dict()}, "several networks.*'a.', 'b.'"),
        "unnamed": (unnamed, "'convnext_of_tomorrow', which timm does not have"),
        "huge": (huge, "argument depth as 1e.07; expected at most 512"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=message) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "absent")


def test_folders_that_timm_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder without config\.json"):
        read_checkpoint(tmp_path)
    torch.save(narrow_resnet().state_dict(), tmp_path / "pytorch_model.bin")
    for config, message in {
        "{": "is not valid JSON",
        "[]": "is not a JSON object",
        '{"architecture": "hf-hub:someone/model"}': "which timm does not have",
        '{"architecture": "resnet18", "model_args": {"layers": [1000000000]}}': "argument layers as 1e.09",
        '{"architecture": "resnet18", "model_args": {"checkpoint_path": "x"}}': "argument checkpoint_path, which makes timm",
        '{"architecture": "resnet18", "pretrained_cfg": {"mean": "x"}}': "impossible properties of images",
    }.items():
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match=message) as error:
            read_checkpoint(tmp_path)
        assert "\n" not in str(error.value)
