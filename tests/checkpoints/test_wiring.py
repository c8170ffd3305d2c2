"""What shapes do not tell: heads, prefixes, strides, activations."""

from pathlib import Path

import pytest
import timm
import torch

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.pretraining.weights import wiring_differences
from tests.helpers.networks import TINY_VIT, features, narrow_resnet, other, prefixed, seen, tiny_vit


def test_heads_that_no_file_tells_are_assumed_and_given(tmp_path: Path) -> None:
    model = tiny_vit("vit_small_patch16_224", num_heads=12)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    assumed = read_checkpoint(tmp_path / "vit.pth")
    assert "6 attention heads" in assumed.notes[0] and "num_heads=12" in assumed.notes[0]
    given = read_checkpoint(
        tmp_path / "vit.pth", architecture="vit_small_patch16_224", arguments={"num_heads": 12, **TINY_VIT}
    )
    torch.testing.assert_close(features(given.backbone), features(model))
    assert given.notes == []


@pytest.mark.parametrize(
    ("name", "said", "read"),
    [
        ("resnet50", "resnetaa50 or resnetblur50 has the same shapes: --architecture decides", "resnet50"),
        ("resnetblur18", "taken to be resnet18; resnetblur18 has the same shapes", "resnet18"),
        (
            "vit_base_patch32_clip_quickgelu_224",
            "taken to be CLIP's with GELU; vit_base_patch32_clip_quickgelu_224",
            None,
        ),
        ("vit_base_patch32_clip_224", "has the same shapes: --architecture decides", "vit_base_patch32_clip_224"),
        ("deit_tiny_patch16_224", "taken to have GELU and a layer norm epsilon of 1e-06", "vit_tiny_patch16_224"),
    ],
)
def test_networks_of_the_same_shapes_are_named(name: str, said: str, read: str | None, tmp_path: Path) -> None:
    size = {"depth": 1} if "vit" in name or "deit" in name else {}
    model = seen(timm.create_model(name, num_classes=0, **size))
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    found = read_checkpoint(tmp_path / "bare.pth")
    assert said in found.notes[-1] and found.architecture == (read or found.architecture)
    if name == read:
        torch.testing.assert_close(features(found.backbone), features(model))
    decided = read_checkpoint(tmp_path / "bare.pth", architecture=name, arguments=size)
    torch.testing.assert_close(features(decided.backbone), features(model))
    assert decided.notes == []


def test_prefix_of_one_of_several_networks(tmp_path: Path) -> None:
    one, two = narrow_resnet(), other(narrow_resnet())
    torch.save({**prefixed("left.", one.state_dict()), **prefixed("right.", two.state_dict())}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"several networks are in the file, under 'left\.', 'right\.'.*--prefix"):
        read_checkpoint(tmp_path / "two.pth")
    torch.testing.assert_close(features(read_checkpoint(tmp_path / "two.pth", prefix="right.").backbone), features(two))
    with pytest.raises(UserError, match="no tensor whose name starts with 'middle'"):
        read_checkpoint(tmp_path / "two.pth", prefix="middle")


def test_wiring_is_compared_where_shapes_do_not_tell() -> None:
    six, twelve = (timm.create_model("vit_small_patch16_224", depth=1, num_heads=heads) for heads in (6, 12))
    assert wiring_differences(six, twelve)[0] == ("blocks.0.attn.num_heads", 6, 12)
    resnets = [
        timm.create_model("resnet18", **a)
        for a in ({}, {"act_layer": "gelu"}, {"drop_rate": 0.5}, {"output_stride": 8})
    ]
    plain = resnets[0]
    assert wiring_differences(plain, resnets[1])[0][1:] == ("ReLU", "GELU")
    assert wiring_differences(plain, resnets[2]) == []
    assert any("stride" in name for name, _, _ in wiring_differences(plain, resnets[3]))


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    model = narrow_resnet()
    torch.save(model.half().state_dict(), tmp_path / "half.pth")
    state = read_checkpoint(tmp_path / "half.pth").backbone.state_dict()
    assert state["conv1.weight"].dtype == torch.float32
    assert torch.equal(state["conv1.weight"].half(), model.state_dict()["conv1.weight"])
