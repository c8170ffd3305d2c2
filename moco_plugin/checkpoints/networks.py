"""Loading of weights into a network if every name and shape matches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moco_plugin.errors import UserError

MOST_BLOCKS = 512  # in one network; ResNet-152 has 50
# Attributes of modules that change no features in eval mode.
_OF_TRAINING = frozenset(
    (
        "training",
        "momentum",
        "inplace",
        "drop_rate",
        "grad_checkpointing",
        "fused_attn",
        "num_classes",
        "track_running_stats",
        "weight_init_mode",
    )
)
Module = TypeVar("Module", bound=nn.Module)


class Mismatch(UserError):
    """The weights are not those of the network."""


def fit(build: Callable[[], Module], state: Mapping[str, Tensor], kind: str) -> Module:
    """Return the network with copies of these weights, in eval mode.

    The network is first built without memory, so that no header makes it larger than the weights that are there.

    Args:
        build: Builds the network with random weights.
        state: All its weights; batch norm's step counts may be missing.
        kind: What the network is, for the error's sentence.

    Raises:
        Mismatch: Names or shapes differ.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # reading moves no random numbers
        network = build()
    expected = network.state_dict()
    counters = [n for n in expected if n.endswith("num_batches_tracked") and n not in state]
    given = {**state, **{name: torch.zeros((), dtype=torch.int64) for name in counters}}
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    other = [
        f"{name} is {_shape(given[name])}, expected {_shape(value)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    if missing or unknown or other:
        reasons = [
            f"Missing keys: {_list(missing)}" if missing else "",
            f"unknown keys: {_list(unknown)}" if unknown else "",
            f"other shapes: {_list(other)}" if other else "",
        ]
        raise Mismatch(f"the weights are not those of {kind}: {'; '.join(filter(None, reasons))}")
    weights = {name: _copy(name, given[name], value.dtype) for name, value in expected.items()}
    if any(name not in expected for name, _ in network.named_buffers()):
        with torch.random.fork_rng(devices=[]):
            network = build()  # with tables that are computed, not saved
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _copy(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_floating_point() != dtype.is_floating_point or value.is_complex():
        raise Mismatch(f"{name} holds {str(value.dtype).removeprefix('torch.')} numbers; expected {str(dtype)[6:]}")
    value = value.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if value.is_floating_point() and not value.sum().isfinite():
        raise Mismatch(f"{name} holds numbers that are not finite, so training diverged; use an earlier checkpoint")
    return value


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def _list(names: Iterable[str]) -> str:
    names = [name[:120] for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def wiring_differences(one: nn.Module, other: nn.Module) -> list[tuple[str, Any, Any]]:
    """Return what two networks compute differently with the same weights: heads, strides, epsilons, activations, pooling.

    Returns:
        Name of the layer and its attribute, and the value in both; what only training uses (dropout) is left out.
    """
    first, second = _wiring(one), _wiring(other)
    names = sorted(first.keys() | second.keys(), key=lambda name: (not name.endswith("num_heads"), name))
    return [(name, a, b) for name in names if (a := first.get(name)) != (b := second.get(name))]


def _wiring(network: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        kind = type(module).__name__
        found[f"{name} layer".strip()] = "Identity" if kind in ("Dropout", "DropPath", "PatchDropout") else kind
        if kind in ("Dropout", "DropPath", "PatchDropout"):
            continue
        for key, value in vars(module).items():
            if (
                isinstance(value, (bool, int, float, str, tuple))
                and not key.startswith("_")
                and key not in _OF_TRAINING
            ):
                found[f"{name}.{key}".strip(".")] = value
    return found


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return how many blocks a network has by the names ``prefix`` + NUMBER + "...".

    Raises:
        Mismatch: More than MOST_BLOCKS, or some are not there.
    """
    numbers = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    count = len(numbers)
    if count > MOST_BLOCKS or numbers != {str(number) for number in range(count)}:
        raise Mismatch(f"the weights have {count} blocks {prefix}N, not all of 0 to {max(count, 1) - 1}, or too many")
    return count
