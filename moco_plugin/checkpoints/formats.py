"""The file formats of other frameworks: suffixes, writing, reading back and opening."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from moco_plugin.backbones import input_channels
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.weight_files.load import load_file


@dataclass
class Network:
    """A network of one framework, and its stages.

    Attributes:
        framework: Name of the framework.
        module: The network, in eval mode.
        stages: Names of the submodules whose outputs are compared, in order; an empty name is the network itself.
    """

    framework: str
    module: nn.Module
    stages: Sequence[str]


def stages_of(network: nn.Module) -> list[str]:
    """Return the stages of a timm or torchvision network.

    These are four stages of a ResNet, each block of a ViT, the modules in timm's ``feature_info`` of others, and last the
    network itself.
    """
    names = {name for name, _ in network.named_modules()}
    resnet = [f"layer{stage}" for stage in (1, 2, 3, 4)]
    torchvision_vit = [n for b in range(len(names)) if (n := f"encoder.layers.encoder_layer_{b}") in names]
    feature_info = [info.get("module") for info in getattr(network, "feature_info", None) or []]
    others = torchvision_vit or [name for name in dict.fromkeys(feature_info) if name in names]
    return [*(resnet if names.issuperset(resnet) else others), ""]


def random_images(network: nn.Module) -> Tensor:
    """Return two random images (2 x C x S x S, float64); S is the side that the network requires, else 96."""
    config = getattr(network, "pretrained_cfg", None) or {}
    side = getattr(getattr(network, "patch_embed", None), "img_size", None)
    side = side or (config["input_size"][1:] if config.get("fixed_input_size") else (96, 96))
    channels = input_channels(network)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *side, dtype=torch.float64, generator=generator)


def write_state(path: Path, metadata: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a state dict and metadata as ``.pth`` or ``.pt`` (torch) or ``.safetensors``.

    The metadata is ``state_dict._metadata["moco_plugin"]`` of a torch file, which ``load_state_dict`` accepts, and the
    JSON text ``moco_plugin`` in the header of safetensors.
    """
    # part of a larger tensor would be written with all of it, and safetensors writes no shared tensors
    seen: set[int] = set()
    for name, value in state.items():
        storage = value.untyped_storage()
        if value.nbytes != storage.nbytes() or storage.data_ptr() in seen:
            state = {**state, name: value.clone()}
        seen.add(storage.data_ptr())
    if path.suffix == ".safetensors":
        header = {"format": "pt", "moco_plugin": json.dumps(metadata)}
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path, header)
        with open(path, "r+b") as file:  # safetensors writes the two in random order
            size = int.from_bytes(file.read(8), "little")
            written = json.loads(file.read(size))
            file.seek(8)
            written["__metadata__"] = header
            file.write(json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))
    else:
        with_metadata: Any = OrderedDict(state)
        with_metadata._metadata = {"moco_plugin": metadata}
        with open(path, "wb") as file:  # torch would write the name of a path, and ours is temporary
            torch.save(with_metadata, file)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a file of ``write_state``."""
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_file(path).content


@dataclass
class Target:
    """A backbone in another framework, ready to be written.

    Attributes:
        network: The framework's network with ``state``.
        state: The weights under the framework's names, as tensors or arrays.
        details: Further metadata of the file, besides its source and the proof.
        opens: Code that opens the file in the framework.
        source_stages: Selects the source's stages that correspond to ``network.stages``; None for all.
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
        name: Value of ``--to``.
        suffixes: Suffixes of its files; "" is a folder.
        target: Builds the target for a checkpoint and an output path.
        any_channels: It supports images of other than three channels.
        source: Builds the framework's own network for a checkpoint with weights under its names.
    """

    name: str
    suffixes: tuple[str, ...]
    target: Callable[[Checkpoint, Path], Target]
    any_channels: bool = False
    source: Callable[[Checkpoint], Network] | None = None


def keywords(arguments: Mapping[str, Any]) -> str:
    """Return arguments formatted for a call."""
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
