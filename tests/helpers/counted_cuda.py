"""Tensors on the CPU that say ``cuda:0``: they refuse others beside them, and count operations and waits for the device."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
# their result, or its size, is a number on the CPU
WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "bincount",
    "repeat_interleave",
}
# these launch nothing
FREE = {
    "empty_like",
    "empty",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "lift_fresh",
}
FROM_HOST = (torch.tensor, torch.as_tensor, torch.scalar_tensor)

operations: Counter[str] = Counter()
copies: Counter[str] = Counter()  # from the CPU
waits: Counter[str] = Counter()


class Pretended(Tensor):
    """Stands for a tensor on a GPU."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        pretended = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        pretended.held = held
        return pretended

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        waits["tolist"] += 1
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        others = [
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not isinstance(leaf, cls)
        ]
        if name == "copy_" and others:
            (copies if isinstance(args[0], cls) else waits)[name] += 1
        elif name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1:])
        ):
            waits[f"{name} by a mask"] += 1
        elif any(other.ndim for other in others):
            raise RuntimeError(f"mixed devices in {name}")
        if name in WAITING:
            waits[name] += 1
        views = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        operations[name] += not views and name not in FREE | WAITING
        held_args, held_kwargs = tree_map(_held, (args, kwargs or {}))
        made = tree_map(
            lambda value: cls(value) if isinstance(value, Tensor) else value, func(*held_args, **held_kwargs)
        )
        return return_and_correct_aliasing(func, args, kwargs or {}, made)


def _held(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.held
    return torch.device("cpu") if value == CUDA and isinstance(value, torch.device) else value


class _Mode(TorchFunctionMode):
    """Makes tensors with ``device=cuda:0``, and copies to and from it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.cpu):
            where = (
                torch.device("cpu") if func is Tensor.cpu else kwargs.get("device", args[1] if len(args) > 1 else None)
            )
            there = isinstance(args[0], Pretended)
            if isinstance(where, torch.device) and where.type == "cuda" and not there:
                copies["to"] += 1
                return Pretended(args[0].clone())
            if isinstance(where, torch.device) and where.type == "cpu" and there:
                waits["to the CPU"] += 1
                return args[0].held.clone()
            if isinstance(where, torch.device) and there:
                return args[0]
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            copies["new_tensor"] += 1
            return Pretended(torch.tensor(*args[1:], dtype=kwargs.get("dtype", args[0].dtype)))
        if func is Tensor.pin_memory:
            return args[0]
        if kwargs.get("device") == CUDA:
            copies[func.__name__] += func in FROM_HOST
            return Pretended(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def on_cuda(module: nn.Module) -> nn.Module:
    """Move a module to the pretended device."""
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                child._parameters[name] = nn.Parameter(Pretended(parameter.detach()), parameter.requires_grad)
        child._buffers.update(
            {name: Pretended(buffer) for name, buffer in child._buffers.items() if buffer is not None}
        )
    return module


@contextmanager
def counted() -> Iterator[None]:
    """Count from nothing what is done inside."""
    for counter in (operations, copies, waits):
        counter.clear()
    with _Mode():
        yield
