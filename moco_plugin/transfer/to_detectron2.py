"""detectron2's format: for its own ResNet, or for ``build_timm_backbone``."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from moco_plugin.checkpoints.formats import Format, Network, Target, stages_of
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.checkpoints.to_timm import create_model_arguments
from moco_plugin.errors import UserError, reason
from moco_plugin.transfer.components.resnet import resnet_for_weights, settings_of_weights
from moco_plugin.transfer.components.timm_backbone import build_timm_backbone
from moco_plugin.transfer.config import as_overrides
from moco_plugin.weight_files.load import load_file

# of a ResNet without squeeze-and-excitation, deep stem and the like, under torchvision's (and timm's) names
PLAIN_RESNET = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+")
_rebuild_array = np.zeros(1).__reduce__()[0]
# The network itself returns these four, so nothing more is compared.
STAGES = ("res2", "res3", "res4", "res5", "")


def detectron2_name(name: str) -> str:
    """Return detectron2's name of a ResNet tensor, e.g. layer1.0.downsample.1.bias to res2.0.shortcut.norm.bias."""
    if name.startswith("layer"):
        name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    else:
        name = f"stem.{name}"
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def to_detectron2(state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the arrays of a detectron2 ``.pkl``, from weights of a plain ResNet in torchvision's (and timm's) names.

    The projection head (``fc...``) becomes ``stem.fc...``, which detectron2 ignores.
    """
    return {detectron2_name(name): value.numpy() for name, value in {**state, **head}.items()}


def detectron2_source(checkpoint: Checkpoint) -> Network:
    """Return detectron2's ResNet with the unchanged weights of a detectron2 file.

    Raises:
        UserError: They are not the weights of a ResNet.
    """
    names = re.compile(r"(?:\S*\.)?((?:stem|res[2-5])\.\S+)")
    arrays = {
        match[1]: value.numpy() for name, value in checkpoint.original.items() if (match := names.fullmatch(name))
    }
    return Network("detectron2", resnet_for_weights(arrays), STAGES)


def timm_backbone_for_weights(name: str, arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Build ``build_timm_backbone``'s network and load weights with names that start with ``model.``.

    Raises:
        UserError: The weights leave a tensor of the network unfilled.
    """
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.ARGS = name, [part for pair in arguments.items() for part in pair]
    network: nn.Module = build_timm_backbone(cfg, ShapeSpec(channels=3))
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    try:
        missing, _ = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"MODEL.TIMM.NAME {name} does not fit these weights: {reason(error)}") from error
    if missing:
        raise UserError(f"the weights lack {missing[0]} and {len(missing) - 1} more tensors of timm's {name}")
    return network.eval()


class _Pickler(pickle._Pickler):
    """Writes numpy's old module name, which every numpy reads (1.x knows no ``numpy._core``)."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _rebuild_array:
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


def save_zoo_pickle(path: str | Path, model: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write weights so that any detectron2 loads them with ``MODEL.WEIGHTS``; equal input gives equal bytes.

    Args:
        path: The ``.pkl`` file to write.
        model: Arrays under detectron2's names, such as ``res2.0.conv1.weight``.
        metadata: Where the weights come from, of dicts, lists, strings and numbers; kept as ``moco_plugin``.
    """
    content = {
        "model": {name: np.asarray(model[name], order="C") for name in sorted(model)},
        "__author__": "MOCO",
        "matching_heuristics": True,  # "res2.0..." then fits any "...res2.0..." of the model
        "moco_plugin": metadata,
    }
    with open(path, "wb") as file:
        pickler = _Pickler(file, protocol=3)  # the oldest protocol that keeps bytes as bytes
        pickler.fast = True  # no memo: whether two equal strings are one object must not change the bytes
        pickler.dump(content)


def _target(checkpoint: Checkpoint, output: Path) -> Target:
    """Return a target for detectron2's own ResNet, as the released code's converter writes it, or for timm's networks."""
    state = checkpoint.backbone.state_dict()
    widths = [info["num_chs"] for info in getattr(checkpoint.backbone, "feature_info", ())][1:]
    if not all(PLAIN_RESNET.fullmatch(name) for name in state) or any(
        width != widths[0] * 2**stage for stage, width in enumerate(widths)
    ):
        return _timm_target(checkpoint, output)
    arrays = to_detectron2(state, checkpoint.head)
    network = Network("detectron2", resnet_for_weights(arrays), STAGES)
    return _make_target(checkpoint, output, network, arrays, {"stride_in_1x1": False}, settings_of_weights(arrays))


def _timm_target(checkpoint: Checkpoint, output: Path) -> Target:
    """Return a target for ``build_timm_backbone``, with timm's names below ``model.``."""
    name, arguments = create_model_arguments(checkpoint.architecture, checkpoint.arguments, checkpoint.backbone)
    arrays = {f"model.{key}": value.numpy() for key, value in checkpoint.backbone.state_dict().items()}
    network = timm_backbone_for_weights(name, arguments, arrays)
    kept = {key for key, _ in network.named_modules()}  # layers behind the last map are removed
    stages = [f"model.{stage}" for stage in stages_of(checkpoint.backbone)]
    settings = {
        "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME": name,
        "MODEL.TIMM.ARGS": [part for pair in arguments.items() for part in pair],
    }
    target = _make_target(
        checkpoint,
        output,
        Network("detectron2", network, [stage for stage in stages if stage in kept]),
        arrays,
        {"timm_name": name, "timm_arguments": arguments},
        settings,
    )
    target.source_stages = lambda source: [s for s, t in zip(source, stages, strict=True) if t in kept]
    return target


def _make_target(
    checkpoint: Checkpoint,
    output: Path,
    network: Network,
    arrays: dict[str, np.ndarray],
    details: dict[str, Any],
    settings: dict[str, Any],
) -> Target:
    """Return a target with these details and settings in its file, and those of images with values from 0 to 255."""
    view = checkpoint.view
    mean, std = ([round(255 * value, 3) for value in values] for values in (view.mean, view.std))
    settings = {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": std, **settings}
    return Target(
        network,
        arrays,
        {"target": "detectron2", **details, "settings": settings},
        as_overrides({"MODEL.WEIGHTS": str(output), **settings}),
        write=lambda path, metadata, state: save_zoo_pickle(path, state, metadata),
        read=lambda path: load_file(path).content["model"],
    )


DETECTRON2 = Format("detectron2", (".pkl",), _target, source=detectron2_source)
DETECTRON2_TIMM = Format("detectron2-timm", (".pkl",), _timm_target)
