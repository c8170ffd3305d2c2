"""detectron2's ResNet at any width and depth, built from a config or from weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet with a 7 x 7 stem and four stages, each twice as wide as the one before."""

    num_blocks: tuple[int, ...]  # of each stage
    channels: int  # after res2
    bottleneck: int | None = None  # channels of res2's 3 x 3 convolutions; None for the blocks of ResNet-18 and 34
    stem: int = 64  # channels after the stem
    groups: int = 1  # of the 3 x 3 convolutions
    stride_in_1x1: bool = False  # a bottleneck strides in its first convolution (MSRA's models), not in its second
    res5_dilation: int = 1  # 2 keeps res5 at stride 16
    norm: str = "BN"  # as in detectron2's get_norm

    def __post_init__(self) -> None:
        if self.bottleneck is None and (self.groups > 1 or self.res5_dilation > 1):
            raise UsageError("ResNet-18 and 34 have neither groups nor dilation; set both to 1")

    def settings(self) -> dict[str, Any]:
        """Return the keys of detectron2's config for a network of this shape.

        ``MODEL.BACKBONE.NAME`` is among them if detectron2's own builders cannot build it.
        """
        known = NUM_BLOCKS[self._depth] == self.num_blocks
        keys: dict[str, Any] = {"DEPTH": self._depth, "STEM_OUT_CHANNELS": self.stem}
        keys["RES2_OUT_CHANNELS"] = self.channels
        if self.bottleneck is not None:
            keys |= {"NUM_GROUPS": self.groups, "WIDTH_PER_GROUP": self.bottleneck // self.groups}
            keys["STRIDE_IN_1X1"] = self.stride_in_1x1
        if not known:
            keys["NUM_BLOCKS"] = list(self.num_blocks)
        own = not known or (self.bottleneck is None and self.channels != 64)
        name = {"MODEL.BACKBONE.NAME": "build_any_width_resnet_fpn_backbone"} if own else {}
        return name | {f"MODEL.RESNETS.{key}": value for key, value in keys.items()}

    @property
    def _depth(self) -> int:
        """The depth with these blocks, or else the smallest with blocks of this kind."""
        depths = [depth for depth in NUM_BLOCKS if (depth < 50) == (self.bottleneck is None)]
        return next((depth for depth in depths if NUM_BLOCKS[depth] == self.num_blocks), depths[0])

    def make_stage(self, index: int) -> list[CNNBlockBase]:
        """Build the blocks of one stage: 0 for res2, up to 3 for res5."""
        dilation = self.res5_dilation if index == 3 else 1
        stride = 1 if index == 0 or dilation > 1 else 2
        count, out = self.num_blocks[index], self.channels * 2**index
        options: dict[str, Any] = {}
        if self.bottleneck is not None:
            options = {"bottleneck_channels": self.bottleneck * 2**index, "num_groups": self.groups}
            options |= {"stride_in_1x1": self.stride_in_1x1, "dilation": dilation}
        blocks: list[CNNBlockBase] = ResNet.make_stage(
            BasicBlock if self.bottleneck is None else BottleneckBlock,
            count,
            in_channels=out // 2 if index else self.stem,
            out_channels=out,
            stride_per_block=[stride] + [1] * (count - 1),
            norm=self.norm,
            **options,
        )
        return blocks


def make_resnet(
    shape: ResNetShape,
    in_channels: int = 3,
    out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    freeze_at: int = 0,
) -> ResNet:
    """Build detectron2's ResNet of a shape.

    Args:
        shape: Its depth and width.
        in_channels: Channels of the images.
        out_features: The stages to return; those after the last of them are not built.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, and so on.
    """
    stages = [shape.make_stage(index) for index in range(4)]
    stem = BasicStem(in_channels=in_channels, out_channels=shape.stem, norm=shape.norm)
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)


def resnet_shape(cfg: Any) -> ResNetShape:
    """Read a shape from ``MODEL.RESNETS``.

    ``STEM_OUT_CHANNELS`` and ``RES2_OUT_CHANNELS`` set the width; bottlenecks are ``NUM_GROUPS`` x
    ``WIDTH_PER_GROUP`` wide in res2. ``NUM_BLOCKS`` overrides the blocks of ``DEPTH``.

    Raises:
        UsageError: An invalid value.
    """
    options = cfg.MODEL.RESNETS
    if options.NUM_BLOCKS and len(options.NUM_BLOCKS) != 4:
        raise UsageError(f"MODEL.RESNETS.NUM_BLOCKS must be four numbers or empty, got {list(options.NUM_BLOCKS)}")
    if options.DEPTH not in NUM_BLOCKS:
        raise UsageError(f"MODEL.RESNETS.DEPTH is one of {sorted(NUM_BLOCKS)}, got {options.DEPTH}")
    return ResNetShape(
        num_blocks=tuple(options.NUM_BLOCKS or NUM_BLOCKS[options.DEPTH]),
        channels=options.RES2_OUT_CHANNELS,
        bottleneck=options.NUM_GROUPS * options.WIDTH_PER_GROUP if options.DEPTH >= 50 else None,
        stem=options.STEM_OUT_CHANNELS,
        groups=options.NUM_GROUPS,
        stride_in_1x1=options.STRIDE_IN_1X1,
        res5_dilation=options.RES5_DILATION,
        norm=options.NORM,
    )


@BACKBONE_REGISTRY.register()
def build_any_width_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``MODEL.RESNETS``, without detectron2's limit of ResNet-18 and 34 to 64 channels."""
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        raise UsageError("this backbone has no deformable convolutions; use build_resnet_backbone for them")
    return make_resnet(
        resnet_shape(cfg), input_shape.channels, cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
def build_any_width_resnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Put detectron2's FPN on that ResNet."""
    return _pyramid(cfg, input_shape, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_any_width_retinanet_resnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Put detectron2's FPN for RetinaNet on that ResNet."""
    return _pyramid(cfg, input_shape, LastLevelP6P7(resnet_shape(cfg).channels * 8, cfg.MODEL.FPN.OUT_CHANNELS))


def _pyramid(cfg: Any, input_shape: ShapeSpec, top_block: nn.Module) -> FPN:
    options = cfg.MODEL.FPN
    bottom_up = build_any_width_resnet_backbone(cfg, input_shape)
    return FPN(bottom_up, options.IN_FEATURES, options.OUT_CHANNELS, options.NORM, top_block, options.FUSE_TYPE)


def shape_of_weights(state: Mapping[str, np.ndarray]) -> ResNetShape:
    """Read a shape from the weights of a ResNet under detectron2's names, with the stride in 3 x 3 convolutions.

    Raises:
        UserError: The stem or a stage is missing, or of another kind.
    """
    try:
        stem, middle = state["stem.conv1.weight"].shape, state["res2.0.conv2.weight"].shape
        if stem[2:] != (7, 7):
            raise UserError(f"the stem's filters are {stem[2]} x {stem[3]}; detectron2 has 7 x 7")
        bottleneck = "res2.0.conv3.weight" in state
        return ResNetShape(
            num_blocks=tuple(_count_blocks(state, f"res{index}") for index in range(2, 6)),
            channels=state[f"res2.0.conv{3 if bottleneck else 2}.weight"].shape[0],
            bottleneck=middle[0] if bottleneck else None,
            stem=stem[0],
            groups=middle[0] // middle[1] if bottleneck else 1,
        )
    except KeyError as error:
        raise UserError(f"these are not the weights of detectron2's ResNet: {error} is missing") from error


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
    shape = shape_of_weights(state)
    with torch.device("meta"):  # no weights are drawn or copied
        network = make_resnet(shape, state["stem.conv1.weight"].shape[1])
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
    # The step counts of batch norm change nothing in eval mode, and most files leave them out.
    own = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    counters = {name: torch.zeros((), dtype=torch.int64) for name in own}
    try:
        network.load_state_dict({**counters, **tensors}, assign=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"these are not the weights of one ResNet of detectron2: {reason(error)}") from error
    return network.eval()
