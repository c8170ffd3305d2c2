"""A pretended GPU: tensors on the CPU that call themselves cuda:0, and a count of what a GPU would wait for.

Inside ``pretending()`` what is moved to or made on "cuda" becomes a ``Pretended``. A mixture of devices is an error, as on a
GPU. ``COUNT`` has what is copied from the host and what the host waits for, with the line of the package that asked for
it, and the operations dispatched (one kernel or more each).
"""

import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from moco_plugin.methods import batch_norm

GPU = torch.device("cuda:0")
READ_BY_HOST = frozenset(
    "_local_scalar_dense is_nonzero nonzero masked_select equal _unique2 unique_dim bincount repeat_interleave".split()
)
NO_KERNEL = frozenset(
    "_unsafe_view detach empty_like empty new_empty empty_strided new_empty_strided lift_fresh lift".split()
)
NEW = (Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full)
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


@dataclass
class Count:
    """Copies from the host and waits of the host, by kind and line, and operations by name."""

    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def wait(self, kind: str, copies: bool = False) -> None:
        """Note a wait, or one of the ``copies`` for which the host does not wait."""
        frames = [f for f in traceback.extract_stack() if "/moco_plugin/" in f.filename]
        where = f"{frames[-1].filename.split('/moco_plugin/')[1]}:{frames[-1].lineno}" if frames else "library"
        (self.copies if copies else self.waits)[f"{kind} at {where}"] += 1

    def clear(self) -> None:
        for counter in (self.copies, self.waits, self.operations):
            counter.clear()


COUNT = Count()


def on_gpu(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


class Pretended(Tensor):
    """A tensor on the pretended GPU; ``held`` is where its numbers are."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        layout: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=held.device, **layout)
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"Pretended({tuple(self.shape)})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self) -> Any:
        COUNT.wait("tolist")
        return self.held.tolist()

    def record_stream(self, stream: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        indices = args[1] if name.startswith(("index", "_index")) and isinstance(args[1], list | tuple) else ()
        if name in READ_BY_HOST:
            COUNT.wait(name)
        for index in indices:
            if isinstance(index, Tensor) and (index.dtype == torch.bool or not isinstance(index, Pretended)):
                COUNT.wait(f"{name} by a mask or by indices on the host")
        if name == "copy_" and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
            COUNT.wait("copy_ between host and device")
        elif name != "copy_":
            there = {isinstance(t, Pretended) for t in tensors if t.ndim and not any(t is i for i in indices)}
            assert len(there) < 2, f"{func} mixes devices: {[(t.device.type, tuple(t.shape)) for t in tensors]}"
        if name not in NO_KERNEL and not any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
            COUNT.operations[name] += 1
        if on_gpu(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        args_held, kwargs_held = tree_map_only(Pretended, lambda t: t.held, (args, kwargs))
        result = tree_map_only(Tensor, Pretended, func(*args_held, **kwargs_held))
        return return_and_correct_aliasing(func, args, kwargs, result)


class _ToGPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return Pretended(tensor.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Tensor:
        return gradient.held if isinstance(gradient, Pretended) else gradient


class _Mode(TorchFunctionMode):
    """Calls that name a device: ``.to``, ``.cuda``, ``.cpu``, ``new_tensor`` and the constructors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward:
            with self:
                return torch.autograd.backward(args[0], kwargs.get("gradient"), kwargs.get("retain_graph"))
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            COUNT.wait("new_tensor")
            return Pretended(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if func is Tensor.pin_memory:
            return args[0]
        if func in NEW and isinstance(args[0], Pretended):
            kwargs.pop("device", None)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self.move(func, args, kwargs)
        if on_gpu(kwargs.get("device")):
            if func in FROM_HOST:
                if isinstance(args[0], Pretended):
                    return func(args[0], **{k: v for k, v in kwargs.items() if k != "device"})
                COUNT.wait(f"torch.{func.__name__}")
            kwargs["device"] = torch.device("cpu")
            gradient = kwargs.pop("requires_grad", False)
            made = func(*args, **kwargs)
            plain = isinstance(made, Tensor) and not isinstance(made, Pretended)
            return Pretended(made).requires_grad_(gradient) if plain else made
        return func(*args, **kwargs)

    def move(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, target, dtype = args[0], kwargs.get("device"), kwargs.get("dtype")
        target = {Tensor.cuda: GPU, Tensor.cpu: torch.device("cpu")}.get(func, target)
        for value in args[1:]:
            if isinstance(value, Tensor):
                target, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                target = value
        layout = {key: kwargs[key] for key in ("memory_format", "copy") if key in kwargs}
        pretended = isinstance(tensor, Pretended)
        if target is not None and on_gpu(target) != pretended:
            COUNT.wait("to the CPU" if pretended else "to the GPU", kwargs.get("non_blocking", False) and not pretended)
            if pretended:
                return tensor.held.to(dtype or tensor.dtype, copy=True)
            moved = tensor.to(dtype or tensor.dtype, **{"copy": True, **layout})
            return _ToGPU.apply(moved) if tensor.requires_grad else Pretended(moved.detach())
        with torch._C.DisableTorchFunctionSubclass():
            return Tensor.to(tensor, dtype or tensor.dtype, **layout) if dtype or layout else tensor


class _Moment:
    """A stream, an event, or the context of a stream, on which all is done as soon as it is asked for."""

    def __init__(self, *args: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *args: Any) -> None:
        pass

    def record(self) -> None:
        pass

    synchronize = record

    def wait_stream(self, stream: Any) -> None:
        pass


class _Kernels:
    """In place of the Triton kernels: three launches each way."""

    dense = staticmethod(lambda input: input)

    @staticmethod
    def forward(input: Any, weight: Any, bias: Any, running: Any, groups: int, eps: float, rate: float) -> Any:
        COUNT.operations["kernels"] += 3
        return [Pretended(made) for made in batch_norm._in_parts(input.held, weight.held, bias.held, groups, eps)]

    @staticmethod
    def backward(grad: Any, input: Any, weight: Any, means: Tensor, *_: Any) -> Any:
        COUNT.operations["kernels"] += 3
        held = [tensor.held.detach().requires_grad_() for tensor in (input, weight, weight)]
        with torch.enable_grad():
            made = batch_norm._in_parts(held[0], held[1], held[2], len(means), 1e-5)
            return [Pretended(gradient) for gradient in torch.autograd.grad(made[0], held, grad.held)]


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


@contextmanager
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """Pretend that there is a GPU and that runs train on it, inside the block; the count starts at nothing."""
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, _Moment)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**12, 10**12))
    monkeypatch.setattr("moco_plugin.methods.kernels", _Kernels, raising=False)
    batch_norm.kernels.cache_clear()  # its comparison of the kernels with torch is run as well
    construct = pl.Trainer.__init__

    @functools.wraps(construct)
    def on_the_gpu(self: pl.Trainer, **arguments: Any) -> None:
        strategy = SingleDeviceStrategy(GPU, _Accelerator())
        construct(self, **{**arguments, "strategy": strategy, "accelerator": "auto", "devices": 1})

    monkeypatch.setattr(pl.Trainer, "__init__", on_the_gpu)
    COUNT.clear()
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a Parameter's data cannot become pretended
    try:
        with _Mode():
            yield COUNT
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
        batch_norm.kernels.cache_clear()
