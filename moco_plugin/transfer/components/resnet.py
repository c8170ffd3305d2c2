"""detectron2's ResNet at any width and depth, built from a config or from weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.config.defaults import _C as DEFAULTS
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn

from moco_plugin.errors import UsageError, UserError, reason

NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


# blocks of res2 to res5; empty: as MODEL.RESNETS.DEPTH has them
DEFAULTS.MODEL.RESNETS.NUM_BLOCKS = []
# semantic segmentation: smallest and largest factor of a training image's size; empty: detectron2's own mapping
DEFAULTS.INPUT.SCALE_RANGE = []
# values that become 0 and 255 in images of more than 8 bits; empty: by their bit depth
DEFAULTS.INPUT.VALUE_RANGE = []


def make_stage(cfg: Any, index: int) -> list[CNNBlockBase]:
    """Build the blocks of one stage of the ResNet of ``MODEL.RESNETS``: 0 for res2, up to 3 for res5.

    ``STEM_OUT_CHANNELS`` and ``RES2_OUT_CHANNELS`` set the width; bottlenecks are ``NUM_GROUPS`` x
    ``WIDTH_PER_GROUP`` wide in res2. ``NUM_BLOCKS`` overrides the blocks of ``DEPTH``.

    Raises:
        UsageError: An invalid value.
    """
    options = cfg.MODEL.RESNETS
    bottleneck, groups = options.DEPTH >= 50, options.NUM_GROUPS
    if options.NUM_BLOCKS and len(options.NUM_BLOCKS) != 4:
        raise UsageError(f"MODEL.RESNETS.NUM_BLOCKS must be four numbers or empty, got {list(options.NUM_BLOCKS)}")
    if options.DEPTH not in NUM_BLOCKS:
        raise UsageError(f"MODEL.RESNETS.DEPTH is one of {sorted(NUM_BLOCKS)}, got {options.DEPTH}")
    if not bottleneck and (groups > 1 or options.RES5_DILATION > 1):
        raise UsageError("ResNet-18 and 34 have neither groups nor dilation; set both to 1")
    dilation = options.RES5_DILATION if index == 3 else 1
    stride = 1 if index == 0 or dilation > 1 else 2
    count, out = (options.NUM_BLOCKS or NUM_BLOCKS[options.DEPTH])[index], options.RES2_OUT_CHANNELS * 2**index
    more: dict[str, Any] = {}
    if bottleneck:
        more = {"bottleneck_channels": groups * options.WIDTH_PER_GROUP * 2**index, "num_groups": groups}
        more |= {"stride_in_1x1": options.STRIDE_IN_1X1, "dilation": dilation}
    blocks: list[CNNBlockBase] = ResNet.make_stage(
        BottleneckBlock if bottleneck else BasicBlock,
        count,
        in_channels=out // 2 if index else options.STEM_OUT_CHANNELS,
        out_channels=out,
        stride_per_block=[stride] + [1] * (count - 1),
        norm=options.NORM,
        **more,
    )
    return blocks


@BACKBONE_REGISTRY.register()
def build_any_width_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``MODEL.RESNETS``, without detectron2's limit of ResNet-18 and 34 to 64 channels."""
    options = cfg.MODEL.RESNETS
    if any(options.DEFORM_ON_PER_STAGE):
        raise UsageError("this backbone has no deformable convolutions; use build_resnet_backbone for them")
    stem = BasicStem(in_channels=input_shape.channels, out_channels=options.STEM_OUT_CHANNELS, norm=options.NORM)
    stages = [make_stage(cfg, index) for index in range(4)]
    return ResNet(stem, stages, out_features=list(options.OUT_FEATURES), freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_any_width_resnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Put detectron2's FPN on that ResNet."""
    return _pyramid(cfg, input_shape, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_any_width_retinanet_resnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Put detectron2's FPN for RetinaNet on that ResNet."""
    return _pyramid(
        cfg, input_shape, LastLevelP6P7(cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8, cfg.MODEL.FPN.OUT_CHANNELS)
    )


def _pyramid(cfg: Any, input_shape: ShapeSpec, top_block: nn.Module) -> FPN:
    options = cfg.MODEL.FPN
    bottom_up = build_any_width_resnet_backbone(cfg, input_shape)
    return FPN(bottom_up, options.IN_FEATURES, options.OUT_CHANNELS, options.NORM, top_block, options.FUSE_TYPE)


def settings_of_weights(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the keys of detectron2's config for a ResNet with these weights, which have detectron2's names.

    Its stride is in the 3 x 3 convolutions. ``MODEL.BACKBONE.NAME`` is set if detectron2's own builders cannot build it.

    Raises:
        UserError: The stem or a stage is missing, or of another kind.
    """
    bottleneck = "res2.0.conv3.weight" in state
    try:
        stem, middle = state["stem.conv1.weight"].shape, state["res2.0.conv2.weight"].shape
        channels = state[f"res2.0.conv{3 if bottleneck else 2}.weight"].shape[0]
        blocks = tuple(_count_blocks(state, f"res{index}") for index in range(2, 6))
    except KeyError as error:
        raise UserError(f"these are not the weights of detectron2's ResNet: {error} is missing") from error
    if stem[2:] != (7, 7):
        raise UserError(f"the stem's filters are {stem[2]} x {stem[3]}; detectron2 has 7 x 7")
    depths = [depth for depth in NUM_BLOCKS if (depth >= 50) == bottleneck]
    known = [depth for depth in depths if NUM_BLOCKS[depth] == blocks]
    keys = {"DEPTH": (known or depths)[0], "STEM_OUT_CHANNELS": stem[0], "RES2_OUT_CHANNELS": channels}
    if bottleneck:
        keys |= {"NUM_GROUPS": middle[0] // middle[1], "WIDTH_PER_GROUP": middle[1], "STRIDE_IN_1X1": False}
    if not known:
        keys["NUM_BLOCKS"] = list(blocks)
    own = not known or (not bottleneck and channels != 64)
    name = {"MODEL.BACKBONE.NAME": "build_any_width_resnet_fpn_backbone"} if own else {}
    return name | {f"MODEL.RESNETS.{key}": value for key, value in keys.items()}


def _count_blocks(state: Mapping[str, np.ndarray], stage: str) -> int:
    if (first := f"{stage}.0.conv2.weight") not in state:
        raise KeyError(first)
    return len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})


def resnet_for_weights(state: Mapping[str, np.ndarray]) -> ResNet:
    """Build the ResNet of weights under detectron2's names, such as ``res2.0.conv1.norm.weight``, and load them.

    Returns:
        The network in eval mode, with batch norm and the outputs of res2 to res5; the arrays are its weights, without a
        copy. A classifier (``stem.fc.*``) is left out.

    Raises:
        UserError: The arrays are not those of one ResNet, each stage of which is twice as wide as the one before.
    """
    state = {name: array for name, array in state.items() if not name.startswith(("stem.fc.", "fc."))}
    cfg = get_cfg()
    cfg.merge_from_list([word for pair in settings_of_weights(state).items() for word in pair])
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = 0, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    with torch.device("meta"):  # no weights are drawn or copied
        network = build_any_width_resnet_backbone(cfg, ShapeSpec(channels=state["stem.conv1.weight"].shape[1]))
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
    # The step counts of batch norm change nothing in eval mode, and most files leave them out.
    own = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    counters = {name: torch.zeros((), dtype=torch.int64) for name in own}
    try:
        network.load_state_dict({**counters, **tensors}, assign=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"these are not the weights of one ResNet of detectron2: {reason(error)}") from error
    return network.eval()
