"""Restricted unpickling in a separate process: the body of that process, which needs only the standard library.

``load.read_pickle`` starts it with a file as standard input. It limits its own memory and processor time, calls only a
short list of constructors, and writes to standard output a pickle of plain containers, in which tensors, arrays and long
texts are positions in the file.
"""

from __future__ import annotations

import gc
import mmap
import pickle
import re
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from typing import Any, ClassVar

MEMORY = 256 << 20  # bytes, besides the mapped file and twice its pickle; of a thousand tensors 40 MB
SECONDS = 8  # of processor time, and one more for each 64 MB; a checkpoint of a thousand tensors takes 0.1
MOST_STRUCTURE = 32 << 20  # bytes handed over, besides as many as the pickle has
LONG = 1 << 16  # bytes of a text or an array that stay in the file
DEEPEST = 3000  # calls within calls while the outcome is written
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch before 1.6

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
    """A framework's class, function or object, by name, with the state and items of the object in the pickle."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attributes: dict[Any, Any] = {}
        self.mapping: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        """Return a placeholder for an object of the class."""
        return Placeholder(self.name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.mapping[key] = value

    def extend(self, values: Iterable[Any]) -> None:
        """Take no elements."""

    append = add = extend


class Later:
    """Plain arguments, from which the reading process builds an object, by the class's name."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return type(self), self.args


class Span(Later):
    """Bytes of the file, "raw", or a "text" in UTF-8, "encoded" in Latin-1: kind, start and length."""


class Array(Later):
    """An array: data, type, shape, and whether it is in Fortran order."""


class Scalar(Later):
    """A number: data and type."""


class Tensor(Later):
    """A view of a storage: key, type and part of the storage; type, offset, size and stride of the tensor."""


class Storage(Later):
    """Numbers in the file: key, type, and the part that a file of PyTorch before 1.6 names."""


class Dtype(Later):
    """A numpy type: its code; None for one that is not read, such as that of object arrays."""


def _latin1(text: Any, encoding: Any = "latin1") -> Any:
    """Stand for ``_codecs.encode``, which old protocols call for bytes."""
    if encoding != "latin1":
        raise BrokenPickle(f"text in the encoding {str(encoding)[:20]!r}")
    return Span("encoded", *text.args[1:]) if isinstance(text, Span) else text.encode("latin1")


def _dtype(code: Any, *flags: Any) -> Dtype:
    code = code.decode("latin1") if isinstance(code, bytes) else code
    known = isinstance(code, str) and re.fullmatch(r"[<=|]?([biu][1248]|f[248]|c8|c16|[?bBhHiIlLqQefd])", code)
    return Dtype(code if known else None)


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Array:
    if not isinstance(dtype, Dtype) or dtype.args[0] is None or not isinstance(data, (str, bytes, bytearray, Span)):
        raise BrokenPickle("an array of objects, not of numbers")
    return Array(data, *dtype.args, _sizes(shape), order == "F")


def _sizes(values: Any) -> tuple[int, ...]:
    sizes: tuple[Any, ...] = tuple(values)
    if len(sizes) > 32 or not all(type(value) is int and 0 <= value < 1 << 62 for value in sizes):
        raise BrokenPickle("something that has no shape")
    return sizes


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise BrokenPickle("a tensor without a storage")
    dtype = rest[2].name if len(rest) > 2 and isinstance(rest[2], Placeholder) else storage.args[1]
    return Tensor(*storage.args, dtype, *_sizes([offset]), _sizes(size), _sizes(stride))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


_CORES = ("numpy.core", "numpy._core")  # numpy 2 renamed the module
ARRAYS: dict[str, Callable[..., Any]] = {
    **{f"builtins.{kind.__name__}": kind for kind in (dict, list, set, frozenset, tuple)},
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1,
    "numpy.ndarray": Placeholder("numpy.ndarray"),  # the class of what _reconstruct makes
    "numpy.dtype": _dtype,
    **{f"{core}.multiarray._reconstruct": lambda *args: Array(b"", "i1", (0,), False) for core in _CORES},
    **{f"{core}.multiarray.scalar": lambda dtype, data: Scalar(*_array(data, dtype, ()).args[:2]) for core in _CORES},
    **{f"{core}.numeric._frombuffer": _array for core in _CORES},
}
TENSORS: dict[str, Callable[..., Any]] = {
    **{f"torch._utils._rebuild_tensor{version}": _tensor for version in ("", "_v2", "_v3")},
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: (
        function(*args) if function in (_tensor, _parameter) else Placeholder("a tensor")
    ),
    "torch.Size": tuple,
    "copyreg._reconstructor": lambda kind, *rest: kind(),
}


def _long(code: bytes, length: str, kind: str) -> Callable[[Any], None]:
    """Return the operation that leaves LONG values in the file, and reads others as the standard library does."""
    operation = pickle._Unpickler.dispatch[code[0]]

    def load(unpickler: Any) -> None:
        file = unpickler.file
        if unpickler._unframer.current_frame is None:
            start = file.tell() + struct.calcsize(length)
            (count,) = struct.unpack_from(length, file, file.tell())
            if start + count > len(file):
                raise BrokenPickle("it ends early")
            if count >= LONG:
                file.seek(start + count)
                unpickler.append(Span(kind, start, count))
                return
        operation(unpickler)

    return load


class Unpickler(pickle._Unpickler):
    """The standard library's unpickler, which calls only ``constructors``; objects of FRAMEWORKS become a ``Placeholder``.

    Args:
        file: At the pickle's first byte; reading leaves it behind the last.

    Attributes:
        storages: Type and count of each storage, by key.
    """

    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, encoding="latin1")
        self.file = file
        self.storages: dict[str, tuple[str, int]] = {}
        self.constructors = {**ARRAYS, **TENSORS}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the replacement of a class or function; the unpickler calls only what this returns."""
        module_name = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module_name, module_name)  # of Python 2
        full = f"{module_name}.{global_name}"
        if full in self.constructors:
            return self.constructors[full]
        if FRAMEWORKS.fullmatch(module_name) or full == "builtins.object":
            return Placeholder(full)
        raise UnsafePickle(full[:100])

    def load_build(self) -> None:
        """Set the attributes of a placeholder, the numbers of an array or the metadata of a state dict; ignore others."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            for part in state if isinstance(state, tuple) else (state,):
                target.attributes.update(part if isinstance(part, dict) else {})
        elif isinstance(target, OrderedDict):
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif isinstance(target, Array):
            _, shape, dtype, fortran, data = state
            target.args = _array(data, dtype, shape, "F" if fortran else "C").args
        elif isinstance(target, Dtype) and state[1] not in ("<", "|", "=", b"<", b"|", b"="):
            raise BrokenPickle("numbers of another byte order; expected little-endian ones")

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.stack[-1](*args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_newobj()

    def load_binpersid(self) -> None:
        saved = self.stack.pop()
        if isinstance(saved, tuple) and len(saved) > 1 and saved[0] == "module":
            self.append(saved[1])  # old files include the source code of modules
            return
        name, kind, key, _, count, *parts = saved
        if name != "storage" or not isinstance(kind, Placeholder) or not isinstance(key, str):
            raise BrokenPickle("a reference to something else than numbers")
        self.storages[key] = kind.name, _sizes([count])[0]
        part = _sizes(parts[0][1:]) if parts and parts[0] is not None else None
        self.append(Storage(key, kind.name, part))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BINBYTES[0]: _long(pickle.BINBYTES, "<I", "raw"),
        pickle.BINBYTES8[0]: _long(pickle.BINBYTES8, "<Q", "raw"),
        pickle.BYTEARRAY8[0]: _long(pickle.BYTEARRAY8, "<Q", "raw"),
        pickle.BINSTRING[0]: _long(pickle.BINSTRING, "<I", "raw"),
        pickle.BINUNICODE[0]: _long(pickle.BINUNICODE, "<I", "text"),
        pickle.BINUNICODE8[0]: _long(pickle.BINUNICODE8, "<Q", "text"),
        pickle.BUILD[0]: load_build,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BINPERSID[0]: load_binpersid,
    }


def _records(file: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Return start and length of each file in a zip archive of torch.save, by its name without the folder."""
    records = {}
    with zipfile.ZipFile(sys.stdin.buffer) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise BrokenPickle("its entries are compressed, which torch.save never does")
        name, extra = struct.unpack_from("<HH", file, entry.header_offset + 26)
        start = entry.header_offset + 30 + name + extra
        if file[entry.header_offset : entry.header_offset + 4] != b"PK\3\4" or start + entry.file_size > len(file):
            raise BrokenPickle("it ends early")
        records[entry.filename.partition("/")[2]] = start, entry.file_size
    if "constants.pkl" in records:  # torch.load would compile it
        raise BrokenPickle("a TorchScript program; save its state_dict() instead")
    start, length = records.get("byteorder", (0, 0))
    if file[start : start + length] == b"big":
        raise BrokenPickle("numbers of another byte order; expected little-endian ones")
    return records


def read(file: mmap.mmap) -> dict[str, Any]:
    """Return the ``content`` of a file, the ``size`` of its pickle, and ``about`` its storages: see ``load.Content``.

    Raises:
        UnsafePickle: It names something that could run code.
        Exception: It is not a whole file; broken files raise almost anything.
    """
    if tarfile.is_tarfile(sys.stdin.buffer):  # torch.load would extract its links
        raise BrokenPickle("a tar archive")
    places: dict[str, tuple[int, int]] = {}
    size, keys = len(file), []
    if is_zip := file[:4] == b"PK\3\4":
        records = _records(file)
        if "data.pkl" not in records:
            raise BrokenPickle("an archive of other things")
        start, size = records["data.pkl"]
        file.seek(start)
        places = {name[5:]: place for name, place in records.items() if name.startswith("data/")}
    limit(len(file), size)
    unpickler = Unpickler(file)
    content = unpickler.load()
    if not is_zip and type(content) is int and content == LEGACY_MAGIC:  # several pickles, and the numbers at the end
        unpickler.load(), unpickler.load()  # version and machine
        content, keys = unpickler.load(), unpickler.load()
        if not isinstance(keys, list) or len(set(keys)) != len(keys):
            raise BrokenPickle("other storages than those of its tensors")
    if not isinstance(content, (dict, Placeholder)):
        content = Placeholder(type(content).__name__)
    return {"content": content, "size": size, "about": (places, unpickler.storages, keys, file.tell())}


def limit(mapped: int, size: int) -> None:
    """Limit memory and time of this process, by the bytes of the mapped file and of its pickle; forbid writing files."""
    with suppress(ImportError):  # not on Windows
        import resource

        limits = {"AS": MEMORY + mapped + 2 * size, "CPU": SECONDS + (size >> 26), "FSIZE": 0, "CORE": 0}
        for name, most in limits.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Read the file at standard input and write the outcome to standard output."""
    gc.disable()
    sys.setrecursionlimit(DEEPEST)
    try:
        with mmap.mmap(0, 0, access=mmap.ACCESS_READ) as file:
            limit(len(file), 0)
            outcome = read(file)
        stream = BytesIO()
        pickle.Pickler(stream, 5).dump(outcome["content"])
        if stream.tell() > MOST_STRUCTURE + outcome["size"]:
            raise MemoryError
        written = pickle.dumps(("", *outcome["about"])) + stream.getbuffer()
    except UnsafePickle as error:
        written = pickle.dumps((str(error),))
    except MemoryError:
        written = pickle.dumps(("", "its content takes much more memory than the file"))
    except Exception as error:  # broken files raise almost anything
        written = pickle.dumps(("", " ".join(str(error).split())[:200] or type(error).__name__))
    sys.stdout.buffer.write(written)
