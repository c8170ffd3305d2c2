"""Adaptation of a detectron2 config to the devices of this machine."""

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


def fit_device(cfg: Any) -> list[str]:
    """Adapt a detectron2 config to the machine, and say so.

    Without CUDA, ``MODEL.DEVICE`` becomes ``cpu``; on a CPU, synchronised batch norm becomes batch norm,
    which is the same thing within one process.

    Args:
        cfg: A detectron2 config that is not frozen; changed in place.

    Returns:
        One sentence for each change.
    """
    changes = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        changes.append("MODEL.DEVICE: no CUDA here, so training and evaluation run on the CPU")
    if cfg.MODEL.DEVICE == "cpu" and (paths := _replace_sync_bn(cfg.MODEL, "MODEL")):
        changes.append(f"{', '.join(paths)}: SyncBN does not train on a CPU, so BN is used")
    for change in changes:
        logger.warning(change)
    return changes


def _replace_sync_bn(node: Any, path: str) -> list[str]:
    changed = []
    for key, value in node.items():
        if isinstance(value, dict):  # a CfgNode is a dict
            changed += _replace_sync_bn(value, f"{path}.{key}")
        elif key.endswith("NORM") and value == "SyncBN":
            node[key] = "BN"
            changed.append(f"{path}.{key}")
    return changed
