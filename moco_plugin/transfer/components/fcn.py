"""The FCN head of the MoCo paper's semantic segmentation, for detectron2's SemanticSegmentor."""

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from moco_plugin.errors import UsageError


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(nn.Module):
    """Dilated 3 x 3 convolutions with norm and ReLU, then a 1 x 1 classifier (MoCo v1, appendix).

    The paper has two convolutions of 256 channels and dilation 6 on a res5 of stride 16, and does not say how scores are
    scaled to the image. Here they are interpolated bilinearly between the pixels at which features are centred (every
    16th, from the first), which fits crops of 513 and 769 = 16 k + 1 pixels exactly; the up to 15 pixels beyond the last
    feature repeat the last ones.

    Args:
        input_shape: Channels and stride of the one feature map that is used.
        num_classes: Classes, including background where the data set has it.
        channels: Channels of each convolution.
        num_convs: Number of convolutions.
        dilation: Dilation of each convolution.
        norm: As in detectron2's ``get_norm``.
        ignore_value: Label of pixels without loss.
        loss_weight: Factor of the loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 256,
        num_convs: int = 2,
        dilation: int = 6,
        norm: str = "BN",
        ignore_value: int = 255,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise UsageError(
                f"FCNHead takes one feature map, got {list(input_shape)}; set MODEL.SEM_SEG_HEAD.IN_FEATURES"
            )
        ((self.in_feature, shape),) = input_shape.items()
        self.stride, self.ignore_value, self.loss_weight = shape.stride, ignore_value, loss_weight
        layers: list[nn.Module] = [
            Conv2d(
                channels if index else shape.channels,
                channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                bias=not norm,
                norm=get_norm(norm, channels),
                activation=F.relu,
            )
            for index in range(num_convs)
        ]
        for layer in layers:
            weight_init.c2_msra_fill(layer)
        self.convs = nn.Sequential(*layers)
        self.predictor = nn.Conv2d(channels if layers else shape.channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.constant_(self.predictor.bias, 0)  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        options = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in options.IN_FEATURES if name in input_shape},
            "num_classes": options.NUM_CLASSES,
            "channels": options.CONVS_DIM,
            "norm": options.NORM,
            "ignore_value": options.IGNORE_VALUE,
            "loss_weight": options.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return losses in training, scores else, as SemanticSegmentor expects.

        Args:
            features: Contains the feature map, N x C x h x w.
            targets: Labels, N x H x W with H between 16 h - 15 and 16 h; needed in training.

        Returns:
            None and ``{"loss_sem_seg": mean cross entropy}``, or N x classes x 16 h x 16 w scores and ``{}``.
        """
        scores = self.upsample(self.predictor(self.convs(features[self.in_feature])).float())
        if not self.training:
            return scores, {}
        assert targets is not None, "training needs targets"
        height, width = targets.shape[-2:]
        loss = F.cross_entropy(scores[..., :height, :width], targets, ignore_index=self.ignore_value, reduction="sum")
        # the mean of a batch without labelled pixels is 0, not NaN
        counted = (targets != self.ignore_value).sum().clamp(min=1)
        return None, {"loss_sem_seg": self.loss_weight * loss / counted}

    def upsample(self, scores: Tensor) -> Tensor:
        """Interpolate N x C x h x w scores at the features' centres to N x C x 16 h x 16 w at the pixels."""
        size = [(length - 1) * self.stride + 1 for length in scores.shape[-2:]]
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
        return F.pad(scores, (0, self.stride - 1, 0, self.stride - 1), mode="replicate")
