"""The C4 box head of the MoCo papers: res5 followed by one more normalisation."""

from collections import OrderedDict
from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from moco_plugin.errors import UsageError
from moco_plugin.transfer.components.resnet import make_stage


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """detectron2's res5 head with a norm of kind ``MODEL.RESNETS.NORM`` on its output (MoCo v1, section 4.2).

    detectron2's own head supports only bottlenecks; this one builds res5 from ``MODEL.RESNETS`` like the backbone, with
    the blocks of ResNet-18 and 34 too. Its last layer is named ``norm``, as in the authors' models, so that checkpoints
    can be exchanged.
    """

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        if cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[-1]:
            raise UsageError(
                "Res5ROIHeadsExtraNorm has no deformable convolutions; set "
                "MODEL.RESNETS.DEFORM_ON_PER_STAGE to False for res5"
            )
        channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
        layers = OrderedDict((str(index), block) for index, block in enumerate(make_stage(cfg, 3)))
        return nn.Sequential(OrderedDict(layers, norm=get_norm(cfg.MODEL.RESNETS.NORM, channels))), channels
