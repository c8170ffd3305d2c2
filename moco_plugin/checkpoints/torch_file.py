"""Reads what torch.save wrote, of any version, without running it; tensors are views of the mapped file.

torch.load(weights_only=True) runs no code either, but it cannot be held to a memory limit: it allocates what the
pickle of an old-style file claims (the released MoCo files are such), believes sizes beyond a record's end, and
admits ``bytearray(10**12)``. Here every tensor is checked against the bytes that are there before it exists.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch import Tensor

from moco_plugin.checkpoints.pickles import TABLE, BrokenPickle, Global, Placeholder, read_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGE_TYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class _Storage:
    """``count`` numbers in the file, from byte ``start``."""

    dtype: torch.dtype
    start: int
    count: int


def read_torch(content: mmap.mmap) -> Any:
    """Reads a mapped torch file, or one plain pickle.

    Args:
        content: The file, mapped with ``ACCESS_COPY``; tensors are views of it and keep it alive.

    Returns:
        What was saved. Objects of known frameworks are ``Placeholder``, tensors that are no plain ones too.

    Raises:
        UnsafePickle: It names something that could run code.
        BrokenPickle: Not a whole file.
    """
    if content[:4] == b"PK\x03\x04":
        try:
            return _read_zip(content)
        except (zipfile.BadZipFile, KeyError, ValueError, OverflowError, struct.error) as error:
            raise BrokenPickle(" ".join(str(error).split())[:200]) from error
    first = read_pickle(content, _table(content))
    if first != _LEGACY_MAGIC or isinstance(first, bool):
        return first
    return _read_legacy(content)


def _table(content: mmap.mmap) -> dict[str, Callable[..., Any]]:
    """Returns what stands for the calls by which pickles rebuild tensors."""

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        return _tensor(content, storage, offset, size, stride)

    def rebuild_as(
        storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
    ) -> Any:
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype) or not isinstance(storage, _Storage):
            raise BrokenPickle("a tensor without a type")
        count = storage.count * storage.dtype.itemsize // found.itemsize
        return _tensor(content, _Storage(found, storage.start, count), offset, size, stride)

    def rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
        if not isinstance(function, Global) or function.build is None:
            return Placeholder(getattr(function, "name", "tensor"))
        return function.build(*args)

    def parameter(data: Any, *rest: Any) -> Any:
        return data

    return {
        **TABLE,
        "torch._utils._rebuild_tensor": rebuild,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_tensor_v3": rebuild_as,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
        "torch.Size": tuple,
    }


def _tensor(content: mmap.mmap, storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    """Returns a view of a storage; one that repeats elements (and so could claim any size) as Placeholder."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 16:
        raise BrokenPickle("a tensor without a storage or a shape")
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise BrokenPickle("a tensor of an impossible shape")
    elements = math.prod(size)
    if not elements:
        return torch.empty(tuple(size), dtype=storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.count:
        raise BrokenPickle("a tensor that is larger than its storage")
    if elements > storage.count:
        return Placeholder("an expanded tensor")
    flat = torch.frombuffer(content, dtype=storage.dtype, count=storage.count, offset=storage.start)
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _storage_id(saved: Any, length: int) -> tuple[torch.dtype, str, int]:
    """Returns the type, the key and the count of numbers of the storage that a persistent id names."""
    if not isinstance(saved, tuple) or len(saved) != length or saved[0] != "storage":
        raise BrokenPickle("a reference to something else than numbers")
    kind, key, count = saved[1], saved[2], saved[4]
    dtype = _STORAGE_TYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 48:
        raise BrokenPickle("a reference to numbers of unknown kind or count")
    return dtype, key, count


def _read_zip(content: mmap.mmap) -> Any:
    entries = {entry.filename: entry for entry in zipfile.ZipFile(cast(IO[bytes], content)).infolist()}
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise BrokenPickle("a zip archive of another kind")
    root = roots[0]
    if f"{root}/constants.pkl" in entries:
        raise BrokenPickle("a TorchScript program; save its state_dict() instead")

    def extent(name: str) -> tuple[int, int]:
        """Returns where an entry's bytes lie; torch compresses nothing, so there is nothing to inflate."""
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise BrokenPickle(f"{name} is compressed")
        signature, name_length, extra_length = struct.unpack_from("<4s22xHH", content, entry.header_offset)
        start = entry.header_offset + 30 + name_length + extra_length
        if signature != b"PK\x03\x04" or start + entry.file_size > len(content):
            raise BrokenPickle(f"{name} lies outside of the file")
        return start, entry.file_size

    if f"{root}/byteorder" in entries:
        start, size = extent(f"{root}/byteorder")
        if content[start : start + min(size, 10)] != b"little":
            raise BrokenPickle("numbers of a big-endian machine")

    def storage(saved: Any) -> _Storage:
        dtype, key, count = _storage_id(saved, 5)
        start, size = extent(f"{root}/data/{key}")
        if count * dtype.itemsize > size:
            raise BrokenPickle(f"storage {key[:20]} is shorter than it claims")
        return _Storage(dtype, start, count)

    start, size = extent(f"{root}/data.pkl")
    return read_pickle(io.BytesIO(content[start : start + size]), _table(content), load_persistent=storage)


def _read_legacy(content: mmap.mmap) -> Any:
    """Reads a file of PyTorch before 1.6 from behind its magic number: pickles, then the storages one by one."""
    system = (read_pickle(content, TABLE), read_pickle(content, TABLE))
    if system[0] != _LEGACY_PROTOCOL or not isinstance(system[1], dict) or system[1].get("little_endian") is not True:
        raise BrokenPickle("another protocol, or numbers of a big-endian machine")
    start = content.tell()
    claimed: dict[str, tuple[torch.dtype, int]] = {}

    def claim(saved: Any) -> Any:
        dtype, key, count = _storage_id(saved, 6)
        claimed.setdefault(key, (dtype, count))
        return _Storage(dtype, 0, 0)

    # where the storages lie is known only behind the pickle, so it is gone through twice
    nothing = dict.fromkeys(
        (name for name in _table(content) if name.startswith("torch._")),
        lambda *args: Placeholder("a tensor"),
    )
    read_pickle(content, {**TABLE, **nothing, "torch.Size": tuple}, load_persistent=claim)
    keys = read_pickle(content, TABLE)
    storages: dict[str, _Storage] = {}
    position = content.tell()
    for key in keys if isinstance(keys, list) else []:
        if key not in claimed or position + 8 > len(content):
            raise BrokenPickle("a storage that nothing refers to, or that is not there")
        dtype, count = claimed[key]
        if struct.unpack_from("<q", content, position)[0] != count:
            raise BrokenPickle(f"storage {key[:20]} is not as long as it claims")
        storages[key] = _Storage(dtype, position + 8, count)
        position += 8 + count * dtype.itemsize
        if position > len(content):
            raise BrokenPickle("its end is missing")

    def storage(saved: Any) -> _Storage:
        dtype, key, _ = _storage_id(saved, 6)
        found, view = storages[key], saved[5]
        if view is not None:
            _, offset, count = view
            if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= found.count:
                raise BrokenPickle("a view that is larger than its storage")
            found = _Storage(found.dtype, found.start + offset * found.dtype.itemsize, count)
        if found.dtype != dtype:
            raise BrokenPickle("a storage of two types")
        return found

    content.seek(start)
    return read_pickle(content, _table(content), load_persistent=storage)


def module_state(module: Placeholder) -> dict[str, Tensor]:
    """Returns the state dict of a module that was pickled whole, found without building the module."""
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
