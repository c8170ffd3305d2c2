"""Any weight file or folder as dicts of tensors, numbers and text."""

import json
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from moco_plugin.errors import UserError, reason
from moco_plugin.weight_files import unpickle
from moco_plugin.weight_files.unpickle import BrokenPickle, Placeholder, UnsafePickle, module_state

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch before 1.6
MOST_TENSORS = 50_000  # in one file; a ViT-H with optimizer has 2,000
LONGEST_NAME = 500  # characters
DEEPEST = 6  # dicts within dicts
MOST_HEADER = 16 << 20  # bytes of a safetensors header or a config.json; of a thousand tensors 100 KB
# Parts of checkpoints that hold no network's weights.
NO_WEIGHTS = frozenset(
    (
        "optimizer optimizers optimizer_states optimizer_state lr_schedulers lr_scheduler scheduler param_schedulers "
        "scaler amp amp_scaler best_acc1 callbacks loops hyper_parameters datamodule_hyper_parameters rng_state "
        "rng_states random_states message_hub meta lightly_train moco_plugin trainer"
    ).split()
)
CONFIG = "config.json"
FOLDER_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")


@dataclass
class WeightFile:
    """A weight file and what it holds: tensors, numbers, text, containers, and placeholders for other objects.

    Tensors are views of the mapped file. They take memory as they are read, and none while they are not.

    Attributes:
        path: What was asked for: a file, or a folder of timm's.
        weights: The file that has the tensors.
        content: What it holds.
        size: Bytes of all its weights.
        metadata: What this project's converters said of it.
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
        UserError: The file is missing, incomplete, or has something in it that could run code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint")
    with _refusing(path):
        size, metadata = path.stat().st_size, None
        if path.name.endswith(".safetensors.index.json"):
            content: dict[Any, Any] = {"state_dict": _load_shards(path)}
            size = sum(value.nbytes for value in content["state_dict"].values())
        elif _is_safetensors(path):
            tensors, header = _load_safetensors(path)
            content, metadata = {"state_dict": tensors, **header}, _json_dict(header.get("moco_plugin", "{}"))
        else:
            content = _load_torch(path)
            metadata = content.get("moco_plugin") or getattr(content, "_metadata", {}).get("moco_plugin")
        return WeightFile(path, path, content, size, metadata if isinstance(metadata, dict) else {})


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what readers raise on broken and hostile files into one sentence."""
    try:
        yield
    except UserError:
        raise
    except UnsafePickle as error:
        raise UserError(
            f"{path} holds more than weights and was not loaded, since it could run code: it names {error}"
        ) from error
    except Exception as error:  # hostile files raise almost anything
        said = reason(error) or type(error).__name__
        raise UserError(
            f"{path} is not a complete torch checkpoint or safetensors file ({said}); it may be truncated or of another "
            "kind, get it again"
        ) from error


def _load_torch(path: Path) -> dict[Any, Any]:
    """Read what torch.save wrote, of any version, or one plain pickle; tensors of newer files are views of the file."""
    if not path.stat().st_size:
        raise BrokenPickle("it is empty")
    mapped = zipfile.is_zipfile(path)
    if mapped:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise BrokenPickle("its entries are compressed, which torch.save never does")
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
        if "constants.pkl" in records:  # torch.load would compile it
            raise BrokenPickle("a TorchScript program; save its state_dict() instead")
        content = None
    else:
        with open(path, "rb") as file:
            content = unpickle.load(file)
    # a file of PyTorch before 1.6 is several pickles, of which the first is this number
    if mapped or (type(content) is int and content == LEGACY_MAGIC):
        content = torch.load(path, "cpu", pickle_module=unpickle, weights_only=False, mmap=mapped)
    if isinstance(content, Placeholder) and (state := module_state(content)):
        content = {"model": state, "module": content}
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, Placeholder) else type(content).__name__
        raise UserError(f"{path} holds a {kind}; expected a dict of weights")
    return content


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MOST_HEADER:
        raise BrokenPickle(f"its header claims {header} bytes")
    with safetensors.safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


def _load_shards(index: Path) -> dict[str, Tensor]:
    """Read the safetensors files that a ``model.safetensors.index.json`` lists; they are in its folder."""
    file_of = _read_json(index).get("weight_map")
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
    file = load_file(weights)
    with _refusing(config):
        return replace(file, path=folder, config=_read_json(config))


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_HEADER:
        raise BrokenPickle("it is too large")
    return _json_dict(path.read_text())


def _json_dict(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise BrokenPickle("its JSON is not an object")
    return value


def named_tensors(file: WeightFile) -> dict[str, Tensor]:
    """Return every tensor of a file that may be a weight, under its full name: the keys that lead to it.

    So the tensor of ``{"state_dict": {"module.conv1.weight": ...}}`` is ``state_dict.module.conv1.weight``. What
    torch.compile adds to names is left out.

    Raises:
        UserError: The file holds more than MOST_TENSORS.
    """
    tensors: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(_entries("", file.content, DEEPEST)):
        if count >= MOST_TENSORS:
            raise UserError(f"{file.path} holds more than {MOST_TENSORS} entries; expected the weights of a network")
        if len(name) > LONGEST_NAME:
            raise UserError(f"{file.path} holds a name of {len(name)} characters; expected the weights of a network")
        if isinstance(value, Tensor):
            tensors[name.replace("_orig_mod.", "")] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            with warnings.catch_warnings():  # read-only arrays: nothing writes to them
                warnings.simplefilter("ignore", UserWarning)
                tensors[name] = torch.from_numpy(value)
    return tensors


def _entries(prefix: str, part: dict[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield what a dict holds, and the dicts in it down to a depth, by full names; NO_WEIGHTS are left out."""
    for key, value in part.items():
        if isinstance(key, (str, int)) and key not in NO_WEIGHTS:
            yield f"{prefix}{key}", value
            if isinstance(value, dict) and depth:
                yield from _entries(f"{prefix}{key}.", value, depth - 1)
