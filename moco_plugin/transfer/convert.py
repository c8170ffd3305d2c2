"""From a checkpoint to a detectron2 file that has proved itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn

from moco_plugin.checkpoints.detectron2 import is_plain_resnet, to_detectron2
from moco_plugin.checkpoints.load import load, named_tensors
from moco_plugin.checkpoints.proof import Network, stages_of
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.checkpoints.timm import timm_arguments
from moco_plugin.checkpoints.write import check_ending, source_network, write_proven
from moco_plugin.checkpoints.zoo_pickle import load_zoo_pickle, save_zoo_pickle
from moco_plugin.errors import UserError
from moco_plugin.files import check_output
from moco_plugin.transfer.components.resnet import resnet_for_weights
from moco_plugin.transfer.components.timm_backbone import build_timm_backbone

STAGES = (
    "res2",
    "res3",
    "res4",
    "res5",
    "",
)  # the network itself returns these four, so nothing more is compared


def convert_to_detectron2(
    checkpoint: Checkpoint, output: str | Path, overwrite: bool = False, to: str = "detectron2"
) -> dict[str, Any]:
    """Writes a checkpoint's backbone as a detectron2 zoo file, after showing that both compute the same.

    A plain ResNet is written for detectron2's own, as the converter of the released code writes it. Any other timm
    network is written for ``build_timm_backbone``, under timm's names below ``model.``.

    Args:
        checkpoint: What was read.
        output: Path ending in ``.pkl``.
        overwrite: Replace a file that is there.
        to: "detectron2", or "detectron2-timm" to write plain ResNets for ``build_timm_backbone`` too.

    Returns:
        What the file says about itself: its source, how detectron2 builds the network, and the ``proof``.

    Raises:
        UsageError: The output's ending, or the output exists.
        UserError: No detectron2 twin, or the features differ.
    """
    output = Path(output).expanduser()
    check_ending(output, "detectron2")
    check_output(output, overwrite)
    state = checkpoint.backbone.state_dict()
    source = source_network(checkpoint, "detectron2")
    details: dict[str, Any] = {"target": "detectron2"}
    if to == "detectron2" and is_plain_resnet(state):
        arrays = to_detectron2(state, checkpoint.head)
        target = Network("detectron2", resnet_for_weights(arrays), STAGES)
        details |= {"stride_in_1x1": False}
    else:
        name, arguments = timm_arguments(checkpoint.architecture, checkpoint.arguments, checkpoint.backbone)
        arrays = {f"model.{key}": value.numpy() for key, value in state.items()}
        network = timm_backbone_for_weights(name, arguments, arrays)
        kept = {key for key, _ in network.named_modules()}  # what lies behind the last map is removed
        stages = [(s, f"model.{t}") for s, t in zip(source.stages, stages_of(checkpoint.backbone), strict=True)]
        source.stages = [s for s, t in stages if t in kept]
        target = Network("detectron2", network, [t for _, t in stages if t in kept])
        details |= {"timm_name": name, "timm_arguments": arguments}
    return write_proven(checkpoint, output, source, target, details, arrays, partial(_write, arrays=arrays), _read)


def detectron2_source(checkpoint: Checkpoint) -> Network:
    """Returns detectron2's ResNet with the weights of a detectron2 file as they lie there.

    Raises:
        UserError: They do not make up a ResNet.
    """
    names = re.compile(r"(?:\S*\.)?((?:stem|res[2-5])\.\S+)")
    arrays = {
        match[1]: value.numpy()
        for name, value in named_tensors(load(checkpoint.path)).items()
        if (match := names.fullmatch(name))
    }
    return Network("detectron2", resnet_for_weights(arrays), STAGES)


def timm_backbone_for_weights(name: str, arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Builds ``build_timm_backbone``'s network and lets it hold weights, whose names start with ``model.``.

    Raises:
        UserError: The weights leave a tensor of the network unfilled.
    """
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.ARGS = name, [part for pair in arguments.items() for part in pair]
    network: nn.Module = build_timm_backbone(cfg, ShapeSpec(channels=3))
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    try:
        missing, _ = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MODEL.TIMM.NAME {name} makes no network that holds these weights: {reason}") from error
    if missing:
        raise UserError(f"the weights lack {missing[0]} and {len(missing) - 1} more tensors of timm's {name}")
    return network.eval()


def _write(path: Path, metadata: dict[str, Any], *, arrays: dict[str, np.ndarray]) -> None:
    save_zoo_pickle(path, arrays, metadata)


def _read(path: Path) -> dict[str, np.ndarray]:
    model: dict[str, np.ndarray] = load_zoo_pickle(path)["model"]
    return model
