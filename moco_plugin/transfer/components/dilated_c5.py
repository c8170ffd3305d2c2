"""The R50-dilated-C5 backbone of the MoCo paper: a dilated res5, then one convolution down to 512 channels."""

from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from moco_plugin.errors import UsageError
from moco_plugin.transfer.components.resnet import build_any_width_resnet_backbone


class DilatedC5(Backbone):
    """A backbone whose last stage is followed by a 3 x 3 convolution with a norm.

    The pre-trained part is named ``bottom_up``, as in detectron2's FPN, so that weights are matched by name.

    Args:
        bottom_up: A backbone that returns ``in_feature``.
        in_feature: The stage to take, N x C x H x W.
        out_channels: Channels of the result; the paper has 512.
        norm: As in detectron2's ``get_norm``.
    """

    def __init__(
        self, bottom_up: Backbone, in_feature: str = "res5", out_channels: int = 512, norm: str = "BN"
    ) -> None:
        super().__init__()
        shape = bottom_up.output_shape()[in_feature]
        self.bottom_up, self.in_feature = bottom_up, in_feature
        self.reduce = Conv2d(
            shape.channels, out_channels, kernel_size=3, padding=1, bias=not norm, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.reduce)
        self._shape = ShapeSpec(channels=out_channels, stride=shape.stride)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Turn N x 3 x H x W images into ``{"c5": N x 512 x H/16 x W/16}``."""
        return {"c5": self.reduce(self.bottom_up(images)[self.in_feature])}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"c5": self._shape}


@BACKBONE_REGISTRY.register()
def build_resnet_dilated_c5_backbone(cfg: Any, input_shape: ShapeSpec) -> DilatedC5:
    """Build the R50-dilated-C5 of MoCo v1, section 4.2: res5 with dilation 2 and stride 1, 512 channels.

    The ResNet is that of ``MODEL.RESNETS``, of any width; ``RES5_DILATION`` has to be 2.
    """
    if cfg.MODEL.RESNETS.RES5_DILATION != 2 or "res5" not in cfg.MODEL.RESNETS.OUT_FEATURES:
        raise UsageError(
            "build_resnet_dilated_c5_backbone needs MODEL.RESNETS.RES5_DILATION 2 and OUT_FEATURES ['res5'], got "
            f"{cfg.MODEL.RESNETS.RES5_DILATION} and {list(cfg.MODEL.RESNETS.OUT_FEATURES)}"
        )
    return DilatedC5(build_any_width_resnet_backbone(cfg, input_shape), norm=cfg.MODEL.RESNETS.NORM)
