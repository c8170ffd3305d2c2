"""Reads checkpoint files without running what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moco_plugin.errors import UserError


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
        unsafe = "weights_only" in str(error).lower() or "Unsupported" in str(error)
        reason = "holds more than weights and was not loaded, since it could run code" if unsafe else (
            "is no whole torch checkpoint; it may be broken off, get it again"
        )
        raise UserError(f"{path} {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a dict of weights")
    return state
