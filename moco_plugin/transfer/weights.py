"""Loads weights into a detector and proves that they arrived: no backbone tensor stays random unnoticed."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from moco_plugin.checkpoints.zoo_pickle import load_zoo_pickle
from moco_plugin.errors import UserError

logger = logging.getLogger(__name__)

ADVICE = "convert the file with tools/convert_to_d2.py"


@dataclass(frozen=True)
class Coverage:
    """How much of a detector's backbone a weight file filled."""

    source: str
    tensors: tuple[str, ...]  # names of all backbone tensors in the detector
    missing: tuple[str, ...]  # those that the file did not fill: absent there, or of another shape

    def __str__(self) -> str:
        if not self.source:
            return "weights: none, random initialisation"
        filled = len(self.tensors) - len(self.missing)
        return f"weights: {filled} of {len(self.tensors)} backbone tensors filled from {self.source}"


def backbone_tensors(model: nn.Module) -> list[str]:
    """Lists the pre-trainable tensors of a detector: parameters and batch norm statistics of its backbone.

    What a detector adds itself is not counted: FPN's own layers, and the extra norm of
    ``Res5ROIHeadsExtraNorm``. The res5 of a C4 detector lies in its heads and is counted.

    Returns:
        Names in ``model.state_dict()``, without batch norm's step counts, which no backbone file needs.
    """
    prefixes = ["backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."]
    if hasattr(getattr(model, "roi_heads", None), "res5"):
        prefixes.append("roi_heads.res5.")
    return [
        name
        for name in model.state_dict()
        if name.startswith(tuple(prefixes))
        and not name.endswith(".num_batches_tracked")
        and not re.match(r"roi_heads\.res5\.norm\.", name)
    ]


class _CountingCheckpointer(DetectionCheckpointer):
    """detectron2's own loading and matching of names; remembers what stayed unfilled."""

    missing_keys: frozenset[str] = frozenset()

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        self.missing_keys = frozenset(incompatible.missing_keys)
        return incompatible


def check_file(path: str) -> None:
    """Reads a weight file without running any code in it; detectron2 itself unpickles whatever is there.

    Raises:
        UserError: The file is missing, broken or holds more than tensors, arrays and builtins.
    """
    if not Path(path).is_file():
        raise UserError(f"weight file {path} does not exist; check MODEL.WEIGHTS")
    if path.endswith(".pkl"):
        load_zoo_pickle(path)
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or unsafe file raises almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is no weight file that can be read safely: {reason}") from error


def load_weights(model: nn.Module, path: str, allow_partial: bool = False) -> Coverage:
    """Loads weights into a detector as detectron2 does, and refuses a backbone that stays random in part.

    Args:
        model: A detector with a ``backbone``.
        path: File or address as in ``MODEL.WEIGHTS``; empty keeps the random initialisation.
        allow_partial: Go on with whatever the file fills.

    Returns:
        What was filled; also logged.

    Raises:
        UserError: The file is missing or unsafe, or leaves the backbone random in part.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    tensors = backbone_tensors(model)
    if not path:
        coverage = Coverage("", tuple(tensors), tuple(tensors))
        logger.info(str(coverage))
        return coverage
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:  # whatever a download may raise
        raise UserError(f"weights {path} cannot be fetched: {error}") from error
    check_file(local)
    checkpointer = _CountingCheckpointer(model)
    try:
        checkpointer.load(local, checkpointables=[])
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not in a layout of detectron2's ({error}); {ADVICE}") from error
    missing = tuple(name for name in tensors if name in checkpointer.missing_keys)
    coverage = Coverage(path, tuple(tensors), missing)
    logger.info(str(coverage))
    if coverage.missing and not allow_partial:
        first = ", ".join(coverage.missing[:3]) + (", ..." if len(coverage.missing) > 3 else "")
        raise UserError(
            f"{coverage}; not filled and so random: {first}; {ADVICE}, choose the config that fits it, "
            "or pass --allow-partial"
        )
    return coverage
