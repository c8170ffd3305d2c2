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
    """A network of one framework, and where its stages end.

    Attributes:
        framework: Whose network it is.
        module: The network, in eval mode.
        stages: Names of the submodules whose outputs are compared, in order; an empty name is the network itself. Two
            networks' stages correspond one by one.
    """

    framework: str
    module: nn.Module
    stages: Sequence[str]


def stages_of(network: nn.Module) -> list[str]:
    """Name where the stages of a timm or torchvision network end.

    Four stages of a ResNet, each block of a ViT, what timm's ``feature_info`` names of others, and in the end the
    network's own output.
    """
    names = {name for name, _ in network.named_modules()}
    resnet = [f"layer{stage}" for stage in (1, 2, 3, 4)]
    torchvision_vit = [n for b in range(len(names)) if (n := f"encoder.layers.encoder_layer_{b}") in names]
    feature_info = [info.get("module") for info in getattr(network, "feature_info", None) or []]
    if names.issuperset(resnet):
        stages = resnet
    else:
        stages = torchvision_vit or [name for name in dict.fromkeys(feature_info) if name in names]
    return [*stages, ""]


def random_images(network: nn.Module) -> Tensor:
    """Return two random images (2 x C x S x S, float64); S is the side that the network insists on, else 96."""
    config = getattr(network, "pretrained_cfg", None) or {}
    side = getattr(getattr(network, "patch_embed", None), "img_size", None)
    side = side or (config["input_size"][1:] if config.get("fixed_input_size") else (96, 96))
    channels = input_channels(network)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *side, dtype=torch.float64, generator=generator)


def write_state(path: Path, metadata: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a state dict as ``.pth`` or ``.pt`` (torch) or ``.safetensors``, and metadata with the weights.

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
        with open(path, "r+b") as file:  # safetensors writes the two in an order of chance
            size = int.from_bytes(file.read(8), "little")
            written = json.loads(file.read(size))
            file.seek(8)
            written["__metadata__"] = header
            file.write(json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))
    else:
        with_metadata: Any = OrderedDict(state)
        with_metadata._metadata = {"moco_plugin": metadata}
        with open(path, "wb") as file:  # of a path torch keeps the name, and ours is a temporary one
            torch.save(with_metadata, file)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read such a file."""
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_file(path).content


@dataclass
class Target:
    """A backbone in another framework, ready to be written.

    Attributes:
        network: The framework's network; holds ``state``.
        state: The weights under the framework's names, as tensors or arrays.
        details: Further metadata of the file, besides its source and the proof.
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
        source: Builds the framework's own network for a checkpoint whose weights came in its names.
    """

    name: str
    suffixes: tuple[str, ...]
    target: Callable[[Checkpoint, Path], Target]
    any_channels: bool = False
    source: Callable[[Checkpoint], Network] | None = None


def keywords(arguments: Mapping[str, Any]) -> str:
    """Return arguments formatted for a call."""
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
