"""Any weight file or folder as dicts of tensors, numbers and text."""

import json
import math
import mmap
import os
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from moco_plugin.errors import UserError, reason
from moco_plugin.files import check_file, open_file, parse_json, read_text
from moco_plugin.weight_files.unpickle import BrokenPickle, Placeholder, UnsafePickle

MOST_TENSORS = 50_000  # in one file; a ViT-H with optimizer has 2,000
LONGEST_NAME = 500  # characters
DEEPEST = 6  # dicts within dicts
MOST_HEADER = 16 << 20  # bytes of a safetensors header or a config.json; of a thousand tensors 100 KB
# Parts of checkpoints that contain no network's weights.
NO_WEIGHTS = frozenset(
    (
        "optimizer optimizers optimizer_states optimizer_state lr_schedulers lr_scheduler scheduler param_schedulers "
        "scaler amp amp_scaler best_acc1 callbacks loops hyper_parameters datamodule_hyper_parameters rng_state "
        "rng_states random_states message_hub meta lightly_train moco_plugin trainer"
    ).split()
)
WHAT = "a checkpoint"
CONFIG = "config.json"
FOLDER_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")


@dataclass
class WeightFile:
    """A weight file: tensors, numbers, text, containers, and placeholders for other objects.

    Tensors are views of the mapped file, so they take memory only when they are read.

    Attributes:
        path: The given file or folder.
        weights: The file with the tensors.
        content: Its content.
        size: Bytes of all its weights.
        metadata: Metadata of this project's converters.
        config: ``config.json`` of a folder.
    """

    path: Path
    weights: Path
    content: dict[Any, Any]
    size: int
    metadata: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


def load_file(path: str | Path) -> WeightFile:
    """Read a torch file of any version, a zoo pickle, a safetensors file, or the folder that timm opens.

    Raises:
        UserError: The file is missing or incomplete, or could run code.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        return _load_folder(path)
    check_file(path, WHAT)
    with _refusing(path):
        size, metadata = path.stat().st_size, None
        if path.name.endswith(".safetensors.index.json"):
            content: dict[Any, Any] = {"state_dict": _load_shards(path)}
            size = sum(value.nbytes for value in content["state_dict"].values())
        elif _is_safetensors(path):
            tensors, header = _load_safetensors(path)
            content, metadata = {"state_dict": tensors, **header}, json.loads(header.get("moco_plugin", "{}"))
        else:
            content = _load_torch(path)
            metadata = content.get("moco_plugin") or getattr(content, "_metadata", {}).get("moco_plugin")
        return WeightFile(path, path, content, size, metadata if isinstance(metadata, dict) else {})


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn errors of readers on broken and hostile files into one sentence."""
    try:
        yield
    except UserError:
        raise
    except UnsafePickle as error:
        raise UserError(
            f"{path} contains more than weights and was not loaded, since it could run code: it names {error}"
        ) from error
    except Exception as error:  # hostile files raise almost anything
        said = reason(error) or type(error).__name__
        raise UserError(
            f"{path} is not a complete torch checkpoint or safetensors file ({said}); get it again, or another file"
        ) from error


def _load_torch(path: Path) -> dict[Any, Any]:
    """Read a file of torch.save of any version, or a plain pickle."""
    content = read_pickle(path)
    if isinstance(content, Placeholder) and (state := module_state(content)):
        content = {"model": state, "module": content}
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {content.name}; expected a dict of weights")
    return content


def read_pickle(path: str | Path) -> Any:
    """Return the content of a torch file of any version or of a plain pickle: a dict or a Placeholder.

    A process with limits on memory and time unpickles the file (``unpickle.py``) and returns plain containers; tensors and
    long arrays are views of the mapped file.

    Args:
        path: The file.

    Raises:
        UserError: There is no such file, or it is a pipe or a device.
        UnsafePickle: It names something that could run code.
        BrokenPickle: It is not a complete pickle, or takes more time or memory than a file of its size may.
    """
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import unpickle; unpickle.main()"
    with open_file(os.path.expanduser(path), WHAT) as file:
        if not os.fstat(file.fileno()).st_size:
            raise BrokenPickle("it is empty")
        child = subprocess.run([sys.executable, "-I", "-S", "-c", code], stdin=file, capture_output=True, check=False)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if child.returncode:
        raise BrokenPickle("reading it takes much more time or memory than others of its size")
    stream = BytesIO(child.stdout)
    unsafe, *about = pickle.load(stream)  # this project's own process wrote it
    if unsafe:
        raise UnsafePickle(unsafe)
    if len(about) == 1:
        raise BrokenPickle(about[0])
    return Content(stream, mapped, *about).load()


# By torch's names of the types and of their storages.
DTYPES: dict[str, torch.dtype] = {
    name: dtype
    for name, value in vars(torch).items()
    if isinstance(dtype := getattr(value, "_dtype", value), torch.dtype)
} | {"UntypedStorage": torch.uint8}


class Content(pickle.Unpickler):
    """Reads the containers that ``unpickle.py`` writes, and builds tensors and arrays from the mapped file.

    Args:
        stream: The output of ``unpickle.py``.
        mapped: The file.
        places: Start and length of the storages in a zip archive, by key.
        counts: Type and count of the storages, by key.
        keys: Storages that follow the pickles in a file of PyTorch before 1.6.
        end: Where these begin.
    """

    def __init__(self, stream: BytesIO, mapped: mmap.mmap, places: Any, counts: Any, keys: list[str], end: int) -> None:
        super().__init__(stream)
        self.mapped, self.places, self.counts = mapped, places, counts
        self.whole = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
        for key in keys:  # a count and the numbers
            places[key] = end + 8, self._bytes(key)
            end += 8 + self._bytes(key)
        makers = {"Span": self._span, "Array": self._array, "Scalar": self._scalar, "Tensor": self._tensor}
        self.known: dict[str, Any] = {**makers, "Placeholder": Placeholder, "OrderedDict": OrderedDict}
        self.storages: dict[str, torch.UntypedStorage] = {}
        self.spans: dict[tuple[str, int], Any] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the replacement of a name; classes that the file contains as values are placeholders."""
        return self.known.get(global_name) or Placeholder(global_name)

    def _bytes(self, key: str) -> int:
        kind, count = self.counts[key]
        return int(count) * _dtype(kind).itemsize

    def _span(self, kind: str, start: int, length: int) -> Any:
        if (kind, start) not in self.spans:
            raw = memoryview(self.mapped)[start : start + length]
            text = "" if kind == "raw" else str(raw, "utf-8")
            self.spans[kind, start] = {"raw": raw, "text": text}.get(kind) or text.encode("latin1")
        return self.spans[kind, start]

    def _array(self, data: Any, code: str, shape: tuple[int, ...], fortran: bool = False) -> np.ndarray:
        """Return bytes as an array of a shape."""
        dtype, data = np.dtype(code), data.encode("latin1") if isinstance(data, str) else data
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise BrokenPickle("an array with another number of bytes than its shape")
        writable = data if isinstance(data, memoryview) else bytearray(data)
        array = np.frombuffer(writable, dtype).reshape(shape, order="F" if fortran else "C")
        return np.require(array, requirements=["ALIGNED", "WRITEABLE"])

    def _scalar(self, data: Any, code: str) -> Any:
        return self._array(data, code, ())[()]

    def _storage(self, key: str) -> torch.UntypedStorage:
        if key not in self.storages:
            (start, length), size = self.places[key], self._bytes(key)
            if size > length or start + size > len(self.mapped):
                raise BrokenPickle("a storage that is larger than the file")
            storage = self.whole[start : start + size]
            # files of PyTorch before 1.6 are not aligned
            self.storages[key] = storage.clone() if start % 16 else storage
        return self.storages[key]

    def _tensor(self, key: str, kind: str, part: Any, dtype: str, offset: int, size: Any, stride: Any) -> Any:
        """Return a view of a storage, or a Placeholder if elements repeat, since it could claim any size."""
        storage, element = self._storage(key), _dtype(dtype).itemsize
        if part is not None:
            first, last = part[0] * _dtype(kind).itemsize, sum(part) * _dtype(kind).itemsize
            storage = storage[first:last]
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (last + 1) * element > storage.nbytes():
            raise BrokenPickle("a tensor that is larger than its storage")
        if count * element > storage.nbytes():
            return Placeholder("an expanded tensor")
        return torch.empty(0, dtype=_dtype(dtype)).set_(storage, offset, size, stride)


def _dtype(name: str) -> torch.dtype:
    """Return the type of a name such as torch.FloatStorage or torch.float32."""
    return DTYPES[name.rpartition(".")[2]]


def module_state(module: Placeholder) -> dict[str, Tensor]:
    """Return the state dict of a module that was pickled whole, without building the module."""
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


def _is_safetensors(path: Path) -> bool:
    with open_file(path, WHAT) as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_file(path, WHAT) as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MOST_HEADER:
        raise BrokenPickle(f"its header claims {header} bytes")
    with safetensors.safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


def _load_shards(index: Path) -> dict[str, Tensor]:
    """Read the safetensors files that a ``model.safetensors.index.json`` lists in its folder."""
    file_of = read_config(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise BrokenPickle("it has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(file_of.values())):
        if Path(name).name != name:
            raise BrokenPickle(f"it names a file of another folder, {name[:60]!r}")
        tensors |= _load_safetensors(index.parent / name)[0]
    return tensors


def _load_folder(folder: Path) -> WeightFile:
    weights = next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)
    config = folder / CONFIG
    if weights is None or not config.is_file():
        raise UserError(
            f"{folder} is a folder without {CONFIG} and {' or '.join(FOLDER_WEIGHTS[1:])}; expected a weight file, or the "
            "folder that timm.create_model('local-dir:...') opens"
        )
    return replace(load_file(weights), path=folder, config=read_config(config))


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: It contains none, or is too large.
    """
    value = parse_json(read_text(path, MOST_HEADER, "a JSON file"), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; get it again, or another file")
    return value


def named_tensors(file: WeightFile) -> dict[str, Tensor]:
    """Return the tensors of a file that may be weights, by their full names: the keys that lead to them.

    The tensor in ``{"state_dict": {"module.conv1.weight": ...}}`` is ``state_dict.module.conv1.weight``. The additions of
    torch.compile to names are removed.

    Raises:
        UserError: The file contains more than MOST_TENSORS entries, or a name longer than LONGEST_NAME.
    """
    tensors: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(_entries("", file.content, DEEPEST)):
        if count >= MOST_TENSORS:
            raise UserError(f"{file.path} contains more than {MOST_TENSORS} entries; expected the weights of a network")
        if len(name) > LONGEST_NAME:
            raise UserError(f"{file.path} contains a name of {len(name)} characters; expected the weights of a network")
        if isinstance(value, Tensor):
            tensors[name.replace("_orig_mod.", "")] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            with warnings.catch_warnings():  # read-only arrays: nothing writes to them
                warnings.simplefilter("ignore", UserWarning)
                tensors[name] = torch.from_numpy(value)
    return tensors


def _entries(prefix: str, part: dict[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a dict and of the dicts in it, by full names, without NO_WEIGHTS."""
    for key, value in part.items():
        if isinstance(key, (str, int)) and key not in NO_WEIGHTS:
            yield f"{prefix}{key}", value
            if isinstance(value, dict) and depth:
                yield from _entries(f"{prefix}{key}.", value, depth - 1)
