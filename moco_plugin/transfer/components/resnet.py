"""detectron2's ResNet at any width and depth, built from a config or from weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config.defaults import _C as DEFAULTS
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet

from moco_plugin.errors import UsageError, UserError

NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def add_moco_config(cfg: Any) -> None:
    """Add our config keys to a detectron2 config; detectron2's defaults get them on import."""
    # blocks of res2 to res5; empty: as MODEL.RESNETS.DEPTH has them
    cfg.MODEL.RESNETS.setdefault("NUM_BLOCKS", [])
    # semantic segmentation: smallest and largest factor of a training image's size; empty: detectron2's own mapping
    cfg.INPUT.setdefault("SCALE_RANGE", [])


add_moco_config(DEFAULTS)


def make_stage(
    index: int,
    *,
    stem_channels: int = 64,
    num_blocks: Sequence[int],
    out_channels: Sequence[int],
    bottleneck_channels: Sequence[int] | None,
    num_groups: int = 1,
    stride_in_1x1: bool = False,
    res5_dilation: int = 1,
    norm: str = "BN",
) -> list[CNNBlockBase]:
    """Build the blocks of one stage of a ResNet.

    Args:
        index: 0 for res2, up to 3 for res5.
        stem_channels: Channels after the stem.
        num_blocks: Blocks of each of the four stages.
        out_channels: Channels after each stage.
        bottleneck_channels: Channels of the 3 x 3 convolutions of each stage; None builds the two-layer
            blocks of ResNet-18 and 34.
        num_groups: Groups of the 3 x 3 convolutions.
        stride_in_1x1: Whether a bottleneck strides in its first convolution (MSRA's models) or in its second.
        res5_dilation: 2 keeps res5 at stride 16, with dilated convolutions.
        norm: Kind of norm, as in detectron2's ``get_norm``.
    """
    dilation = res5_dilation if index == 3 else 1
    stride = 1 if index == 0 or dilation > 1 else 2
    options: dict[str, Any] = {"stride_per_block": [stride] + [1] * (num_blocks[index] - 1), "norm": norm}
    if bottleneck_channels is not None:
        options.update(
            bottleneck_channels=bottleneck_channels[index],
            num_groups=num_groups,
            stride_in_1x1=stride_in_1x1,
            dilation=dilation,
        )
    elif num_groups > 1 or res5_dilation > 1:
        raise UsageError("ResNet-18 and 34 have neither groups nor dilation; set both to 1")
    blocks: list[CNNBlockBase] = ResNet.make_stage(
        BasicBlock if bottleneck_channels is None else BottleneckBlock,
        num_blocks[index],
        in_channels=out_channels[index - 1] if index else stem_channels,
        out_channels=out_channels[index],
        **options,
    )
    return blocks


def make_resnet(
    *,
    in_channels: int = 3,
    stem_channels: int = 64,
    out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    freeze_at: int = 0,
    norm: str = "BN",
    **options: Any,
) -> ResNet:
    """Build detectron2's ResNet with a 7 x 7 stem and four stages, under detectron2's parameter names.

    Args:
        in_channels: Channels of the images.
        stem_channels: Channels after the stem.
        out_features: The stages to return; those after the last of them are not built.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, and so on.
        norm: Kind of norm, as in detectron2's ``get_norm``.
        options: The rest of :func:`make_stage`'s arguments.
    """
    stages = [make_stage(index, stem_channels=stem_channels, norm=norm, **options) for index in range(4)]
    stem = BasicStem(in_channels=in_channels, out_channels=stem_channels, norm=norm)
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)


def resnet_options(cfg: Any) -> dict[str, Any]:
    """Read :func:`make_stage`'s arguments from ``MODEL.RESNETS``.

    ``STEM_OUT_CHANNELS`` and ``RES2_OUT_CHANNELS`` set the width; bottlenecks are ``NUM_GROUPS`` x
    ``WIDTH_PER_GROUP`` wide in res2; each stage doubles them. ``NUM_BLOCKS`` goes before ``DEPTH``.

    Raises:
        UsageError: A value that makes no such ResNet.
    """
    options = cfg.MODEL.RESNETS
    if options.NUM_BLOCKS and len(options.NUM_BLOCKS) != 4:
        raise UsageError(f"MODEL.RESNETS.NUM_BLOCKS wants four numbers or none, got {list(options.NUM_BLOCKS)}")
    if options.DEPTH not in NUM_BLOCKS:
        raise UsageError(f"MODEL.RESNETS.DEPTH is one of {sorted(NUM_BLOCKS)}, got {options.DEPTH}")
    width = options.NUM_GROUPS * options.WIDTH_PER_GROUP
    return {
        "stem_channels": options.STEM_OUT_CHANNELS,
        "num_blocks": options.NUM_BLOCKS or NUM_BLOCKS[options.DEPTH],
        "out_channels": [options.RES2_OUT_CHANNELS * 2**stage for stage in range(4)],
        "bottleneck_channels": [width * 2**stage for stage in range(4)] if options.DEPTH >= 50 else None,
        "num_groups": options.NUM_GROUPS,
        "stride_in_1x1": options.STRIDE_IN_1X1,
        "res5_dilation": options.RES5_DILATION,
        "norm": options.NORM,
    }


@BACKBONE_REGISTRY.register()
def build_any_width_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``MODEL.RESNETS``, without detectron2's limit of ResNet-18 and 34 to 64 channels."""
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        raise UsageError("this backbone has no deformable convolutions; take build_resnet_backbone for them")
    return make_resnet(
        in_channels=input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        **resnet_options(cfg),
    )


@BACKBONE_REGISTRY.register()
def build_any_width_resnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Put detectron2's FPN on that ResNet."""
    return FPN(
        bottom_up=build_any_width_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def resnet_for_weights(state: dict[str, np.ndarray]) -> ResNet:
    """Build the ResNet that weights under detectron2's names belong to, and load them.

    Depth, widths and groups are read from the shapes; the stride is taken to be in the 3 x 3 convolutions, as
    in torchvision's and timm's models.

    Args:
        state: Arrays named ``stem.conv1.weight``, ``res2.0.conv1.norm.weight`` and so on. A classifier
            (``stem.fc.*``) is left out.

    Returns:
        The network in eval mode, with batch norm and the outputs of res2 to res5; its weights are the arrays, not
        copies.

    Raises:
        UserError: The arrays are not all those of one such ResNet.
    """
    state = {name: array for name, array in state.items() if not name.startswith(("stem.fc.", "fc."))}
    try:
        stem = state["stem.conv1.weight"]
        if stem.shape[2:] != (7, 7):
            raise UserError(f"the stem's filters are {stem.shape[2]} x {stem.shape[3]}; detectron2 has 7 x 7")
        stages = [f"res{index}" for index in range(2, 6)]
        last = "conv3" if "res2.0.conv3.weight" in state else "conv2"
        middle = [state[f"{stage}.0.conv2.weight"] for stage in stages]
        with torch.device("meta"):  # the arrays are the weights: none are drawn, none are copied
            network = make_resnet(
                in_channels=stem.shape[1],
                stem_channels=stem.shape[0],
                num_blocks=[_count_blocks(state, stage) for stage in stages],
                out_channels=[state[f"{stage}.0.{last}.weight"].shape[0] for stage in stages],
                bottleneck_channels=[array.shape[0] for array in middle] if last == "conv3" else None,
                num_groups=middle[0].shape[0] // middle[0].shape[1] if last == "conv3" else 1,
            )
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
        # The step counts of batch norm change nothing in eval mode, and most files leave them out.
        own = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
        counters = {name: torch.zeros((), dtype=torch.int64) for name in own}
        network.load_state_dict({**counters, **tensors}, assign=True)
    except KeyError as error:
        raise UserError(f"these are not the weights of detectron2's ResNet: {error} is missing") from error
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"these weights do not make up one ResNet of detectron2: {reason}") from error
    return network.eval()


def _count_blocks(state: dict[str, np.ndarray], stage: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})
