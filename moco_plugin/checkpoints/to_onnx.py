"""A backbone as an ONNX file: normalized images in, features out, for any batch."""

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco_plugin.checkpoints.formats import Format, Network, Target, random_images, stages_of
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.errors import UserError, reason

OPSET = 18
FLOAT32_TOLERANCE = 1e-4  # share of the largest feature: onnxruntime computes in float32


def _write(
    path: Path, metadata: dict[str, Any], state: Mapping[str, Tensor], network: nn.Module, images: Tensor
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx.export needs it)
    except ModuleNotFoundError as error:
        raise UserError(
            f"writing ONNX needs {error.name}, which is not installed; run `pip install onnx onnxscript onnxruntime`"
        ) from error
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (images,),
                str(path),
                input_names=["images"],
                output_names=["features"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # exporters raise almost anything
        raise UserError(f"torch.onnx cannot export this network: {reason(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"moco_plugin": json.dumps(metadata)})
    onnx.save(model, str(path))


def _read(path: Path, network: nn.Module, images: Tensor, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Compute features with onnxruntime, for batches of two sizes, and compare them with the network's.

    Raises:
        UserError: They differ, or onnxruntime does not open the file.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(
            "an ONNX file is verified with onnxruntime, which is not installed; run `pip install onnxruntime`"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for batch in (images, torch.cat([images, images[:1].flip(3)])):
            with torch.no_grad():
                expected = network(batch)
            (found,) = session.run(None, {"images": batch.numpy()})
            difference = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
            if not difference <= FLOAT32_TOLERANCE:
                raise UserError(f"onnxruntime's features differ by {difference:.3g} of the largest from timm's")
    except UserError:
        raise
    except Exception as error:  # onnxruntime has its own errors
        raise UserError(f"onnxruntime does not open what was written: {reason(error)}") from error
    print(f"features: largest difference between timm and onnxruntime {difference:.2e}")
    return state


def _target(checkpoint: Checkpoint, output: Path) -> Target:
    network = checkpoint.backbone
    state = network.state_dict()
    images = random_images(network).to(torch.float32)
    channels, side = images.shape[1], checkpoint.view.image_size
    fixed = getattr(getattr(network, "patch_embed", None), "img_size", None)
    images = images if fixed else torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    details = {"target": "onnx", "opset": OPSET, "images": ["batch", *images.shape[1:]]}
    shape = " x ".join(map(str, images.shape[1:]))
    opens = (
        f"onnxruntime.InferenceSession('{output}').run(None, {{'images': x}}), for x of N x {shape}, float32, "
        "(RGB / 255 - mean) / std"
    )
    return Target(
        Network("ONNX", network, stages_of(network)),
        state,
        details,
        opens,
        write=partial(_write, network=network, images=images),
        read=partial(_read, network=network, images=images, state=state),
    )


ONNX = Format("onnx", (".onnx",), _target, any_channels=True)
