"""Reads checkpoint files of any known layout, found by content, without running what is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone
from moco_plugin.checkpoints.resnet import resnet_from_state
from moco_plugin.errors import UserError
from moco_plugin.evaluation.features import View
from moco_plugin.files import sha256

IMAGENET_VIEW = View(image_size=224, crop_ratio=0.875, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


@dataclass
class Checkpoint:
    """What every layout is read into.

    Attributes:
        path: The file.
        layout: Whose layout it is.
        architecture: Name of the backbone.
        backbone: The timm network, in eval mode, with the weights loaded, without a head.
        untrained: Builds the same network with random weights, from the run's seed where the file has it.
        head: The projection head's weights under the names that official checkpoints give them (fc...).
        view: How images are shown to the backbone.
        epoch: Epochs trained, where the file says.
        method: The method's name, where the file says.
        sha256: Of the file.
    """

    path: Path
    layout: str
    architecture: str
    backbone: nn.Module
    untrained: Callable[[], nn.Module]
    head: dict[str, Tensor] = field(default_factory=dict)
    view: View = field(default_factory=lambda: IMAGENET_VIEW)
    epoch: int | None = None
    method: str | None = None
    sha256: str = ""


def load_file(path: str | Path) -> dict[str, Any]:
    """Loads a torch checkpoint; tensors, numbers, strings and containers only.

    Raises:
        UserError: Nothing there, broken off, or something in it that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on hostile files
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            reason = "holds more than weights and was not loaded, since it could run code"
        else:
            reason = "is no whole torch checkpoint; it may be broken off or of another kind, get it again"
        raise UserError(f"{path} {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a dict of weights")
    return state


def below(state: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose keys start with ``prefix``, without it."""
    return {
        key[len(prefix) :]: value
        for key, value in state.items()
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, Tensor)
    }


def _read_ours(path: Path, file: dict[str, Any], encoder: str) -> Checkpoint | None:
    config = (file.get("hyper_parameters") or {}).get("config") if "state_dict" in file else None
    weights = below(file.get("state_dict") or {}, f"method.encoder_{encoder[0]}.")
    if not config or not weights:
        return None

    def untrained() -> nn.Module:
        torch.manual_seed(config["seed"])
        arguments = {**config["backbone_args"], "pretrained": False}
        return create_backbone(
            config["backbone"], image_size=config["data"]["image_size"], **arguments
        ).eval()

    try:
        backbone = untrained()
        backbone.load_state_dict(below(weights, "backbone."))
        data = config["data"]
        view = View(data["image_size"], data["crop_ratio"], data["mean"], data["std"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the weights that its config names: {error}".split("\n")[0]
        ) from error
    head = {f"fc.{key}": value for key, value in below(weights, "head.").items()}
    epoch = file.get("epoch")
    return Checkpoint(
        path, "moco_plugin", config["backbone"], backbone, untrained, head, view,
        None if epoch is None else epoch + 1, config["method"],
    )  # fmt: skip


def _read_official(path: Path, file: dict[str, Any], encoder: str) -> Checkpoint | None:
    weights = below(file.get("state_dict") or {}, f"module.encoder_{encoder[0]}.")
    if not weights:
        return None
    head = {key: value for key, value in weights.items() if key.startswith("fc.")}
    name, untrained, backbone = resnet_from_state(
        {key: value for key, value in weights.items() if key not in head}
    )
    method = "moco_v2" if "fc.2.weight" in head else "moco_v1"
    return Checkpoint(
        path, "official MoCo v1/v2", name, backbone, untrained, head, epoch=file.get("epoch"), method=method
    )


LAYOUTS: tuple[Callable[[Path, dict[str, Any], str], Checkpoint | None], ...] = (_read_ours, _read_official)


def read_checkpoint(path: str | Path, encoder: str = "query") -> Checkpoint:
    """Reads a checkpoint of any known layout.

    Args:
        path: Our ``last.ckpt`` or an official MoCo v1/v2 ``.pth.tar``.
        encoder: "query" or "key".

    Raises:
        UserError: Not a checkpoint, unsafe, of no known layout, or with weights missing.
    """
    path = Path(path).expanduser()
    file = load_file(path)
    for read in LAYOUTS:
        checkpoint = read(path, file, encoder)
        if checkpoint is not None:
            checkpoint.sha256 = sha256(path)
            return checkpoint
    raise UserError(
        f"{path} is of no known layout (its first keys: {', '.join(map(str, list(file)[:4]))}); "
        "expected a checkpoint of this project or an official MoCo v1/v2 one"
    )
