"""Networks of timm's as detectron2's backbones: their maps, gradients, frozen parts, pyramids and weights."""

import math
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.utils.events import EventStorage
from timm.layers import FrozenBatchNormAct2d
from torch import nn

from moco_plugin.errors import UsageError
from moco_plugin.schema import find_config
from moco_plugin.transfer.components.timm_backbone import SimplePyramid, TimmBackbone
from moco_plugin.transfer.config import fit_device, load_detector_config
from moco_plugin.transfer.to_detectron2 import save_zoo_pickle
from moco_plugin.transfer.weights import backbone_tensors, load_weights
from tests.helpers.detector_inputs import batch

RESNET = {"channels": [8, 16, 24, 32]}
SHALLOW = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
FPN = {"builder": "build_timm_fpn_backbone"}
VIT = {"depth": 2, "embed_dim": 24, "num_heads": 3}
NETWORKS: dict[str, dict] = {
    "resnet18": {},
    "resnet50": SHALLOW,
    "resnet50d": SHALLOW,
    "wide_resnet50_2": SHALLOW,
    "resnext50_32x4d": SHALLOW,
    "efficientnet_b0": {},
    "regnety_002": {},
    "mobilenetv3_small_100": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"depth": 3},
    "vit_small_patch16_224": {"depth": 2, "num_heads": 12},  # v3's number of heads
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 2, 1], "embed_dim": 24},
}


def pairs(arguments: dict) -> list:
    return [part for pair in arguments.items() for part in pair]


def config(
    name: str, arguments: dict | None = None, builder: str = "build_timm_backbone", **options: object
) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = options.pop("FREEZE_AT", 0)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.TIMM.update({"NAME": name, "ARGS": pairs(arguments or {}), **options})
    return cfg


def build(*arguments: object, **options: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(config(*arguments, **options))


class Detector(nn.Module):
    """As much of a detector as loading looks at."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_gradients_and_coverage(name: str, tmp_path: Path) -> None:
    backbone = build(name, NETWORKS[name])
    plain = name.startswith("vit")
    shapes = backbone.output_shape()
    expected = {"res4": 16} if plain else {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    assert {map_name: shape.stride for map_name, shape in shapes.items()} == expected

    # the same weights in a network that timm itself builds, images of a shape it was not made for
    any_size = {"dynamic_img_size": True} if plain else {"strict_img_size": False} if "swin" in name else {}
    own = timm.create_model(name, num_classes=0, **NETWORKS[name], **any_size).eval()
    own_state = own.state_dict()
    state = backbone.state_dict()
    for key, tensor in state.items():
        own_state[key.removeprefix("model.")].copy_(tensor)
    images = torch.randn(1, 3, 64, 96)
    maps = backbone.eval()(images)
    with torch.no_grad():
        theirs = own.forward_intermediates(images, indices=len(expected), output_fmt="NCHW", intermediates_only=True)
    for (map_name, found), features in zip(maps.items(), theirs, strict=True):
        shape = shapes[map_name]
        assert found.shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert torch.allclose(found, features, atol=1e-5) and features.any()

    # each parameter has a gradient, so that training in many processes neither stops nor waits
    sum(found.pow(2).sum() for found in maps.values()).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    first = next(p for p in backbone.parameters() if p.ndim == 4)
    assert first.grad.abs().max() > 0

    # a file under timm's names fills all, on its own and below a pyramid
    arrays = {f"model.{key}": torch.randn(tensor.shape).numpy() for key, tensor in own_state.items()}
    save_zoo_pickle(tmp_path / "timm.pkl", arrays, {})
    pyramid = build(name, NETWORKS[name], builder="build_timm_fpn_backbone")
    own_names = {key for key in state if not key.endswith("num_batches_tracked")}
    for network, prefix in ((backbone, "backbone."), (pyramid, "backbone.bottom_up.")):
        detector = Detector(network)
        assert set(backbone_tensors(detector)) == {prefix + key for key in own_names}
        assert load_weights(detector, str(tmp_path / "timm.pkl")).missing == ()
        for key, tensor in detector.state_dict().items():
            if key.removeprefix(prefix) in own_names:
                assert torch.equal(tensor, torch.from_numpy(arrays[key.removeprefix(prefix)]))


def test_names_of_maps_and_unused_layers() -> None:
    backbone = build("resnet18", RESNET, OUT_FEATURES=["res3", "res2"])
    assert list(backbone.output_shape()) == ["res2", "res3"] and backbone.size_divisibility == 8
    assert not [key for key in backbone.state_dict() if key.startswith(("model.layer3", "model.layer4", "model.fc"))]
    dilated = build("resnet18", {**RESNET, "output_stride": 16}, OUT_FEATURES=["res1", "res5"])
    assert {name: shape.stride for name, shape in dilated.output_shape().items()} == {"res1": 2, "res5": 16}
    assert build("vit_tiny_patch16_224", {"depth": 2, "patch_size": 8}).output_shape()["res3"].stride == 8


def test_arguments_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "MODEL: {BACKBONE: {NAME: build_timm_backbone}, TIMM: {NAME: resnet18, ARGS: [channels, [8, 8, 8, 16]]}}\n"
        "VERSION: 2\n"
    )
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert build_backbone(cfg).output_shape()["res5"].channels == 16
    cfg.merge_from_list(["MODEL.TIMM.ARGS", "['channels', (8, 8, 8, 24), 'output_stride', 16]"])
    assert build_backbone(cfg).output_shape()["res5"] == ShapeSpec(channels=24, stride=16)
    for wrong in (["channels"], [8, "channels"]):
        cfg.MODEL.TIMM.ARGS = wrong
        with pytest.raises(UsageError, match=r"MODEL\.TIMM\.ARGS is a list of pairs, such as"):
            build_backbone(cfg)


def test_norms() -> None:
    def kinds(norm: str, name: str = "efficientnet_b0") -> set[str]:
        modules = build(name, NETWORKS[name], NORM=norm).modules()
        return {type(m).__name__ for m in modules if "Norm" in type(m).__name__ and hasattr(m, "weight")}

    assert kinds("BN") == {"BatchNormAct2d"} and kinds("SyncBN") == {"SyncBatchNormAct"}
    assert kinds("FrozenBN") == {"FrozenBatchNormAct2d"}
    assert kinds("SyncBN", "resnet18") == {"SyncBatchNorm"}
    assert kinds("SyncBN", "convnext_atto") == kinds("BN", "convnext_atto") == {"LayerNorm2d"}
    backbone = build("resnet18", RESNET, NORM="FrozenBN").train()
    before = backbone.model.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(backbone.model.bn1.running_mean, before)


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen", "norms"),
    [
        ("resnet18", 0, set(), 0),
        ("resnet18", 2, {"conv1", "bn1", "layer1"}, 5),  # bn1, and two in each of two blocks
        ("convnext_atto", 1, {"stem"}, 0),
        ("vit_tiny_patch16_224", 2, {"cls_token", "pos_embed", "patch_embed", "blocks.0"}, 0),
        ("efficientnet_b0", 1, {"conv_stem", "bn1"}, 1),  # with its activation
    ],
)
def test_freezing(name: str, freeze_at: int, frozen: set[str], norms: int) -> None:
    backbone = build(name, NETWORKS[name], FREEZE_AT=freeze_at, NORM="SyncBN")
    for key, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad == (not any(key.startswith(part) for part in frozen)), key
    frozen_norms = [m for m in backbone.modules() if type(m).__name__.startswith("FrozenBatchNorm")]
    assert len(frozen_norms) == norms
    assert all(isinstance(norm.act, nn.SiLU) for norm in frozen_norms if isinstance(norm, FrozenBatchNormAct2d))


def test_simple_pyramid_has_vitdets_layers() -> None:
    pyramid = build("vit_tiny_patch16_224", VIT, builder="build_timm_fpn_backbone")
    assert isinstance(pyramid, SimplePyramid) and pyramid.size_divisibility == 32
    strides = {name: shape.stride for name, shape in pyramid.output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    levels = pyramid(torch.randn(1, 3, 64, 96))
    sizes = [(1, 16, 64 // stride, math.ceil(96 / stride)) for stride in strides.values()]
    assert [tuple(level.shape) for level in levels.values()] == sizes
    assert torch.equal(levels["p6"], levels["p5"][:, :, ::2, ::2])

    cfg = config("vit_tiny_patch16_224", VIT, "build_timm_fpn_backbone")
    cfg.MODEL.FPN.NORM = "LN"
    kinds = [type(module).__name__ for module in build_backbone(cfg).p2]
    assert kinds == ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d", "Conv2d", "Conv2d"]
    assert [type(m).__name__ for m in pyramid.p5] == ["MaxPool2d", "Conv2d", "Conv2d"] and len(pyramid.p4) == 2
    assert [m.out_channels for m in pyramid.p2 if isinstance(m, nn.ConvTranspose2d)] == [12, 6]


@pytest.mark.parametrize(
    ("name", "builder", "features", "sides"),
    [
        ("resnet18", "retinanet_timm", (3, 4, 5), {"p3": 16, "p4": 8, "p5": 4, "p6": 2, "p7": 1}),
        ("vit_tiny_patch16_224", "retinanet_timm", (3, 4, 5), {"p3": 16, "p4": 8, "p5": 4, "p6": 2, "p7": 1}),
        ("resnet18", "timm", (2, 3, 4), {"p2": 32, "p3": 16, "p4": 8, "p5": 4}),
    ],
)
def test_levels_of_a_pyramid(name: str, builder: str, features: tuple[int, ...], sides: dict[str, int]) -> None:
    cfg = config(name, RESNET if name == "resnet18" else VIT, f"build_{builder}_fpn_backbone")
    cfg.MODEL.FPN.IN_FEATURES = [f"res{index}" for index in features]
    network = build_backbone(cfg)
    levels = network(torch.randn(1, 3, 128, 128))
    assert {name: level.shape[-1] for name, level in levels.items()} == sides
    assert list(network.output_shape()) == list(sides) and {level.shape[1] for level in levels.values()} == {16}
    sum(level.sum() for level in levels.values()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"),
    [
        ("", {}, {}, r"MODEL\.TIMM\.NAME is empty"),
        ("resnet5", {}, {}, r"MODEL\.TIMM: unknown backbone 'resnet5'.*did you mean"),
        ("resnet18", {"depht": 3}, {}, r"MODEL\.TIMM: .*depht"),
        ("resnet18", {}, {"NORM": "GN"}, r"MODEL\.TIMM\.NORM is 'GN'; expected BN, SyncBN or FrozenBN"),
        ("resnet18", {}, {"OUT_FEATURES": ["p2"]}, r"ResNet has no map 'p2'.*it has res1, res2, res3, res4, res5"),
        ("eva02_tiny_patch14_224", {"depth": 2}, {}, r"maps of stride 14, and detectron2 takes only powers of two"),
        ("efficientformerv2_s0", {}, {}, r"timm's efficientformerv2_s0 does not take images of any size \("),
        (
            "resnet18",
            {**RESNET, "output_stride": 16},
            FPN,
            r"FPN\.IN_FEATURES .*res5.* of timm's resnet18: Strides 16 16",
        ),
    ],
)
def test_mistakes(name: str, arguments: dict, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        build(name, arguments, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="timm's Linear gives no feature maps"):
        TimmBackbone(nn.Linear(1, 1))


DETECTORS = {
    "coco_timm_FPN_1x_moco": ("resnet18", RESNET),
    "coco_vit_small_pyramid_1x_moco": ("vit_tiny_patch16_224", VIT),
    "coco_retinanet_timm_FPN_1x_moco": ("regnety_002", {}),
}


# as little as possible behind the backbone
SMALL = """
    MODEL.DEVICE cpu MODEL.TIMM.NORM BN MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32
    MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.RETINANET.NUM_CLASSES 3
    MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 INPUT.MASK_FORMAT bitmask
""".split()


@pytest.mark.parametrize("name", DETECTORS)
def test_an_iteration_of_training(name: str) -> None:
    network, arguments = DETECTORS[name]
    own = ["MODEL.TIMM.NAME", network, "MODEL.TIMM.ARGS", pairs(arguments), "MODEL.MASK_ON", "retinanet" not in name]
    cfg = load_detector_config(f"timm/{name}", [*SMALL, *own])
    fit_device(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    inputs = batch(cfg, (70, 100), (90, 64))
    before = model.backbone.bottom_up.state_dict()
    before = {key: value.clone() for key, value in before.items() if key.endswith("running_mean")}
    with EventStorage():
        losses = model(inputs)
    assert all(loss.isfinite() for loss in losses.values()) and ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert next(p for p in model.backbone.bottom_up.parameters() if p.ndim == 4).grad.any()
    after = model.backbone.bottom_up.state_dict()
    assert not any(torch.equal(after[key], value) for key, value in before.items())  # batch norm is trained
    with torch.no_grad():
        assert len(model.eval()(inputs)) == 2


@pytest.mark.parametrize("path", sorted(find_config("timm/coco_timm_FPN_1x_moco", "detectron2").parent.glob("*.yaml")))
def test_shipped_configs_name_networks_that_are_there(path: Path) -> None:
    cfg = load_detector_config(str(path), ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 and cfg.MODEL.TIMM.NORM == "SyncBN" and cfg.INPUT.FORMAT == "RGB"
    fit_device(cfg)
    network = build_backbone(cfg)
    expected = ["p3", "p4", "p5", "p6", "p7"] if "retinanet" in path.name else ["p2", "p3", "p4", "p5", "p6"]
    assert list(network.output_shape()) == expected
    assert all(p.requires_grad for p in network.parameters())
