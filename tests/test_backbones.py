"""Any timm model under the method, and what the papers change in it."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants as hub

from moco_plugin.backbones import LOADING, check_features, create_backbone, feature_dim
from moco_plugin.errors import UsageError, UserError
from moco_plugin.methods import MoCo, MoCoV3
from tests.conftest import TINY
from tests.helpers.processes import Tool


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("resnet18", {"small_stem": True}),
        ("resnet50", {"layers": [1, 1, 1, 1]}),
        ("resnet50d", {"layers": [1, 1, 1, 1]}),
        ("resnet50", {"width": 2, "layers": [1, 1, 1, 1]}),
        ("resnext50_32x4d", {"layers": [1, 1, 1, 1]}),
        ("efficientnet_b0", {}),
        ("regnety_002", {}),
        ("mobilenetv3_small_100", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch16_224", {"depth": 3}),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 2, 1]}),
    ],
)
def test_any_timm_model_trains(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=32, **arguments)
    dim = check_features(backbone, name, 32)
    assert dim == feature_dim(backbone)
    model = MoCo(backbone, dim, dim=16, queue_size=16, batch_norm_groups=2)
    assert model.encoder_q.head[0].in_features == dim
    first = next(p for p in model.encoder_q.parameters() if p.requires_grad and p.ndim == 4)
    loss, metrics = model(*torch.randn(2, 4, 3, 32, 32))
    loss.backward()
    assert loss.isfinite() and first.grad is not None and first.grad.abs().max() > 0
    assert float(metrics["queue_filled"]) == 4 / 16


@pytest.mark.parametrize(("width", "millions"), [(2, 93.9), (4, 375.4)])
def test_wide_resnets_have_the_papers_size(width: int, millions: float) -> None:
    with torch.device("meta"):
        model = create_backbone("resnet50", width=width)
        features = model(torch.empty(1, 3, 64, 64))
    assert features.shape == (1, 2048 * width) and feature_dim(model) == 2048 * width
    assert model.conv1.out_channels == 64 * width
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_start_and_stem_of_a_resnet() -> None:
    for zero in (False, True):
        model = create_backbone("resnet18", zero_init_last=zero, small_stem=True)
        assert bool((model.layer1[0].bn2.weight == (0 if zero else 1)).all())
        assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def v3_vit(**arguments: Any) -> Any:
    small = {"image_size": 48, "depth": 1, "embed_dim": 16, "num_heads": 2}
    of_v3 = {"weight_init": "moco", "sincos_position": True, "frozen_patch_projection": True}
    return create_backbone("vit_tiny_patch16_224", **small, **of_v3, **arguments)


def test_sincos_position_in_the_order_of_v3s_code() -> None:
    position = v3_vit().pos_embed[0]
    assert (position[0] == 0).all()  # class token
    for row in range(3):
        for column in range(3):
            angles = [[place / 10000 ** (i / 4) for i in range(4)] for place in (row, column)]
            expected = [f(a) for part in angles for f in (math.sin, math.cos) for a in part]
            assert position[1 + 3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_vit_starts_as_v3s() -> None:
    model = v3_vit()
    block = model.blocks[0]
    expected = {
        block.attn.qkv: math.sqrt(6 / (16 + 16)),  # query, key and value each by itself
        block.mlp.fc1: math.sqrt(6 / (16 + 64)),
        model.patch_embed.proj: math.sqrt(6 / (3 * 16 * 16 + 16)),
    }
    for layer, bound in expected.items():
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert not layer.bias.any()
    assert 0 < float(model.cls_token.detach().abs().max()) < 1e-5


def test_frozen_parts_of_a_vit_do_not_move() -> None:
    torch.manual_seed(0)
    model = MoCoV3(v3_vit(), 16, dim=8, hidden_dim=8, projector_layers=3, predictor_last_norm=True, momentum=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        loss, _ = model(*torch.randn(2, 4, 3, 48, 48))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for encoder in ("encoder_q", "encoder_k"):
        for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
            key = f"{encoder}.backbone.{name}"
            assert torch.equal(before[key], model.state_dict()[key]), key
        key = f"{encoder}.backbone.blocks.0.attn.qkv.weight"
        assert not torch.equal(before[key], model.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("vit_tiny_patch16_224", {"width": 2}, "backbone_args.width is for timm's ResNets"),
        ("convnext_atto", {"small_stem": True}, "backbone_args.small_stem is for timm's ResNets"),
        ("resnet18", {"frozen_patch_projection": True}, "resnet18 has no patch projection"),
        ("resnet18", {"sincos_position": True}, "resnet18 has no learned position embedding"),
        ("resnet18", {"chanels": 3}, "backbone_args of resnet18"),
        *(("resnet18", {name: "x"}, f"{name} makes timm read other files.*weights=FILE") for name in sorted(LOADING)),
        ("resnet18", {"pretrained": "/a/file"}, "backbone_args.pretrained is '/a/file'; expected true or false"),
    ],
)
def test_arguments_that_do_not_fit(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_backbone(name, **arguments)


def test_model_without_features_and_image_size_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match="has no features to train"):
        check_features(timm.create_model("resnet18", num_classes=0, global_pool=""), "resnet18", 32)
    with pytest.raises(UsageError, match="does not take images of 32 x 32"):
        check_features(timm.create_model("vit_tiny_patch16_224", num_classes=0), "vit_tiny_patch16_224", 32)


@pytest.mark.parametrize(
    ("backbone", "breaks"),
    [
        (["backbone=resnet18", "backbone_args.channels=[4,4,8,8]"], "backbone.layer2.0.downsample.0"),
        (["backbone=mobileone_s0"], "stem"),
        (["backbone=resnet18", "backbone_args.channels=[8,8,8,8]"], ""),
    ],
)
def test_layout_that_torch_cannot_train_is_left(backbone: list[str], breaks: str, tool: Tool, tmp_path: Path) -> None:
    tiny = [option for option in TINY if not option.startswith(("backbone", "knn."))]
    shown = tool(
        "pretrain", *tiny, *backbone, "schedule.epochs=1", "trainer.accelerator=cpu", f"out={tmp_path / 'run'}"
    ).stdout
    said = "channels_last is off: torch's CPU convolutions fail in this layout at encoder_q.backbone"
    assert (said in shown) == bool(breaks) and breaks in shown


def test_weights_of_a_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    sentence = "of resnet18 cannot be fetched .http://127.0.0.1:9 does not answer: .*refused.*; .*give weights=FILE$"
    with pytest.raises(UserError, match=sentence):
        create_backbone("resnet18", pretrained=True)
    assert hub.HF_HUB_OFFLINE is False
