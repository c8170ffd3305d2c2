"""timm's formats: files and folders that timm and LightlyTrain open."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from moco_plugin.checkpoints.formats import Format, Network, Target, keywords, stages_of, write_state
from moco_plugin.checkpoints.networks import NAMES
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.data.normalize import View
from moco_plugin.errors import UserError, reason

WIDTHS = (64, 128, 256, 512)
# Arguments of create_backbone that timm lacks, that only initialize training, or that follow from the network.
OURS = frozenset(
    (
        "image_size img_size width small_stem sincos_position frozen_patch_projection pretrained num_classes "
        "weight_init zero_init_last any_size"
    ).split()
)


def create_model_arguments(
    architecture: str, arguments: Mapping[str, Any], backbone: nn.Module
) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of timm.create_model for a network like ``backbone``.

    Args:
        architecture: timm's name, or the description that ``resnet_from_state`` gives.
        arguments: Arguments of ``create_backbone``.
        backbone: The timm network.
    """
    arguments = {
        key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key not in OURS
    }
    side = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    usual = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    if side is not None and (usual is None or tuple(side) != tuple(usual.input_size[1:])):
        arguments["img_size"] = list(side)
    if arguments.get("in_chans") == 3:  # timm's folders contain this and the pooling of every network
        del arguments["in_chans"]
    if usual is not None and "global_pool" in arguments:
        with torch.device("meta"):
            pool = getattr(timm.create_model(architecture), "global_pool", None)
        if arguments["global_pool"] == getattr(pool, "pool_type", pool):
            del arguments["global_pool"]
    if isinstance(backbone, ResNet):
        stages: list[Any] = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
        first = stages[0][0]
        bottleneck = isinstance(first, Bottleneck)
        ends = [stage[0].conv3 if bottleneck else stage[0].conv2 for stage in stages]
        channels = tuple(end.out_channels // first.expansion for end in ends)
        arguments.pop("channels", None)
        if channels != WIDTHS:
            arguments["channels"] = list(channels)
        if not timm.is_model(architecture):
            blocks = tuple(len(stage) for stage in stages)
            architecture = NAMES.get((bottleneck, blocks), "resnet50" if bottleneck else "resnet18")
            groups = first.conv2.groups
            base_width = first.conv2.out_channels * 64 // (groups * channels[0])
            arguments |= {"layers": list(blocks)} if (bottleneck, blocks) not in NAMES else {}
            arguments |= {"cardinality": groups} if groups > 1 else {}
            arguments |= {"base_width": base_width} if bottleneck and base_width != 64 else {}
    return architecture, arguments


def timm_network(name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Create a network with timm and load ``state`` without copying it.

    Raises:
        UserError: timm has no network for these weights.
    """
    try:
        network: nn.Module = timm.create_model(name, num_classes=0, **arguments)
        network.load_state_dict(dict(state), assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"timm.create_model({name!r}) does not fit these weights: {reason(error)}") from error
    return network.eval()


def timm_config(name: str, arguments: Mapping[str, Any], network: Any, view: View) -> dict[str, Any]:
    """Return the ``config.json`` of a folder for ``timm.create_model('local-dir:FOLDER')``."""
    known = network.pretrained_cfg
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": network.num_features,
        "model_args": dict(arguments),
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [view.channels, view.image_size, view.image_size],
            "fixed_input_size": bool(known.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": view.crop_ratio,
            "mean": list(view.mean),
            "std": list(view.std),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _write_folder(folder: Path, metadata: dict[str, Any], state: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write the folder that ``timm.create_model('local-dir:FOLDER', pretrained=True)`` opens."""
    write_state(folder / "model.safetensors", metadata, state)
    (folder / "config.json").write_text(json.dumps({**config, "moco_plugin": metadata}, indent=2) + "\n")


def _read_with_timm(
    path: Path, name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Open a file or folder with timm as its users and LightlyTrain do; return its network's weights in their types.

    Raises:
        UserError: timm does not open it.
    """
    try:
        if path.is_dir():
            network = timm.create_model(f"local-dir:{path}", pretrained=True)
        else:
            network = timm.create_model(name, num_classes=0, checkpoint_path=str(path), **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"timm does not open the file: {reason(error)}") from error
    return {key: value.to(state[key].dtype) for key, value in network.state_dict().items()}  # timm's are float32


def _timm_target(checkpoint: Checkpoint, output: Path) -> Target:
    try:
        return _target(checkpoint, output, "timm")
    except UserError:
        if not output.suffix:
            raise
    # timm has no argument for a stem of another kind or width
    state = checkpoint.backbone.state_dict()
    network = checkpoint.untrained()
    network.load_state_dict(state, assign=True)
    opens = f"moco_plugin.checkpoints.read.read_checkpoint('{output}').backbone"
    details: dict[str, Any] = {"target": "timm"}
    if timm.is_model(checkpoint.architecture):  # for our reader, which takes create_backbone's arguments
        arguments = {key: list(v) if isinstance(v, tuple) else v for key, v in checkpoint.arguments.items()}
        details |= {"timm_name": checkpoint.architecture, "timm_arguments": arguments}
    return Target(Network("timm", network, stages_of(network)), state, details, opens)


def _target(checkpoint: Checkpoint, output: Path, to: str) -> Target:
    state = checkpoint.backbone.state_dict()
    name, arguments = create_model_arguments(checkpoint.architecture, checkpoint.arguments, checkpoint.backbone)
    network = timm_network(name, arguments, state)
    loading = {**arguments, "num_classes": 0, "checkpoint_path": str(output)}
    opens = f"timm.create_model('{name}', {keywords(loading)})"
    if to == "lightly-train":
        opens = f"lightly_train.pretrain(model='timm/{name}', model_args={loading}, ...)"
    framework = "LightlyTrain" if to == "lightly-train" else "timm"
    details = {"target": to, "timm_name": name, "timm_arguments": arguments}
    target = Target(Network(framework, network, stages_of(network)), state, details, opens)
    if output.suffix != ".safetensors":
        target.read = partial(_read_with_timm, name=name, arguments=arguments, state=state)
    if not output.suffix:
        target.opens = f"timm.create_model('local-dir:{output}', pretrained=True)"
        target.write = partial(_write_folder, config=timm_config(name, arguments, network, checkpoint.view))
    return target


TIMM = Format("timm", (".pth", ".pt", ".safetensors", ""), _timm_target, any_channels=True)
# LightlyTrain starts from timm's state dict, which is also what it exports
LIGHTLY_TRAIN = Format("lightly-train", (".pth", ".pt"), partial(_target, to="lightly-train"), any_channels=True)
