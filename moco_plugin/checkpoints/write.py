"""Conversion of a checkpoint's backbone to another framework's file, after a proof that it computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

import moco_plugin
from moco_plugin.checkpoints.describe import describe
from moco_plugin.checkpoints.formats import Format
from moco_plugin.checkpoints.proof import Network, prove, random_images, stages_of
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.checkpoints.to_torchvision import to_torchvision, torchvision_network
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_folder, atomic_path


def convert_to(
    format: Format,
    source: str | Path | Checkpoint,
    output: str | Path,
    *,
    encoder: str = "query",
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    network_of: Mapping[str, Callable[[Checkpoint], Network]] | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint to one format, and print what it was and how exactly the result computes the same.

    The features of both networks are compared first, since the file contains the result. The file is then written
    under another name, read back, compared tensor by tensor, and moved to its place.

    Args:
        format: The kind of file.
        source: A checkpoint of any layout, as a path or as it was read.
        output: The file or folder (without suffix) to write.
        encoder: "query" or "key", where the checkpoint has both.
        architecture: timm's name of the backbone, where the weights do not tell it.
        arguments: Of ``create_backbone``, for ``architecture``.
        prefix: What stands before the names of the encoder, for files of several networks in which none is known.
        overwrite: Replace what is there.
        network_of: By framework, the function that builds its own network for a checkpoint in its names.

    Returns:
        The file's metadata: its source, how the target builds the network, and the ``proof``.

    Raises:
        UsageError: The output's ending, or the output exists.
        UserError: The source cannot be read, the target has no such network, or its features differ.
    """
    output = Path(output).expanduser()
    format.check(output, overwrite)
    checkpoint = (
        source
        if isinstance(source, Checkpoint)
        else read_checkpoint(source, encoder, architecture, arguments=arguments, prefix=prefix)
    )
    print("\n".join(describe(checkpoint)))
    if checkpoint.view.channels != 3 and not format.any_channels:
        raise UserError(
            f"{output} was not written: {format.name} reads RGB images, and this network takes images of "
            f"{checkpoint.view.channels} channels; timm and onnx files can hold it"
        )
    target = format.target(checkpoint, output)
    original = _own_network(checkpoint, target.network.framework, network_of or {})
    if target.source_stages:
        original.stages = target.source_stages(list(original.stages))
    try:
        proof = prove(original, target.network, random_images(checkpoint.backbone))
    except UserError as error:
        raise UserError(f"{output} was not written: {error}") from error
    metadata = {**_source_metadata(checkpoint), **target.details, "proof": dataclasses.asdict(proof)}
    with atomic_path(output) if output.suffix else atomic_folder(output) as temporary:
        target.write(temporary, metadata, target.state)
        found = target.read(temporary)
        for name, value in target.state.items():
            if name not in found or not _same(value, found[name]):
                raise UserError(f"{output} was not written: read back, its {name} was not what was written")
    for stage, difference in proof.largest_differences.items():
        print(f"{stage}: largest difference between {proof.source} and {proof.target} {difference:.2e}")
    print(f"written: {output}\nopens with: {target.opens}")
    return metadata


def _own_network(
    checkpoint: Checkpoint, target: str, network_of: Mapping[str, Callable[[Checkpoint], Network]]
) -> Network:
    """Return the network of the framework in whose names the weights came; torchvision's or timm's if it has none.

    It is never the target's own, which would prove nothing.
    """
    builders = {"torchvision": _torchvision_source, **network_of}
    for framework in (checkpoint.framework, "torchvision") if checkpoint.framework != "timm" else ():
        if framework in builders and framework != target:
            try:
                return builders[framework](checkpoint)
            except UserError:  # a deep stem, other widths
                pass
    return Network("timm", checkpoint.backbone, stages_of(checkpoint.backbone))


def _torchvision_source(checkpoint: Checkpoint) -> Network:
    """Return torchvision's network with the weights; a ViT's as they are in the file, which the reader renamed."""
    backbone = checkpoint.backbone
    state = to_torchvision(backbone)
    if isinstance(backbone, VisionTransformer):
        state |= {name: value for name, value in checkpoint.original.items() if name in state}
    twin = torchvision_network(backbone, state)
    return Network("torchvision", twin, stages_of(twin))


def _source_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what every written file says about where its weights come from and what images they want."""
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
        "value_range": checkpoint.view.value_range,
        "version": moco_plugin.__version__,
    }


def _same(a: Any, b: Any) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.dtype == b.dtype and torch.equal(a, b)
