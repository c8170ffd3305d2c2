"""Our ResNet builder against detectron2's own."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from moco_plugin.errors import UserError
from moco_plugin.transfer.components.resnet import resnet_for_weights
from tests.helpers.detector_inputs import make_resnet


@pytest.mark.parametrize("depth", [18, 50])
def test_same_names_shapes_and_features_as_detectron2(depth: int) -> None:
    options = {"DEPTH": depth, "RES2_OUT_CHANNELS": 64 if depth == 18 else 256}
    ours = make_resnet(**options).eval()
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.update({"NORM": "BN", "OUT_FEATURES": ["res2", "res3", "res4", "res5"], **options})
    theirs = build_backbone(cfg).eval()
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for stage, features in theirs(images).items():
            assert torch.equal(ours(images)[stage], features)
    assert ours.output_shape() == theirs.output_shape()


def test_any_width_and_number_of_blocks() -> None:
    network = make_resnet(DEPTH=18, RES2_OUT_CHANNELS=16, NUM_BLOCKS=[1, 2, 3, 1])
    assert [len(stage) for stage in network.stages] == [1, 2, 3, 1]
    assert network.output_shape()["res5"] == ShapeSpec(channels=128, stride=32)
    assert network.stem.conv1.weight.shape == (64, 3, 7, 7)

    dilated = make_resnet(DEPTH=50, RES2_OUT_CHANNELS=32, RES5_DILATION=2)
    assert dilated.output_shape()["res5"] == ShapeSpec(channels=256, stride=16)


def test_weights_that_make_no_resnet_are_refused() -> None:
    network = make_resnet(DEPTH=18, NUM_BLOCKS=[1, 1, 1, 1], RES2_OUT_CHANNELS=8, STEM_OUT_CHANNELS=8)
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    resnet_for_weights(arrays)
    for wrong, message in (
        ({k: v for k, v in arrays.items() if k != "stem.conv1.norm.weight"}, r"stem\.conv1\.norm\.weight"),
        ({k: v for k, v in arrays.items() if not k.startswith("res4")}, r"'res4\.0\.conv2\.weight' is missing"),
        ({**arrays, "res2.0.conv9.weight": arrays["res2.0.conv1.weight"]}, "(?i)unexpected"),
        ({**arrays, "stem.conv1.weight": np.zeros((8, 3, 3, 3), np.float32)}, "filters are 3 x 3"),
    ):
        with pytest.raises(UserError, match=message):
            resnet_for_weights(wrong)
