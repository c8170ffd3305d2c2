"""From a checkpoint to a detectron2 file that has proved itself."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

import moco_plugin
from moco_plugin.checkpoints.detectron2 import to_detectron2
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.checkpoints.zoo_pickle import load_zoo_pickle, save_zoo_pickle
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path, check_output
from moco_plugin.transfer.resnet import resnet_for_weights

TOLERANCE = 1e-4
STAGES = ("res2", "res3", "res4", "res5")


@torch.no_grad()
def largest_differences(source: nn.Module, target: nn.Module, size: int = 96) -> dict[str, float]:
    """Compares a timm ResNet with a detectron2 one on two random images, stage by stage.

    In float64, so that what is left is a difference of weights or wiring, not round-off.

    Args:
        source: A timm ResNet.
        target: A detectron2 ResNet that returns res2 to res5.
        size: Side of the images in pixels.

    Returns:
        The largest absolute difference at each stage.

    Raises:
        UserError: A stage gives zeros alone.
    """
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = copy.deepcopy(source).double().eval()
    expected = source.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)  # type: ignore[operator]
    found = target.double().eval()(images)
    for name, features in zip(STAGES, expected, strict=True):
        if not features.any():  # equal zeros would prove nothing
            raise UserError(f"the network's {name} features are all zero, so its weights are no trained ones")
    return {name: float((e - found[name]).abs().max()) for name, e in zip(STAGES, expected, strict=True)}


def convert_to_detectron2(
    checkpoint: Checkpoint, output: str | Path, overwrite: bool = False
) -> dict[str, float]:
    """Writes a ResNet checkpoint as a detectron2 zoo file, after showing that both compute the same.

    The file is written, read back, and loaded into detectron2's ResNet; only if that gives the features of
    the timm network does it get its name.

    Args:
        checkpoint: What was read.
        output: Path ending in ``.pkl``.
        overwrite: Replace a file that is there.

    Returns:
        The largest absolute difference at each stage.

    Raises:
        UserError: No detectron2 twin, the features differ by more than 1e-4, or the output exists.
    """
    output = check_output(Path(output).expanduser(), overwrite)
    arrays = to_detectron2(checkpoint.backbone.state_dict(), checkpoint.head)
    metadata = {
        "source": checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "architecture": checkpoint.architecture,
        "method": checkpoint.method or "",
        "epoch": checkpoint.epoch if checkpoint.epoch is not None else -1,
        "input_format": "RGB",
        "pixel_mean": [255 * value for value in checkpoint.view.mean],
        "pixel_std": [255 * value for value in checkpoint.view.std],
        "stride_in_1x1": False,
        "version": moco_plugin.__version__,
    }
    with atomic_path(output) as temporary:
        save_zoo_pickle(temporary, arrays, metadata)
        written = load_zoo_pickle(temporary)["model"]
        differences = largest_differences(checkpoint.backbone, resnet_for_weights(written))
        worst = max(differences, key=lambda stage: differences[stage])
        if not differences[worst] <= TOLERANCE:
            raise UserError(
                f"{output} was not written: detectron2's {worst} differs by {differences[worst]:.3g} from timm's, "
                f"more than {TOLERANCE:g}"
            )
    return differences
