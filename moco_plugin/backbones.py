"""timm backbones, as the papers start them."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from moco_plugin.errors import UsageError, nearest


def create_backbone(name: str, **arguments: Any) -> nn.Module:
    """Creates a timm model that maps N x 3 x H x W images to N x ``feature_dim(model)`` features.

    Residual networks start with gamma 1 in the last batch norm of each block, as torchvision's do and v1 and
    v2 were trained; timm's own default of 0 is ``zero_init_last=True``.

    Args:
        name: Any name that timm.create_model knows.
        **arguments: Further arguments of timm.create_model, such as ``channels`` or ``pretrained``.

    Raises:
        UsageError: Unknown name (the nearest are offered) or arguments that the model does not take.
    """
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models()) or "; timm.list_models() lists them"
        raise UsageError(f"unknown backbone {name!r}: timm has no model of that name{hint}")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    try:
        if "zero_init_last" not in arguments:
            try:
                return timm.create_model(name, num_classes=0, zero_init_last=False, **arguments)
            except TypeError as error:  # not a residual network
                if "zero_init_last" not in str(error):
                    raise
        return timm.create_model(name, num_classes=0, **arguments)
    except TypeError as error:
        raise UsageError(f"backbone_args of {name}: {error}") from error


def feature_dim(backbone: nn.Module) -> int:
    """Returns the width of the pooled features of a timm model."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
