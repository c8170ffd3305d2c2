"""The C4 box head of the MoCo papers: res5 followed by one more normalisation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """detectron2's res5 head with a norm of kind ``MODEL.RESNETS.NORM`` on its output (MoCo v1, section 4.2).

    The last layer is called ``norm``, as in the authors' models, so that checkpoints can be exchanged.
    """

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        layers = OrderedDict(res5.named_children())
        layers["norm"] = get_norm(cfg.MODEL.RESNETS.NORM, channels)
        return nn.Sequential(layers), channels
