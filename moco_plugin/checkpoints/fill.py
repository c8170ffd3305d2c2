"""Loading of tensors into a network."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from moco_plugin.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


class Unfit(UserError):
    """A file cannot be read into a network; ``read_checkpoint`` puts the file's path before the sentence."""


class Mismatch(Unfit):
    """The weights are not those of the network."""


def fill(build: Callable[[], Module], state: Mapping[str, Tensor], kind: str) -> Module:
    """Return a network with copies of weights, in eval mode.

    The network is first built without memory, so that it cannot become larger than the weights.

    Args:
        build: Builds the network with random weights.
        state: All its weights; step counts of batch norms may be missing.
        kind: Name of the network, for the error's sentence.

    Raises:
        Mismatch: Names or shapes differ.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # reading draws no random numbers
        network = build()
    expected = network.state_dict()
    counters = [n for n in expected if n.endswith("num_batches_tracked") and n not in state]
    given = {**state, **{name: torch.zeros((), dtype=torch.int64) for name in counters}}
    faults = {
        "Missing keys": [name for name in expected if name not in given],
        "unknown keys": [name for name in given if name not in expected],
        "other shapes": [
            f"{name} is {_shape(given[name])}, expected {_shape(value)}"
            for name, value in expected.items()
            if name in given and given[name].shape != value.shape
        ],
    }
    if any(faults.values()):
        said = "; ".join(f"{fault}: {_list(names)}" for fault, names in faults.items() if names)
        raise Mismatch(f"the weights are not those of {kind}: {said}")
    weights = {name: _copy(name, given[name], value.dtype) for name, value in expected.items()}
    if any(name not in expected for name, _ in network.named_buffers()):
        with torch.random.fork_rng(devices=[]):
            network = build()  # with tables that are computed, not saved
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _copy(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_floating_point() != dtype.is_floating_point or value.is_complex():
        raise Mismatch(f"{name} contains {str(value.dtype)[6:]} numbers; expected {str(dtype)[6:]}")
    value = value.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if value.is_floating_point() and not value.sum().isfinite():
        raise Mismatch(f"{name} contains numbers that are not finite, so training diverged; use an earlier checkpoint")
    return value


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def _list(names: Iterable[str]) -> str:
    names = [name[:120] for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
