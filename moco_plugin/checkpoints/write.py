"""Writes a checkpoint's backbone for timm, torchvision and LightlyTrain, after a proof that it computes the same."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import moco_plugin
from moco_plugin.checkpoints.load import load, load_file, named_tensors
from moco_plugin.checkpoints.proof import Network, prove, random_images, stages_of
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.checkpoints.timm import timm_arguments, timm_config, timm_network
from moco_plugin.checkpoints.torchvision import to_torchvision, torchvision_arguments, torchvision_network
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import atomic_folder, atomic_path, check_output, write_json

# What each target's file may end in; "" is a folder.
SUFFIXES = {
    "timm": (".pth", ".pt", ".safetensors", ""),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "lightly-train": (".pth", ".pt"),
    "detectron2": (".pkl",),
    "detectron2-timm": (".pkl",),
}
FOLDER_FILES = {"config.json", "model.safetensors"}


def check_ending(output: Path, to: str) -> None:
    """Raises UsageError if a file for ``to`` does not end so."""
    if output.suffix not in SUFFIXES[to]:
        *first, last = (suffix or "no ending (a folder)" for suffix in SUFFIXES[to])
        expected = f"{', '.join(first)} or {last}" if first else last
        raise UsageError(f"{output} does not end in {expected}, as files for {to} do")


def source_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what every written file says about where its weights come from and what images they want."""
    return {
        "source": checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "architecture": checkpoint.architecture,
        "encoder": checkpoint.encoder,
        "method": checkpoint.method or "",
        "epoch": checkpoint.epoch if checkpoint.epoch is not None else -1,
        "input_format": "RGB",
        "pixel_mean": [255 * value for value in checkpoint.view.mean],
        "pixel_std": [255 * value for value in checkpoint.view.std],
        "image_size": checkpoint.view.image_size,
        "crop_ratio": checkpoint.view.crop_ratio,
        "version": moco_plugin.__version__,
    }


def source_network(checkpoint: Checkpoint, target: str) -> Network:
    """Returns the network that a checkpoint's weights came from.

    torchvision's where the weights came in its names and it has the network, unless it is the target as well; else timm's.
    """
    backbone = checkpoint.backbone
    if target != "torchvision" and checkpoint.layout not in ("moco_plugin", "timm"):
        try:
            twin = torchvision_network(backbone, {**to_torchvision(backbone), **_as_it_lies(checkpoint)})
        except UserError:  # a deep stem, other widths: timm's own
            pass
        else:
            return Network("torchvision", twin, stages_of(twin))
    return Network("timm", backbone, stages_of(backbone))


def _as_it_lies(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Returns the weights of a ViT that came in torchvision's names, untouched by the reader."""
    if checkpoint.layout != "torchvision" or not isinstance(checkpoint.backbone, VisionTransformer):
        return {}  # a ResNet's names, in torchvision's and timm's alike, are those that it was read by
    tensors = named_tensors(load(checkpoint.path))
    prefix = next(name.removesuffix("class_token") for name in tensors if name.endswith("class_token"))
    known = to_torchvision(checkpoint.backbone)
    return {name: tensors[prefix + name] for name in known if prefix + name in tensors}


def write_proven(
    checkpoint: Checkpoint,
    output: Path,
    source: Network,
    target: Network,
    details: Mapping[str, Any],
    state: Mapping[str, Any],
    write: Callable[[Path, dict[str, Any]], None],
    read: Callable[[Path], Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes a file only if the target's network computes what the source's does, and the file holds its weights.

    The features are compared first, since the file tells the result; then the file is written under another name,
    read back, every tensor compared bit for bit with what was proven, and moved.

    Args:
        checkpoint: Where the weights come from.
        output: The file or folder (without suffix) to write.
        source: The network of the checkpoint.
        target: The network of the framework that is to read the file; holds ``state``.
        details: What the file's metadata says beside the source and the proof.
        state: The weights under the target's names, as tensors or arrays.
        write: Writes them to a path with this metadata.
        read: Reads the weights back as the target's users would.

    Returns:
        What the file says about itself: source, ``details`` and ``proof``.

    Raises:
        UserError: The features differ, or the file could not be read back whole.
    """
    try:
        proof = prove(source, target, random_images(checkpoint.backbone))
    except UserError as error:
        raise UserError(f"{output} was not written: {error}") from error
    metadata = {**source_metadata(checkpoint), **details, "proof": dataclasses.asdict(proof)}
    with atomic_path(output) if output.suffix else atomic_folder(output) as temporary:
        write(temporary, metadata)
        found = read(temporary)
        for name, value in state.items():
            if name not in found or not _same(value, found[name]):
                raise UserError(f"{output} was not written: read back, its {name} was not what was written")
    return metadata


def _same(a: Any, b: Any) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.dtype == b.dtype and torch.equal(a, b)


def write_state(path: Path, metadata: dict[str, Any], *, state: Mapping[str, Tensor]) -> None:
    """Writes a state dict as ``.pth`` or ``.pt`` (torch) or ``.safetensors``, and metadata beside the weights.

    A torch file stays a state dict that any ``load_state_dict`` takes: the metadata lies where PyTorch keeps a state
    dict's own, in ``state_dict._metadata["moco_plugin"]``. In safetensors it is the header's ``moco_plugin``, as JSON.
    """
    # a tensor that is a part of a larger one would take all of it along
    state = {n: v if v.nbytes == v.untyped_storage().nbytes() else v.clone() for n, v in state.items()}
    if path.suffix == ".safetensors":
        header = {"format": "pt", "moco_plugin": json.dumps(metadata)}
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path, header)
    else:
        with_metadata: Any = OrderedDict(state)
        with_metadata._metadata = {"moco_plugin": metadata}
        torch.save(with_metadata, path)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Reads such a file back."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return load_file(path)


def write_folder(
    folder: Path, metadata: dict[str, Any], *, state: Mapping[str, Tensor], config: dict[str, Any]
) -> None:
    """Writes the folder that ``timm.create_model('local-dir:FOLDER', pretrained=True)`` opens."""
    write_state(folder / "model.safetensors", metadata, state=state)
    write_json(folder / "config.json", {**config, "moco_plugin": metadata})


def read_with_timm(path: Path, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Reads a file or folder back, and opens it as timm's users, and LightlyTrain, do: they must find the same.

    Raises:
        UserError: timm does not open it, or fills its network with other weights.
    """
    try:
        if path.is_dir():
            network = timm.create_model(f"local-dir:{path}", pretrained=True)
        else:
            network = timm.create_model(name, num_classes=0, checkpoint_path=str(path), **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"timm does not open what was written: {reason}") from error
    state = read_state(path / "model.safetensors" if path.is_dir() else path)
    for key, value in network.state_dict().items():
        if not torch.equal(value, state[key].to(value.dtype)):  # timm computes in float32
            raise UserError(f"timm opens what was written with another {key}")
    return state


def convert(
    checkpoint: Checkpoint,
    output: str | Path,
    to: str,
    overwrite: bool = False,
    source: Network | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint's backbone for timm, torchvision or LightlyTrain.

    Args:
        checkpoint: What was read.
        output: Where to; ``SUFFIXES`` says which endings a target has.
        to: "timm", "torchvision" or "lightly-train". LightlyTrain starts from timm's state dict, which is also what
            it exports: ``lightly_train.pretrain(model="timm/NAME", model_args={"num_classes": 0,
            "checkpoint_path": FILE}, ...)``, or ``backbone_weights`` where it fine-tunes.
        overwrite: Replace what is there.
        source: The network that the weights came from, if neither timm's nor torchvision's.

    Returns:
        What the file says about itself: its source, how the target builds the network, and the ``proof``.

    Raises:
        UsageError: The output's ending, or the output exists.
        UserError: The target has no such network, or its features differ.
    """
    output = Path(output).expanduser()
    check_ending(output, to)
    check_output(output, overwrite)
    if output.is_dir() and not {path.name for path in output.iterdir()} <= FOLDER_FILES:
        raise UsageError(f"{output} holds other things than a timm model and was kept; choose another output")
    backbone = checkpoint.backbone
    details: dict[str, Any] = {"target": to}
    read: Callable[[Path], Mapping[str, Tensor]] = read_state
    if to == "torchvision":
        state = to_torchvision(backbone)
        network = torchvision_network(backbone, state)
        model, arguments = torchvision_arguments(backbone)
        details |= {"torchvision_class": model, "torchvision_arguments": arguments}
    else:
        state = backbone.state_dict()
        name, arguments = timm_arguments(checkpoint.architecture, checkpoint.arguments, backbone)
        try:
            network = timm_network(name, arguments, state)
            details |= {"timm_name": name, "timm_arguments": arguments}
            if output.suffix != ".safetensors":
                read = partial(read_with_timm, name=name, arguments=arguments)
        except UserError:
            if to == "lightly-train" or not output.suffix:
                raise
            network = checkpoint.untrained()  # a wider or smaller stem, which timm's names cannot say
            network.load_state_dict(state, assign=True)
    write = partial(write_state, state=state)
    if not output.suffix:
        write = partial(write_folder, state=state, config=timm_config(name, arguments, network, checkpoint.view))
    framework = "LightlyTrain" if to == "lightly-train" else to
    target = Network(framework, network, stages_of(network))
    source = source or source_network(checkpoint, to)
    return write_proven(checkpoint, output, source, target, details, state, write, read)
