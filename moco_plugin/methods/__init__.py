"""MoCo as in the papers, in pure torch, and a factory of methods by name."""

import inspect
from typing import Any

from torch import nn

from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.methods.base import Method
from moco_plugin.methods.moco import MoCo, MoCoV1
from moco_plugin.methods.moco_v3 import MoCoV3
from moco_plugin.methods.registry import METHODS

__all__ = ["METHODS", "Method", "MoCo", "MoCoV1", "MoCoV3", "arguments_of", "build_method", "method_title"]


def method_title(name: str | None) -> str | None:
    """Return a method's name in reports, its class's title; None where no method has the name."""
    return METHODS.get(name).title if name is not None and name in METHODS else None


def arguments_of(method: type[Method]) -> dict[str, Any]:
    """Return the arguments that ``method_args`` takes, with their defaults."""
    arguments: dict[str, Any] = {}
    for base in method.__mro__:
        for name, parameter in inspect.signature(vars(base).get("__init__", object.__init__)).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                arguments.setdefault(name, parameter.default)
        if base is Method:
            break
    return arguments


def build_method(name: str, backbone: nn.Module, feature_dim: int, **arguments: Any) -> Method:
    """Build a method around a backbone.

    Args:
        name: One of METHODS.
        backbone: Maps N x 3 x H x W images to N x ``feature_dim`` features.
        feature_dim: Width of the backbone's features.
        **arguments: The method's own arguments; see its class.

    Raises:
        UsageError: Unknown name, unknown argument, or a value out of range.
    """
    method = METHODS.get(name)
    known = list(arguments_of(method))
    for argument in arguments:
        if argument not in known:
            raise UsageError(
                f"unknown key method_args.{argument}; {name} takes {', '.join(known)}{did_you_mean(argument, known)}"
            )
    try:
        return method(backbone, feature_dim, **arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UsageError(f"method_args: {' '.join(str(error).split())}") from error
