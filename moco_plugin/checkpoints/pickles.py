"""Reads pickles without running them: containers, numbers, text, and what a short table builds; all else is inert.

Python's unpicklers call whatever a pickle names and allocate whatever its headers claim. This one goes through the
opcodes that ``pickletools`` decodes, calls nothing but the functions of its table, and holds what it does not know
as ``Placeholder``.
"""

from __future__ import annotations

import mmap
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, cast

import numpy as np

from moco_plugin.checkpoints.arrays import ARRAY_TABLE, NoNumbers, check_dtype_state, give_array_state

MOST_OPCODES = 2_000_000  # some five seconds; a checkpoint of a thousand tensors has fifty thousand

# Objects of these packages lie harmlessly in checkpoints: hyperparameters, paths, callbacks, whole modules.
FRAMEWORKS = frozenset(
    (
        "moco_plugin",
        "torch",
        "torchvision",
        "timm",
        "lightly",
        "lightly_train",
        "pytorch_lightning",
        "lightning",
        "lightning_fabric",
        "torchmetrics",
        "omegaconf",
        "argparse",
        "pathlib",
        "mmengine",
        "mmcv",
        "mmselfsup",
        "mmpretrain",
        "mmcls",
        "vissl",
        "classy_vision",
        "fvcore",
        "iopath",
        "detectron2",
        "yacs",
        "hydra",
        "numpy",
        "collections",
        "functools",
        "enum",
        "datetime",
        "typing",
        "addict",
        "solo",
        "pydantic",
        "dataclasses",
    )
)


class UnsafePickle(Exception):
    """A pickle that asks for something outside the table and the frameworks."""


class BrokenPickle(Exception):
    """No pickle, or not a whole one."""


@dataclass(eq=False)
class Global:
    """A class or function that a pickle names, with what stands for a call of it (None: a Placeholder)."""

    name: str
    build: Callable[..., Any] | None = None


@dataclass(eq=False)
class Placeholder:
    """An object that was not built: its class's name, and whatever the pickle gave it."""

    name: str
    args: tuple[Any, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    mapping: dict[Any, Any] = field(default_factory=dict)


def lookup(value: Any, *path: str) -> Any:
    """Follows keys of dicts and attributes of placeholders; None where there is no such thing."""
    for name in path:
        if isinstance(value, Placeholder):
            value = value.attributes.get(name, value.mapping.get(name))
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def _hashed(values: Iterable[Any]) -> Iterable[Any]:
    """Return values that will be hashed; nested tuples that share their parts take forever to hash.

    Raises:
        BrokenPickle: One is nested.
    """
    values = list(values)
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        if isinstance(value, frozenset) or any(isinstance(part, (tuple, frozenset)) for part in parts):
            raise BrokenPickle("a nested tuple as a key")
    return values


def _copying(kind: type[Any]) -> Callable[..., Any]:
    """Returns what stands for a container's class: called with nothing or with another container."""

    def build(*args: Any) -> Any:
        if len(args) > 1 or not all(isinstance(a, (list, tuple, dict, set, frozenset)) for a in args):
            raise BrokenPickle(f"a call of {kind.__name__} with other than one container")
        if issubclass(kind, dict) and args and not isinstance(args[0], dict):
            _hashed(pair[0] for pair in args[0])
        elif issubclass(kind, (set, frozenset)) and args:
            _hashed(args[0])
        return kind(*args)

    return build


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands for ``_codecs.encode``, which old protocols call for bytes; other encodings can take forever."""
    if not isinstance(text, str) or not isinstance(encoding, str):
        raise BrokenPickle("encoded text that is none")
    if encoding != "latin1":
        raise BrokenPickle(f"text in the encoding {encoding[:20]!r}")
    return text.encode("latin1")


# Sufficient for state dicts of numpy arrays.
TABLE: dict[str, Callable[..., Any]] = {
    **{f"builtins.{kind.__name__}": _copying(kind) for kind in (dict, list, set, frozenset, tuple)},
    "collections.OrderedDict": _copying(OrderedDict),
    "_codecs.encode": _latin1,
    **ARRAY_TABLE,
}


def read_pickle(
    stream: IO[bytes] | mmap.mmap,
    table: Mapping[str, Callable[..., Any]],
    placeholders: bool = True,
    load_persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle and leaves the stream behind it.

    Args:
        stream: At the pickle's first byte.
        table: What stands for a call of a class or function, by its full name.
        placeholders: Hold objects of FRAMEWORKS as ``Placeholder``; else they are refused as all others are.
        load_persistent: What a persistent id stands for.

    Raises:
        UnsafePickle: Something outside the table is named.
        BrokenPickle: Not a whole pickle, one of more than MOST_OPCODES, or one that does not fit together.
    """
    try:
        return _Machine(table, placeholders, load_persistent).run(stream)
    except (UnsafePickle, BrokenPickle):
        raise
    except Exception as error:  # broken pickles raise almost anything
        raise BrokenPickle(" ".join(f"{type(error).__name__}: {error}"[:200].split())) from error


_PUSHED_ARGUMENTS = frozenset(
    (
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    )
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(
        self,
        table: Mapping[str, Callable[..., Any]],
        placeholders: bool,
        load_persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.table = table
        self.placeholders = placeholders
        self.load_persistent = load_persistent
        self.globals: dict[str, Global] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes] | mmap.mmap) -> Any:
        stack, memo = self.stack, self.memo
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            name = opcode.name
            if name in _PUSHED_ARGUMENTS:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                index = len(memo) if argument is None else int(cast(int, argument))
                if index > count:  # Python's own unpickler would allocate that many places
                    raise BrokenPickle(f"place {index} in a memo of {len(memo)}")
                memo[index] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[int(cast(int, argument))])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name == "MARK":
                self.marks.append(len(stack))
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                self.step(name, argument)
            if count > MOST_OPCODES:
                raise BrokenPickle(f"more than {MOST_OPCODES} steps")
        raise BrokenPickle("it has no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif name in ("SETITEMS", "SETITEM"):
            pairs = self.pop_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            target = stack[-1].mapping if isinstance(stack[-1], Placeholder) else stack[-1]
            if not isinstance(target, dict):
                raise BrokenPickle(f"items for a {type(target).__name__}")
            target.update(zip(_hashed(pairs[::2]), pairs[1::2], strict=True))
        elif name in ("APPENDS", "APPEND", "ADDITEMS"):
            values = [stack.pop()] if name == "APPEND" else self.pop_mark()
            target = stack[-1].items if isinstance(stack[-1], Placeholder) else stack[-1]
            if isinstance(target, set):
                target.update(_hashed(values))
            elif isinstance(target, list):
                target.extend(values)
            else:
                raise BrokenPickle(f"elements for a {type(target).__name__}")
        elif name == "GLOBAL":
            module, _, name = argument.partition(" ")
            stack.append(self.find(module, name))
        elif name == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(name, str):
                raise BrokenPickle(f"a {type(name).__name__} as the name of a class")
            stack.append(self.find(module, name))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()  # keyword arguments
            args = stack.pop()
            stack.append(self.call(stack.pop(), args))
        elif name == "BUILD":
            state = stack.pop()
            _give_state(stack[-1], state)
        elif name == "BINPERSID" and self.load_persistent is not None:
            stack.append(self.load_persistent(stack.pop()))
        elif name == "LIST":
            stack.append(self.pop_mark())
        elif name == "FROZENSET":
            stack.append(frozenset(_hashed(self.pop_mark())))
        elif name == "DICT":
            pairs = self.pop_mark()
            stack.append(dict(zip(_hashed(pairs[::2]), pairs[1::2], strict=True)))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.pop_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise BrokenPickle(f"the opcode {name}")

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def find(self, module: str, name: str) -> Global:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # Python 2's names
        full = f"{module}.{name}"
        if full not in self.globals:
            build = self.table.get(full)
            framework = module.split(".")[0] in FRAMEWORKS or full in (
                "copyreg._reconstructor",
                "builtins.object",
            )
            if build is None and not (self.placeholders and framework):
                raise UnsafePickle(full[:100])
            self.globals[full] = Global(full, build)
        return self.globals[full]

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise BrokenPickle(f"a call of a {type(function).__name__}")
        if function.build is not None:
            return function.build(*args)
        if function.name == "copyreg._reconstructor" and args and isinstance(args[0], Global):
            return self.call(args[0], ())
        return Placeholder(function.name, args)


def _give_state(target: Any, state: Any) -> None:
    """What BUILD does: attributes for placeholders, the module versions that PyTorch keeps on state dicts."""
    if isinstance(target, Placeholder):
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                target.attributes.update(part)
    elif isinstance(target, OrderedDict):
        if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]
    elif isinstance(target, np.ndarray):
        give_array_state(target, state)
    elif isinstance(target, (np.dtype, NoNumbers)):
        check_dtype_state(state)
    elif not isinstance(target, (list, dict, set)):
        raise BrokenPickle(f"a state for a {type(target).__name__}")
