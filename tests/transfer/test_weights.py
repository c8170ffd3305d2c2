"""Weight files: read safely, written reproducibly, and shown to fill the whole backbone."""

import pickle
import re
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from moco_plugin.errors import UserError
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.to_detectron2 import save_zoo_pickle
from moco_plugin.transfer.weights import backbone_tensors, check_input, load_weights
from moco_plugin.weight_files.load import load_file
from tests.helpers.detector_inputs import make_resnet


class Exploit:
    def __reduce__(self) -> tuple:
        return print, ("code in the file was run",)


@pytest.mark.parametrize("protocol", range(5))
def test_what_the_zoo_holds_is_read(tmp_path: Path, protocol: int) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"model": OrderedDict(a=array, b=array.T), "n": np.float64(2.5), "list": ["x", 1, True, None]}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_file(tmp_path / "zoo.pkl").content
    assert np.array_equal(found["model"]["a"], array) and np.array_equal(found["model"]["b"], array.T)
    assert found["n"] == 2.5 and found["list"] == ["x", 1, True, None]


def test_saved_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.array(7)
    text = "res" + "net"
    save_zoo_pickle(tmp_path / "1.pkl", {"a": a, "b": b}, {"x": text, "y": text})
    save_zoo_pickle(tmp_path / "2.pkl", {"b": b, "a": np.asfortranarray(a)}, {"x": text, "y": "".join(text)})
    assert (tmp_path / "1.pkl").read_bytes() == (tmp_path / "2.pkl").read_bytes()
    with open(tmp_path / "1.pkl", "rb") as file:
        content = pickle.load(file, encoding="latin1")  # as detectron2 reads it
    assert content["__author__"] == "MOCO" and content["matching_heuristics"] is True
    assert content["moco_plugin"] == {"x": "resnet", "y": "resnet"}
    assert np.array_equal(content["model"]["a"], a) and content["model"]["b"].shape == ()


def fpn_detector() -> torch.nn.Module:
    return build_model(load_detector_config("demo/scenes_R_18_FPN_quarter", ["MODEL.DEVICE", "cpu"]))


def arrays() -> dict[str, np.ndarray]:
    """A random quarter-width ResNet-18 under detectron2's names, as a converter would write it."""
    state = make_resnet(DEPTH=18, RES2_OUT_CHANNELS=16).state_dict()
    return {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}


def test_full_coverage_puts_the_weights_in_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, weights, model = tmp_path / "full.pkl", arrays(), fpn_detector()
    save_zoo_pickle(path, {**weights, "stem.fc.weight": np.zeros((8, 128), np.float32)}, {})
    with caplog.at_level("INFO"):
        # stem, 8 blocks of 2 convolutions, 4 shortcuts (the stem is wider than res2): 21 times weight and norm
        assert load_weights(model, str(path)).missing == ()
    assert f"weights: 105 of 105 backbone tensors filled from {path}" in caplog.text
    state = model.state_dict()
    for name, array in weights.items():
        assert np.array_equal(state[f"backbone.bottom_up.{name}"].numpy(), array)


def test_what_is_not_filled_is_named(tmp_path: Path) -> None:
    path, weights = tmp_path / "part.pkl", arrays()
    del weights["res3.1.conv2.weight"], weights["stem.conv1.norm.running_var"]
    weights["res2.0.conv1.weight"] = np.zeros((16, 64, 1, 1), np.float32)  # of the wrong shape
    save_zoo_pickle(path, weights, {})
    names = "stem.conv1.norm.running_var res2.0.conv1.weight res3.1.conv2.weight".split()
    missing = tuple(f"backbone.bottom_up.{name}" for name in names)
    with pytest.raises(UserError, match=f"102 of 105 .*random: {', '.join(missing)}; .*--allow-partial"):
        load_weights(fpn_detector(), str(path))
    assert load_weights(fpn_detector(), str(path), allow_partial=True).missing == missing


@pytest.mark.parametrize(
    ("key", "message"), [("state_dict", "convert_to_d2"), ("model", "weights: 0 of 105 backbone tensors")]
)
def test_checkpoint_of_another_layout_is_refused(key: str, message: str, tmp_path: Path) -> None:
    torch.save({key: {f"module.encoder_q.{name}": torch.zeros(1) for name in arrays()}}, tmp_path / "moco.pth")
    with pytest.raises(UserError, match=message):
        load_weights(fpn_detector(), str(tmp_path / "moco.pth"))


def test_detectrons_own_zoo_is_read_as_detectron2_reads_it(tmp_path: Path) -> None:
    filled = {"conv1_w": np.full((64, 3, 7, 7), 2, np.float32), "conv1_w_momentum": np.zeros(3, np.float32)}
    for content in (filled, {"blobs": filled, "cfg": "text"}):
        (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
        model = fpn_detector()
        assert len(load_weights(model, str(tmp_path / "zoo.pkl"), allow_partial=True).missing) == 104
        assert (model.backbone.bottom_up.stem.conv1.weight == 2).all()


def test_detectors_own_checkpoint_fills_everything(tmp_path: Path) -> None:
    source = fpn_detector()
    torch.save({"model": source.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    model = fpn_detector()
    assert load_weights(model, str(tmp_path / "model_final.pth")).missing == ()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_random_initialisation_and_unreadable_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fpn_detector()
    with caplog.at_level("INFO"):
        load_weights(model, "")
    assert "weights: none, random initialisation" in caplog.text
    with pytest.raises(UserError, match="does not exist"):
        load_weights(model, str(tmp_path / "absent.pkl"))
    for name in ("unsafe.pkl", "unsafe.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": Exploit()}))
        with pytest.raises(UserError, match=f"{name} .*could run code"):
            load_weights(model, str(tmp_path / name))
    assert "code in the file was run" not in capsys.readouterr().out


# what the converter writes beside weights of a ResNet-50, and of a ViT-S as v3 has it
INPUT = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
BOTTLENECKS = {"MODEL.RESNETS.NUM_GROUPS": 1, "MODEL.RESNETS.WIDTH_PER_GROUP": 64, "MODEL.RESNETS.STRIDE_IN_1X1": False}
ANY_WIDTH = {"MODEL.BACKBONE.NAME": "build_any_width_resnet_fpn_backbone"}


def resnet(depth: int, channels: int, **more: Any) -> dict[str, Any]:
    shape = {"DEPTH": depth, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": channels}
    keys = {f"MODEL.RESNETS.{key}": value for key, value in shape.items()}
    return {"architecture": f"resnet{depth}", "settings": {**INPUT, **keys, **more}}


RESNET, RESNET18, QUARTER = resnet(50, 256, **BOTTLENECKS), resnet(18, 64), resnet(18, 16, **ANY_WIDTH)
VIT = {
    "architecture": "vit_small_patch16_224",
    "settings": {
        **INPUT,
        "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME": "vit_small_patch16_224",
        "MODEL.TIMM.ARGS": ["num_heads", 12, "drop_path_rate", 0.1, "dynamic_img_size", True],
    },
}
C4, FPN = "voc/pascal_voc_R_50_C4_24k", "demo/scenes_R_18_FPN_quarter"
PYRAMID = "timm/coco_vit_small_pyramid_1x_moco"


def config(name: str, overrides: str = "") -> CfgNode:
    return load_detector_config(name, shlex.split(overrides))


@pytest.mark.parametrize(
    ("name", "overrides", "metadata"),
    [
        (f"{C4}_moco", "", RESNET),
        (f"{C4}_moco", "MODEL.RESNETS.NORM FrozenBN", RESNET),
        (f"{C4}_moco", "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64", RESNET18),
        (PYRAMID, "", VIT),
        (PYRAMID, "MODEL.TIMM.NAME vit_small_patch16_224.augreg_in1k", VIT),
        # two layers a block: there is no convolution that the stride could be in instead
        (f"{FPN}_moco", "MODEL.RESNETS.STRIDE_IN_1X1 True", QUARTER),
        (C4, "", {}),  # a file of others says nothing
    ],
)
def test_weights_that_fit_the_config_pass(name: str, overrides: str, metadata: dict) -> None:
    check_input(config(name, overrides), metadata)


MOCO = f"{C4}_moco"
MEAN, STD, ARGS, STRIDE = "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.TIMM.ARGS", "MODEL.RESNETS.STRIDE_IN_1X1"


@pytest.mark.parametrize(
    ("name", "overrides", "metadata", "message"),
    [
        (C4, "", RESNET, "INPUT.FORMAT is BGR, .* made with RGB; choose the config that ends in _moco, or pass INPUT"),
        (
            MOCO,
            f"{MEAN} [1,2,3]",
            RESNET,
            rf'{MEAN} is \[1, .* \[123.675, 11.*pass {MEAN} "\[123.675, 116.28, 103.53\]"$',
        ),
        (MOCO, f"{STD} [1,1,1]", RESNET, rf"{STD} is \[1, 1, 1\].*\[58.395"),
        (MOCO, f"{STRIDE} True", RESNET, f"is True, .* with False; .*pass {STRIDE} False$"),
        (MOCO, "", RESNET18, "is 50, .* with 18; .*pass MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64$"),
        (MOCO, "MODEL.RESNETS.DEPTH 34", RESNET, "DEPTH is 34, .* with 50; .*pass MODEL.RESNETS.DEPTH 50$"),
        (MOCO, "MODEL.RESNETS.NORM GN", RESNET, "NORM is GN, .* with BN; .*pass MODEL.RESNETS.NORM BN$"),
        (MOCO, "", QUARTER, "NAME is build_resnet_backbone, .*pass .*any_width_resnet_backbone .*RES2_OUT_CHANNELS 16"),
        (MOCO, "MODEL.RESNETS.NUM_BLOCKS [1,1,1,1]", RESNET, r'pass MODEL.RESNETS.NUM_BLOCKS "\[\]"'),
        (PYRAMID, "MODEL.TIMM.NAME vit_base_patch16_224", VIT, "base.* with vit_small.*pass MODEL.TIMM.NAME vit_small"),
        (
            PYRAMID,
            f"{ARGS} \"['drop_path_rate', 0.2]\"",
            VIT,
            r"pass .*ARGS \"\['drop_path_rate', 0.2, 'num_heads', 12\]",
        ),
        (PYRAMID, "", RESNET, "MODEL.BACKBONE.NAME is build_timm_fpn_backbone, .* resnet50 for build_resnet_backbone"),
        (MOCO, "", VIT, "vit_small_patch16_224 for build_timm_fpn_backbone and its like"),
    ],
)
def test_weights_that_contradict_the_config_are_refused(
    name: str, overrides: str, metadata: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_input(config(name, overrides), metadata)
    assert "\n" not in str(error.value)


def test_a_contradiction_stops_loading(tmp_path: Path) -> None:
    save_zoo_pickle(tmp_path / "w.pkl", arrays(), QUARTER)
    cfg = config(f"{FPN}_moco", "MODEL.DEVICE cpu")
    assert load_weights(fpn_detector(), str(tmp_path / "w.pkl"), cfg=cfg).missing == ()
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is BGR"):
        load_weights(fpn_detector(), str(tmp_path / "w.pkl"), allow_partial=True, cfg=cfg)


def test_the_name_of_a_released_checkpoint_asks_for_conversion() -> None:
    message = r"released checkpoint.*run tools/convert_to_d2\.py moco_v2_200ep moco_v2_200ep\.pkl"
    with pytest.raises(UserError, match=message):
        load_weights(fpn_detector(), "moco_v2_200ep")


def test_c4_counts_res5_in_the_heads_but_not_the_extra_norm(tmp_path: Path) -> None:
    model = build_model(config(f"{C4}_moco", "MODEL.DEVICE cpu MODEL.RESNETS.NORM BN"))
    names = backbone_tensors(model)
    assert len(names) == 53 * 5  # all of a ResNet-50: 53 convolutions, each with a norm
    assert "roi_heads.res5.2.conv3.norm.running_var" in names
    assert [n for n in model.state_dict() if n.startswith("roi_heads.res5.norm.")] and not [
        n for n in names if ".norm.norm" in n or n.startswith("roi_heads.res5.norm")
    ]
    state = {re.sub(r"^(backbone|roi_heads)\.", "", n): model.state_dict()[n].numpy() for n in names}
    save_zoo_pickle(tmp_path / "r50.pkl", state, {})
    assert load_weights(model, str(tmp_path / "r50.pkl")).missing == ()
    state = {name: array for name, array in state.items() if not name.startswith("res5")}
    save_zoo_pickle(tmp_path / "no_res5.pkl", state, {})
    with pytest.raises(UserError, match=r"weights: 215 of 265 .*roi_heads\.res5\.0"):
        load_weights(model, str(tmp_path / "no_res5.pkl"))
