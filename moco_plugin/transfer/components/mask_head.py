"""The mask head for data in which some objects have no mask."""

from typing import Any

import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances


@ROI_MASK_HEAD_REGISTRY.register()
class PartialMaskHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head; its loss leaves out objects without a mask (``gt_has_mask``)."""

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> Any:
        """Return the loss in training, else the instances with masks."""
        if self.training and any(image.has("gt_has_mask") for image in instances):
            known = [
                image.get_fields().get("gt_has_mask", torch.ones(len(image), dtype=torch.bool, device=x.device))
                for image in instances
            ]
            instances = [image[mask] for image, mask in zip(instances, known, strict=True)]
            x = x[torch.cat(known)]
        return super().forward(x, instances)
