"""The proof of a conversion: source and target compute the same features, stage by stage, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from moco_plugin.backbones import input_channels
from moco_plugin.errors import UserError

# Share of a stage's largest feature. Two ways to compute the same leave 1e-15 in float64; a wrong weight leaves 1e-3.
TOLERANCE = 1e-6


@dataclass
class Network:
    """A network of one framework, and where its stages end.

    Attributes:
        framework: Whose network it is.
        module: The network, in eval mode.
        stages: Names of the submodules whose outputs are compared, in order; an empty name is the network itself. Two
            networks' stages stand for each other one by one.
    """

    framework: str
    module: nn.Module
    stages: Sequence[str]


class _Float64(TorchFunctionMode):
    """Lets float32 weights take part in float64 arithmetic one by one: no network is copied to float64 whole."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, _to_float64, (args, kwargs or {}))
        return function(*args, **kwargs)


def _to_float64(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


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


@torch.no_grad()
def stage_features(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of those of a network's stages that give one tensor, computed in float64.

    Raises:
        UserError: The network does not take such images.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found[name] = output.clone()  # the next layer may work in place

    hooks = [network.module.get_submodule(name).register_forward_hook(partial(keep, name)) for name in network.stages]
    try:
        with _Float64():
            network.module(images)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{network.framework}'s network does not take images of {' x '.join(map(str, images.shape))}: {reason}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


@dataclass
class Proof:
    """What a comparison found; written into the file that it is about.

    Attributes:
        source: Whose network held the weights as they came.
        target: Whose network held the weights as they go out.
        images: N, C, H and W of the random images.
        largest_differences: By the target's stages, as a share of the source's largest feature there.
        tolerance: The most that was allowed.
        arithmetic: What was computed in.
    """

    source: str
    target: str
    images: list[int]
    largest_differences: dict[str, float]
    tolerance: float = TOLERANCE
    arithmetic: str = "float64"


def prove(source: Network, target: Network, images: Tensor) -> Proof:
    """Compare two networks on the same images, stage by stage.

    Args:
        source: Holds the weights as they came.
        target: Holds the weights as they go out.
        images: N x C x H x W, float64.

    Raises:
        UserError: The features of a stage differ by more than ``TOLERANCE`` of the largest, are of different shapes,
            or are all zero.
    """
    differences = {}
    expected, found = stage_features(source, images), stage_features(target, images)
    pairs = [(s, t) for s, t in zip(source.stages, target.stages, strict=True) if s in expected and t in found]
    if not pairs:
        raise UserError(f"{source.framework}'s network has no stages to compare")
    for source_stage, target_stage in pairs:
        stage, e, f = target_stage or "output", expected[source_stage], found[target_stage]
        if e.shape != f.shape:
            raise UserError(
                f"{target.framework}'s {stage} is of shape {tuple(f.shape)}, {source.framework}'s of {tuple(e.shape)}"
            )
        largest = e.abs().max()
        if not largest:  # equal zeros would prove nothing
            raise UserError(f"the network's {stage} features are all zero, so its weights are not trained")
        differences[stage] = difference = float((e - f).abs().max() / largest)
        if not difference <= TOLERANCE:  # NaN is not small either
            raise UserError(
                f"{target.framework}'s {stage} differs by {difference:.3g} of its largest feature from "
                f"{source.framework}'s, more than {TOLERANCE:g}"
            )
    return Proof(source.framework, target.framework, list(images.shape), differences)
