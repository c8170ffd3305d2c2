"""METHODS: what ``method=NAME`` in a config may name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from moco_plugin.errors import UsageError, nearest
from moco_plugin.methods import MoCo, MoCoV3, moco_v1

METHODS = Registry("METHODS")
METHODS._do_register("moco", MoCo)
METHODS._do_register("moco_v1", moco_v1)
METHODS._do_register("moco_v2", MoCo)
METHODS._do_register("moco_v3", MoCoV3)


def method_names() -> list[str]:
    """Returns the names that ``method=`` takes."""
    return [name for name, _ in METHODS]


def _arguments(builder: Callable[..., nn.Module]) -> Iterator[str]:
    for function in (builder, MoCo) if builder is moco_v1 else (builder,):  # v1's **arguments are MoCo's
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                yield name


def build_method(name: str, backbone: nn.Module, feature_dim: int, **arguments: Any) -> nn.Module:
    """Builds the method called ``name`` around a backbone.

    Args:
        name: One of METHODS.
        backbone: Maps N x 3 x H x W images to N x ``feature_dim`` features.
        feature_dim: Width of the backbone's features.
        **arguments: The method's own arguments; see its class.

    Raises:
        UsageError: Unknown name, unknown argument, or a value out of range.
    """
    if name not in METHODS:
        known = method_names()
        raise UsageError(f"unknown method {name!r}; known are {', '.join(known)}{nearest(name, known)}")
    builder = METHODS.get(name)
    known = list(dict.fromkeys(_arguments(builder)))
    for argument in arguments:
        if argument not in known:
            raise UsageError(
                f"unknown key method_args.{argument}; {name} takes {', '.join(known)}{nearest(argument, known)}"
            )
    try:
        return builder(backbone, feature_dim, **arguments)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UsageError(f"method_args: {error}") from error
