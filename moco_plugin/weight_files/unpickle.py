"""Restricted unpickling: only a short list of constructors is called, everything else becomes inert.

``torch.load`` takes this module as its ``pickle_module`` and reads tensors, old files and mapped memory; the unpickler is
the standard library's, in which names are looked up, called and given state under the rules below.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

MOST_OPCODES = 2_000_000  # seconds; a checkpoint of a thousand tensors has fifty thousand
MOST_DIMENSIONS = 32  # of an array
LONGEST_FILE = 1 << 48  # bytes, where a stream does not tell its length

# Objects of these packages are found in checkpoints: hyperparameters, paths, callbacks, whole modules.
FRAMEWORKS = re.compile(
    r"(addict|argparse|classy_vision|collections|dataclasses|datetime|detectron2|enum|functools|fvcore|"
    r"hydra|iopath|lightly|lightly_train|lightning|lightning_fabric|mmcls|mmcv|mmengine|mmpretrain|"
    r"mmselfsup|moco_plugin|numpy|omegaconf|pathlib|pydantic|pytorch_lightning|solo|timm|torch|"
    r"torchmetrics|torchvision|typing|vissl|yacs)(\..*)?"
)


class UnsafePickle(Exception):
    """A pickle that names something outside the constructors and the frameworks."""


class BrokenPickle(Exception):
    """Not a whole pickle, or one that does not fit together."""


class Placeholder:
    """A framework's class, function or object, by its name; objects have the state and items that the pickle holds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attributes: dict[Any, Any] = {}
        self.mapping: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        """Return what stands for an object of the class; no code of the framework runs."""
        return Placeholder(self.name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.mapping[key] = value

    def extend(self, values: Iterable[Any]) -> None:
        """Take no elements."""

    append = add = extend


def _check_keys(values: Iterable[Any]) -> None:
    """Raise BrokenPickle for nested tuples: those that share their parts take forever to hash."""
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        if isinstance(value, frozenset) or any(isinstance(part, (tuple, frozenset)) for part in parts):
            raise BrokenPickle("a nested tuple as a key")


def _container(kind: type[Any]) -> Callable[..., Any]:
    def build(*args: Any) -> Any:
        if len(args) > 1 or not all(isinstance(a, (list, tuple, dict, set, frozenset)) for a in args):
            raise BrokenPickle(f"a call of {kind.__name__} with other than one container")
        if issubclass(kind, dict) and args and not isinstance(args[0], dict):
            _check_keys(pair[0] for pair in args[0])
        elif issubclass(kind, (set, frozenset)) and args:
            _check_keys(args[0])
        return kind(*args)

    return build


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stand for ``_codecs.encode``, which old protocols call for bytes; other encodings can take forever."""
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding != "latin1":
        raise BrokenPickle(f"text in the encoding {str(encoding)[:20]!r}" if isinstance(encoding, str) else "no text")
    return text.encode("latin1")


# --- numpy: arrays are built after their shapes were compared with their bytes


class _OtherDtype:
    """The dtype of arrays that are not read, such as object arrays."""


def _dtype(code: Any, *flags: Any) -> np.dtype | _OtherDtype:
    code = code.decode("latin1") if isinstance(code, bytes) else code if isinstance(code, str) else ""
    is_read = re.fullmatch(r"[<=|]?([biu][1248]|f[248]|c8|c16|[?bBhHiIlLqQefd])", code)
    return np.dtype(code) if is_read else _OtherDtype()


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """Return the bytes ``data`` as numbers, as many as ``shape`` has."""
    if not isinstance(dtype, np.dtype):
        raise BrokenPickle("an array of objects, not of numbers")
    data = data.encode("latin1") if isinstance(data, str) else data
    shape = tuple(shape)
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise BrokenPickle("an array without a shape")
    if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * dtype.itemsize:
        raise BrokenPickle("an array whose shape is not that of its bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _no_array(*args: Any) -> Any:
    raise BrokenPickle("an array defined by its shape only")  # it could be of any size


# --- tensors


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Return a view of a storage; one that repeats elements, and so could claim any size, is a Placeholder."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise BrokenPickle("a tensor without a storage")
    tensor = torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))
    repeats = tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 1)
    return Placeholder("an expanded tensor") if repeats else tensor


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    dtype = rest[2]  # after requires_grad and the hooks
    if not isinstance(storage, torch.storage.TypedStorage) or not isinstance(dtype, torch.dtype):
        raise BrokenPickle("a tensor without a type")
    typed = torch.storage.TypedStorage(wrap_storage=storage._untyped_storage, dtype=dtype, _internal=True)
    return _tensor(typed, offset, size, stride)


def _tensor_of_subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    return function(*args) if function in (_tensor, _tensor_of_dtype, _parameter) else Placeholder("a tensor")


def _parameter(data: Any, *rest: Any) -> Any:
    return data


_CORES = ("numpy.core", "numpy._core")  # numpy 2 renamed the module
ARRAYS: dict[str, Callable[..., Any]] = {
    **{f"builtins.{kind.__name__}": _container(kind) for kind in (dict, list, set, frozenset, tuple)},
    "collections.OrderedDict": _container(OrderedDict),
    "_codecs.encode": _latin1,
    "numpy.ndarray": _no_array,  # named as the class of what _reconstruct makes, never called
    "numpy.dtype": _dtype,
    **{f"{core}.multiarray._reconstruct": lambda *args: np.zeros(0, np.int8) for core in _CORES},
    **{f"{core}.multiarray.scalar": lambda dtype, data: _array(data, dtype, ())[()] for core in _CORES},
    **{f"{core}.numeric._frombuffer": _array for core in _CORES},
}
TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_subclass,
    "torch.Size": tuple,
    "copyreg._reconstructor": lambda kind, *rest: kind(),
}


class _Dispatch(dict):
    """A dispatch table that stops the unpickler after MOST_OPCODES operations."""

    left = MOST_OPCODES

    def __getitem__(self, opcode: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise BrokenPickle(f"more than {MOST_OPCODES} steps")
        return super().__getitem__(opcode)


def _check_items(target: Any, keys: Iterable[Any]) -> None:
    if not isinstance(target, (dict, Placeholder)):
        raise BrokenPickle(f"items for a {type(target).__name__}")
    _check_keys(keys)


# What the unpickler looks at before an operation of the standard library's puts keys into a container.
CHECKS: dict[bytes, Callable[[Any], None]] = {
    pickle.SETITEM: lambda unpickler: _check_items(unpickler.stack[-3], unpickler.stack[-2:-1]),
    pickle.SETITEMS: lambda unpickler: _check_items(unpickler.metastack[-1][-1], unpickler.stack[::2]),
    pickle.DICT: lambda unpickler: _check_keys(unpickler.stack[::2]),
    pickle.ADDITEMS: lambda unpickler: _check_keys(unpickler.stack),
    pickle.FROZENSET: lambda unpickler: _check_keys(unpickler.stack),
}


def _checked(opcode: int, check: Callable[[Any], None]) -> Callable[[Any], None]:
    operation = pickle._Unpickler.dispatch[opcode]

    def load(unpickler: Any) -> None:
        check(unpickler)
        operation(unpickler)

    return load


class Unpickler(pickle._Unpickler):
    """The standard library's unpickler, which calls nothing but what ``constructors`` has.

    Args:
        file: At the pickle's first byte.
        placeholders: Accept objects of FRAMEWORKS, as ``Placeholder``; without, they are refused as all others are.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes], *, placeholders: bool = True, **kwargs: Any) -> None:
        super().__init__(file, encoding="latin1")
        self.placeholders = placeholders
        self.constructors = {**ARRAYS, **TENSORS} if placeholders else ARRAYS
        self.dispatch = _Dispatch(self._operations)  # type: ignore[misc]
        self.size = LONGEST_FILE
        with suppress(OSError):  # a stream in memory never reads more than there is
            self.size = os.fstat(file.fileno()).st_size
            # a file's buffer would be as long as the pickle claims
            self._file_read = lambda count: file.read(min(count, max(self.size - file.tell(), 0)))

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what stands for a class or function; the unpickler calls nothing that was not returned here."""
        module_name = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module_name, module_name)  # of Python 2
        full = f"{module_name}.{global_name}"
        if full in self.constructors:
            return self.constructors[full]
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        if self.placeholders and (FRAMEWORKS.fullmatch(module_name) or full == "builtins.object"):
            return Placeholder(full)
        raise UnsafePickle(full[:100])

    def get_extension(self, code: int) -> None:
        raise BrokenPickle("an extension")

    def load_build(self) -> None:
        """Give an object its state: placeholders their attributes, arrays their numbers, state dicts their versions."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            for part in state if isinstance(state, tuple) else (state,):
                target.attributes.update(part if isinstance(part, dict) else {})
        elif isinstance(target, OrderedDict):
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif isinstance(target, np.ndarray):
            _, shape, dtype, fortran, data = state
            _array(data, dtype, shape)
            target.__setstate__((1, tuple(shape), dtype, bool(fortran), data))  # type: ignore[arg-type]
        elif isinstance(target, (np.dtype, _OtherDtype)):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "=", b"<", b"|", b"="):
                raise BrokenPickle("numbers of another byte order; expected little-endian ones")
        elif not isinstance(target, (list, dict, set)):
            raise BrokenPickle(f"a state for a {type(target).__name__}")

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.stack[-1](*args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_newobj()

    def load_binpersid(self) -> None:
        saved = self.stack.pop()
        if not isinstance(saved, tuple) or len(saved) < 2:
            raise BrokenPickle("a reference to something else than numbers")
        _check_keys(part[:1] if isinstance(part, tuple) else part for part in saved)
        if len(saved) > 4 and not (type(saved[4]) is int and 0 <= saved[4] <= self.size):
            raise BrokenPickle("a storage that is larger than the file")
        # old files include the source code of modules
        self.append(saved[1] if saved[0] == "module" else self.persistent_load(saved))

    _operations: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{code[0]: _checked(code[0], check) for code, check in CHECKS.items()},
        pickle.BUILD[0]: load_build,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BINPERSID[0]: load_binpersid,
    }


def load(file: IO[bytes], *, placeholders: bool = True, **kwargs: Any) -> Any:
    """Read one pickle and leave the file behind it; ``torch.load`` calls this for files of PyTorch before 1.6.

    Raises:
        UnsafePickle: It names something that could run code.
        Exception: It is not a whole pickle; broken pickles raise almost anything.
    """
    return Unpickler(file, placeholders=placeholders).load()


def module_state(module: Placeholder) -> dict[str, Tensor]:
    """Return the state dict of a module that was pickled whole, found without building the module."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, Placeholder) or id(module) in seen:
            continue
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            tensors = module.attributes.get(kind)
            if isinstance(tensors, dict):
                state |= {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}
        children = module.attributes.get("_modules")
        if isinstance(children, dict):
            waiting += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]
    return state
