"""ONNX files of backbones: normalized images to features, for any batch size, and any image size if possible."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript  # noqa: F401  (torch.onnx.export needs it)
import torch
from torch import Tensor, nn

from moco_plugin.backbones import input_channels
from moco_plugin.checkpoints.formats import Format, Network, Target, stages_of
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.errors import UserError, reason

OPSET = 18
DIMENSIONS = {0: "batch", 2: "height", 3: "width"}
FLOAT32_TOLERANCE = 1e-4  # share of the largest feature: onnxruntime computes in float32


def _export(path: Path, network: nn.Module, images: Sequence[Tensor]) -> None:
    """Write the file; the dimensions in which ``images`` differ are free."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (images[0],),
                str(path),
                input_names=["images"],
                output_names=["features"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({n: torch.export.Dim(name) for n, name in _free(images).items()},),
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)


def _write(
    path: Path, metadata: dict[str, Any], state: Mapping[str, Tensor], network: nn.Module, images: list[Tensor]
) -> None:
    """Write a file for any size, or, if torch cannot export it, for the size of the first images, which replace others."""
    try:
        _export(path, network, images)
    except Exception as error:  # exporters raise almost anything
        if len(_free(images)) == 1:
            raise UserError(f"torch.onnx cannot export this network: {reason(error)}") from error
        images[:] = [images[0], torch.cat([images[0], images[0].flip(3)])]
        metadata["images"] = shape = _shape(images)
        print(f"images: {' x '.join(map(str, shape))} only, since torch.onnx cannot export this network for any size")
        return _write(path, metadata, state, network, images)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"moco_plugin": json.dumps(metadata)})
    onnx.save(model, str(path))


def _free(images: Sequence[Tensor]) -> dict[int, str]:
    """Return names of the dimensions in which images differ, by index."""
    shapes = list(zip(*(batch.shape for batch in images), strict=True))
    return {index: name for index, name in DIMENSIONS.items() if len(set(shapes[index])) > 1}


def _shape(images: Sequence[Tensor]) -> list[str | int]:
    free = _free(images)
    return [free.get(index, size) for index, size in enumerate(images[0].shape)]


def _read(
    path: Path, network: nn.Module, images: Sequence[Tensor], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Compare the features of onnxruntime for all ``images`` with the network's.

    Raises:
        UserError: They differ, or onnxruntime does not open the file.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for batch in images:
            with torch.no_grad():
                expected = network(batch)
            (found,) = session.run(None, {"images": batch.numpy()})
            difference = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
            if not difference <= FLOAT32_TOLERANCE:
                raise UserError(f"onnxruntime's features differ by {difference:.3g} of the largest from timm's")
    except UserError:
        raise
    except Exception as error:  # onnxruntime has its own errors
        raise UserError(f"onnxruntime does not open the file: {reason(error)}") from error
    print(f"features: largest difference between timm and onnxruntime {difference:.2e}")
    return state


def _images(network: nn.Module, side: int) -> list[Tensor]:
    """Return batches of different counts, and of three sizes if the network supports them."""
    channels, fixed = input_channels(network), getattr(getattr(network, "patch_embed", None), "img_size", None)
    if fixed and not getattr(network, "dynamic_img_size", False):
        sizes = [fixed, fixed]
    else:
        sizes = [(side, side), (side + 32, side), (side, side + 64)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2 + n, channels, *size, generator=generator) for n, size in enumerate(sizes)]
    try:
        with torch.no_grad():
            for batch in images[1:]:
                network(batch)
    except (RuntimeError, AssertionError, ValueError):  # it requires one size
        images = [torch.randn(2 + n, channels, side, side, generator=generator) for n in range(2)]
    return images


def _target(checkpoint: Checkpoint, output: Path) -> Target:
    network = checkpoint.backbone
    state = network.state_dict()
    images = _images(network, checkpoint.view.image_size)
    details = {"target": "onnx", "opset": OPSET, "images": _shape(images)}
    run = f"onnxruntime.InferenceSession('{output}').run(None, {{'images': x}})"
    opens = f"{run}, for x of the shape in the file, float32, (RGB / 255 - mean) / std"
    write = partial(_write, network=network, images=images)
    read = partial(_read, network=network, images=images, state=state)
    return Target(Network("ONNX", network, stages_of(network)), state, details, opens, write=write, read=read)


ONNX = Format("onnx", (".onnx",), _target, any_channels=True)
