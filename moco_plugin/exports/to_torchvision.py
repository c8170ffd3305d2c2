"""Weights and networks of plain ResNets and ViTs in torchvision."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision import models

from moco_plugin.checkpoints.formats import Format, Network, Target, keywords, stages_of
from moco_plugin.checkpoints.layouts import VIT_BLOCK_NAMES, VIT_NAMES
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.errors import UserError, reason


def torchvision_name(name: str) -> str:
    """Return torchvision's name of a ViT's tensor: encoder.layers.encoder_layer_0.ln_1.bias for blocks.0.norm1.bias."""
    block = re.match(r"blocks\.(\d+)\.", name)
    prefix = f"encoder.layers.encoder_layer_{block[1]}." if block else ""
    rest = name[block.end() :] if block else name
    for theirs, ours in (VIT_BLOCK_NAMES if block else VIT_NAMES).items():
        if rest.startswith(theirs):
            return prefix + ours + rest.removeprefix(theirs)
    raise UserError(f"torchvision's VisionTransformer has no tensor like {name!r}; expected a plain ViT")


def to_torchvision(backbone: nn.Module) -> dict[str, Tensor]:
    """Return a timm backbone's weights under torchvision's names.

    Raises:
        UserError: Neither a plain ResNet nor a plain ViT.
    """
    state = backbone.state_dict()
    if isinstance(backbone, VisionTransformer):
        return {torchvision_name(name): value for name, value in state.items()}
    if isinstance(backbone, ResNet):
        return dict(state)
    raise UserError(f"torchvision has ResNets and ViTs, and this is a {type(backbone).__name__}; choose another --to")


def torchvision_network(backbone: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return torchvision's network like a timm backbone, in eval mode, without a classifier.

    Args:
        backbone: A plain ResNet or ViT of timm.
        state: The weights under torchvision's names, without a classifier; they are not copied.

    Raises:
        UserError: torchvision has no such network.
    """
    name, arguments = torchvision_arguments(backbone)
    if "block" in arguments:
        arguments["block"] = getattr(models.resnet, arguments["block"])
    with torch.device("meta"):
        network: nn.Module = getattr(models, name)(**arguments)
    setattr(network, "fc" if "block" in arguments else "heads", nn.Identity())
    try:
        network.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        raise UserError(f"torchvision's {name} does not fit these weights: {reason(error)}") from error
    return network.eval()


def torchvision_arguments(backbone: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return the class in torchvision.models and its arguments for a plain ResNet or ViT of timm."""
    network: Any = backbone
    if isinstance(backbone, VisionTransformer):
        patches, blocks = network.patch_embed, network.blocks
        return "VisionTransformer", {
            "image_size": patches.img_size[0],
            "patch_size": patches.patch_size[0],
            "num_layers": len(blocks),
            "num_heads": blocks[0].attn.num_heads,
            "hidden_dim": network.embed_dim,
            "mlp_dim": blocks[0].mlp.fc1.out_features,
        }
    first = network.layer1[0]
    bottleneck = isinstance(first, Bottleneck)
    groups = first.conv2.groups if bottleneck else 1
    return "ResNet", {
        "block": "Bottleneck" if bottleneck else "BasicBlock",
        "layers": [len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4)],
        "groups": groups,
        "width_per_group": first.conv2.out_channels // groups if bottleneck else 64,
    }


def _source(checkpoint: Checkpoint) -> Network:
    """Return torchvision's network with the weights; a ViT's under their names in the file."""
    backbone = checkpoint.backbone
    state = to_torchvision(backbone)
    if isinstance(backbone, VisionTransformer):
        state |= {name: value for name, value in checkpoint.original.items() if name in state}
    network = torchvision_network(backbone, state)
    return Network("torchvision", network, stages_of(network))


def _target(checkpoint: Checkpoint, output: Path) -> Target:
    state = to_torchvision(checkpoint.backbone)
    network = torchvision_network(checkpoint.backbone, state)
    name, arguments = torchvision_arguments(checkpoint.backbone)
    details = {"target": "torchvision", "torchvision_class": name, "torchvision_arguments": dict(arguments)}
    block = arguments.pop("block", None)
    first = f"torchvision.models.resnet.{block}, " if block else ""
    opens = (
        f"torchvision.models.{name}({first}{keywords(arguments)}), then its load_state_dict(..., strict=False), "
        "which does not change the classifier"
    )
    return Target(Network("torchvision", network, stages_of(network)), state, details, opens)


TORCHVISION = Format("torchvision", (".pth", ".pt", ".safetensors"), _target, source=_source)
