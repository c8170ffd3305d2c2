"""numpy's arrays and scalars as they lie in pickles, built after their shapes have been held against their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

# Both occur, since numpy 2 renamed the module.
_CORES = ("numpy.core", "numpy._core")
_NUMBERS = re.compile(r"[<=|]?([biu][1248]|f[248]|c8|c16|[?bBhHiIlLqQefd])")


@dataclass(frozen=True)
class NoNumbers:
    """The dtype of arrays that are not read, such as those of objects."""

    code: str


def _dtype(code: Any, *flags: Any) -> np.dtype | NoNumbers:
    code = code.decode("latin1") if isinstance(code, bytes) else code if isinstance(code, str) else ""
    return np.dtype(code) if _NUMBERS.fullmatch(code) else NoNumbers(code[:20])


def _scalar(dtype: Any, data: Any) -> Any:
    return _numbers(dtype, (), data)[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _numbers(dtype, shape, data).reshape(shape, order="F" if order == "F" else "C")


def _array_of_shape(*args: Any) -> Any:
    raise ValueError("an array that is made by its shape alone")  # it could be of any size


def _numbers(dtype: Any, shape: Any, data: Any) -> np.ndarray:
    """Returns the bytes ``data`` as numbers, as many as ``shape`` has."""
    if not isinstance(dtype, np.dtype):
        raise ValueError(f"an array of {dtype}, not of numbers")
    data = data.encode("latin1") if isinstance(data, str) else data
    shape = tuple(shape)
    if len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array without a shape")
    if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array whose shape is not that of its bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def give_array_state(array: np.ndarray, state: Any) -> None:
    """Gives an empty array its numbers: what BUILD stands for.

    Raises:
        ValueError: The state is not that of an array of numbers.
    """
    _, shape, dtype, fortran, data = state
    _numbers(dtype, shape, data)
    cast(Any, array).__setstate__((1, tuple(shape), dtype, bool(fortran), data))


def check_dtype_state(state: Any) -> None:
    """Checks what pickles add to a dtype: only little-endian numbers are read.

    Raises:
        ValueError: Other numbers.
    """
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "=", b"<", b"|", b"="):
        raise ValueError("numbers of another byte order; expected little-endian ones")


ARRAY_TABLE: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _array_of_shape,  # named as the class of what _reconstruct makes, never called
    "numpy.dtype": _dtype,
    **{f"{core}.multiarray._reconstruct": lambda *args: np.zeros(0, np.int8) for core in _CORES},
    **{f"{core}.multiarray.scalar": _scalar for core in _CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in _CORES},
}
