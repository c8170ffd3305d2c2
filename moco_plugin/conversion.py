"""Conversion of any checkpoint to any format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moco_plugin.checkpoints.proof import Network
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.checkpoints.to_onnx import ONNX
from moco_plugin.checkpoints.to_timm import LIGHTLY_TRAIN, TIMM
from moco_plugin.checkpoints.to_torchvision import TORCHVISION
from moco_plugin.checkpoints.write import convert_to
from moco_plugin.errors import UsageError, did_you_mean

TARGETS = ("detectron2", "detectron2-timm", "timm", "torchvision", "lightly-train", "onnx")


def convert(
    source: str | Path | Checkpoint,
    output: str | Path,
    to: str = "detectron2",
    *,
    encoder: str = "query",
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert a checkpoint, and print what it was and how exactly the result computes the same.

    Args:
        source: A checkpoint of any layout that ``read_checkpoint`` knows: a path, a released one's name, or as read.
        output: The file or folder to write: detectron2 ``.pkl``; timm ``.pth``, ``.pt``, ``.safetensors`` or a folder;
            torchvision ``.pth``, ``.pt`` or ``.safetensors``; lightly-train ``.pth`` or ``.pt``; onnx ``.onnx``.
        to: "detectron2" (its own ResNet, or ``build_timm_backbone`` for other networks), "detectron2-timm"
            (``build_timm_backbone`` for all), "timm", "torchvision", "lightly-train" or "onnx".
        encoder: "query" or "key", where the checkpoint has both.
        architecture: timm's name of the backbone, where the weights do not tell it.
        arguments: Of ``create_backbone``, for ``architecture``, such as ``{"num_heads": 12}``.
        prefix: What stands before the names of the encoder, for files of several networks in which none is known.
        overwrite: Replace what is there.

    Returns:
        The file's metadata: its source, how the target builds the network, and the ``proof``.

    Raises:
        UsageError: An unknown target, the output's ending, or the output exists.
        UserError: The source cannot be read, the target has no such network, or its features differ.
    """
    networks: dict[str, Callable[[Checkpoint], Network]] = {}
    formats = {format.name: format for format in (TIMM, TORCHVISION, LIGHTLY_TRAIN, ONNX)}
    if to.startswith("detectron2") or find_spec("detectron2") is not None:  # an optional dependency
        from moco_plugin.transfer.to_detectron2 import FORMATS, detectron2_source

        formats |= {format.name: format for format in FORMATS}
        networks["detectron2"] = detectron2_source
    if to not in formats:
        raise UsageError(f"to is {to!r}; expected one of {', '.join(TARGETS)}{did_you_mean(to, TARGETS)}")
    return convert_to(
        formats[to],
        source,
        output,
        encoder=encoder,
        architecture=architecture,
        arguments=arguments,
        prefix=prefix,
        overwrite=overwrite,
        network_of=networks,
    )
