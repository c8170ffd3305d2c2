"""What detectors are given in tests: a few small images, and settings that a test can afford."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks

from moco_plugin.transfer.components.resnet import build_any_width_resnet_backbone

# few proposals
FEW = """
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 4 MODEL.RPN.POST_NMS_TOPK_TRAIN 10
    MODEL.RPN.POST_NMS_TOPK_TEST 4 MODEL.RPN.PRE_NMS_TOPK_TRAIN 20 MODEL.RPN.PRE_NMS_TOPK_TEST 20
    MODEL.RETINANET.TOPK_CANDIDATES_TEST 20 TEST.DETECTIONS_PER_IMAGE 2
""".split()


def make_resnet(**options: Any) -> ResNet:
    """A random ResNet with batch norm, from keys of ``MODEL.RESNETS``."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.update({"NORM": "BN", "OUT_FEATURES": ["res2", "res3", "res4", "res5"], **options})
    return build_any_width_resnet_backbone(cfg, ShapeSpec(channels=3))


def batch(cfg: CfgNode, *sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """Random images of so many rows and columns, with one object each and whatever the task wants of it."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for index, size in enumerate(sizes or [(65, 65)] * 2):
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        entry: dict[str, Any] = {"image": image, "height": size[0], "width": size[1]}
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
            entry["sem_seg"] = torch.randint(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, size, generator=generator)
        else:
            left, top, right, bottom = 8.0, 8.0, 40.0, 48.0
            instances = Instances(size)
            instances.gt_boxes = Boxes([[left, top, right, bottom]])
            instances.gt_classes = torch.tensor([index % cfg.MODEL.ROI_HEADS.NUM_CLASSES])
            if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
                instances.gt_masks = PolygonMasks([[[left, top, right, top, right, bottom]]])
            elif cfg.MODEL.MASK_ON:
                instances.gt_masks = BitMasks(torch.ones(1, *size, dtype=torch.bool))
            if cfg.MODEL.KEYPOINT_ON:
                points = torch.rand(1, 17, 3, generator=generator) * 30 + 10
                points[..., 2] = 2  # labelled and visible
                instances.gt_keypoints = Keypoints(points)
            entry["instances"] = instances
        inputs.append(entry)
    return inputs
