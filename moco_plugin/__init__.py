"""Momentum Contrast (MoCo v1, v2, v3) for timm, lightly, LightlyTrain and detectron2.

The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_plugin.backbones import create_backbone, feature_dim
    from moco_plugin.methods import METHODS, Method, MoCo, MoCoV1, MoCoV3, build_method

__version__ = "0.1.0"
__all__ = ["METHODS", "Method", "MoCo", "MoCoV1", "MoCoV3", "build_method", "create_backbone", "feature_dim"]

_HOMES = {
    "METHODS": "moco_plugin.methods",
    "Method": "moco_plugin.methods",
    "MoCo": "moco_plugin.methods",
    "MoCoV1": "moco_plugin.methods",
    "MoCoV3": "moco_plugin.methods",
    "build_method": "moco_plugin.methods",
    "create_backbone": "moco_plugin.backbones",
    "feature_dim": "moco_plugin.backbones",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moco_plugin' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
