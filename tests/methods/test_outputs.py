"""Backbones that give something else than one vector for each image."""

from typing import Any

import pytest
import torch
from torch import nn

from moco_plugin import MoCo, MoCoV3
from moco_plugin.backbones import check_features, create_backbone
from moco_plugin.errors import UsageError


class Backbone(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor) -> Any:
        return self.output


@pytest.mark.parametrize("method", [MoCo, MoCoV3])
@pytest.mark.parametrize(
    ("output", "found"),
    [
        (torch.zeros(16, 8, 4, 4), r"\(16, 8, 4, 4\)"),
        (torch.zeros(16, 5, 8), r"\(16, 5, 8\)"),
        (torch.zeros(16, 7), r"\(16, 7\)"),
        ({"features": torch.zeros(16, 8)}, "a dict"),
    ],
)
def test_other_outputs_are_refused(method: Any, output: Any, found: str) -> None:
    model = method(Backbone(output), feature_dim=8)
    images = torch.zeros(16, 3, 8, 8)
    with pytest.raises(ValueError, match=f"returned {found}; expected N x feature_dim features, N x 8"):
        model(images, images)


def test_channels_are_named() -> None:
    with pytest.raises(UsageError, match=r"takes images of 4 channels.*backbone_args\.in_chans"):
        check_features(create_backbone("resnet18", in_chans=4), "resnet18", 32)
