"""The file formats of other frameworks: suffixes, writing, reading back and opening."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from moco_plugin.checkpoints.load import load_file
from moco_plugin.checkpoints.proof import Network
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.errors import UsageError
from moco_plugin.files import check_output

FOLDER_FILES = {"config.json", "model.safetensors"}


def write_state(path: Path, metadata: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a state dict as ``.pth`` or ``.pt`` (torch) or ``.safetensors``, and metadata beside the weights.

    A torch file stays a state dict that any ``load_state_dict`` takes: the metadata is where PyTorch keeps a state
    dict's own, in ``state_dict._metadata["moco_plugin"]``. In safetensors it is the header's ``moco_plugin``, as JSON.
    """
    # a tensor that is a part of a larger one would take all of it along, and safetensors writes no shared ones
    seen: set[int] = set()
    for name, value in state.items():
        storage = value.untyped_storage()
        if value.nbytes != storage.nbytes() or storage.data_ptr() in seen:
            state = {**state, name: value.clone()}
        seen.add(storage.data_ptr())
    if path.suffix == ".safetensors":
        header = {"format": "pt", "moco_plugin": json.dumps(metadata)}
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path, header)
    else:
        with_metadata: Any = OrderedDict(state)
        with_metadata._metadata = {"moco_plugin": metadata}
        torch.save(with_metadata, path)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read such a file."""
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_file(path)


@dataclass
class Target:
    """A backbone in another framework, ready to be written.

    Attributes:
        network: The framework's network; holds ``state``.
        state: The weights under the framework's names, as tensors or arrays.
        details: What the file's metadata says beside its source and the proof.
        opens: What a user types in the framework to open the file.
        source_stages: Of the source's stages those that ``network.stages`` are compared with; None for all.
        write: Writes ``state`` to a path with metadata.
        read: Reads the weights back as the framework's users would.
    """

    network: Network
    state: Mapping[str, Any]
    details: dict[str, Any]
    opens: str
    source_stages: Callable[[list[str]], list[str]] | None = None
    write: Callable[[Path, dict[str, Any], Mapping[str, Any]], None] = write_state
    read: Callable[[Path], Mapping[str, Any]] = read_state


@dataclass(frozen=True)
class Format:
    """A kind of file that checkpoints are converted to.

    Attributes:
        name: What ``--to`` calls it.
        suffixes: What its files may end in; "" is a folder.
        target: Builds the target for a checkpoint and an output path.
        any_channels: It can say that images have other than three channels.
    """

    name: str
    suffixes: tuple[str, ...]
    target: Callable[[Checkpoint, Path], Target]
    any_channels: bool = False

    def check(self, output: Path, overwrite: bool) -> None:
        """Raise UsageError if the output's ending is another one, or something is there that is to be kept."""
        if output.suffix not in self.suffixes:
            *first, last = (suffix or "no ending (a folder)" for suffix in self.suffixes)
            expected = f"{', '.join(first)} or {last}" if first else last
            raise UsageError(f"{output} does not end in {expected}, as files for {self.name} do")
        check_output(output, overwrite)
        if output.is_dir() and not {path.name for path in output.iterdir()} <= FOLDER_FILES:
            raise UsageError(f"{output} holds other things than a timm model and was kept; choose another output")


def keywords(arguments: Mapping[str, Any]) -> str:
    """Return arguments as they are typed in a call."""
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
