"""The weights that a backbone starts from: those of a checkpoint, if both networks compute the same with them."""

from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer, adapt_input_conv
from torch import Tensor, nn

from moco_plugin.backbones import first_convolution
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UsageError
from moco_plugin.pretraining.config import PretrainConfig

# Attributes of modules that change no features in eval mode.
_OF_TRAINING = frozenset(
    (
        "training momentum inplace drop_rate grad_checkpointing fused_attn num_classes track_running_stats "
        "weight_init_mode"
    ).split()
)


def start_from(backbone: nn.Module, config: PretrainConfig) -> None:
    """Load the backbone of the checkpoint ``config.weights``.

    Raises:
        UsageError: It is of another architecture.
    """
    checkpoint = read_checkpoint(str(config.weights))
    try:
        backbone.load_state_dict(_adapted(checkpoint.backbone.state_dict(), backbone))
    except RuntimeError as error:
        raise UsageError(
            f"weights={config.weights} contains a {checkpoint.architecture}, which does not fit backbone={config.backbone} "
            "with these backbone_args; choose the same architecture"
        ) from error
    sized = ("img_size", "grid_size", "num_patches", "in_chans", "in_channels")  # of the images, see _adapted
    for name, theirs, ours in wiring_differences(checkpoint.backbone, backbone):
        argument = name.split(".")[-1]
        if argument not in sized:
            raise UsageError(
                f"weights={config.weights} has {name} {theirs} and backbone={config.backbone} has {ours}, so the same "
                f"weights would compute something else; choose the same network, such as backbone_args.{argument}={theirs}"
            )


def wiring_differences(one: nn.Module, other: nn.Module) -> list[tuple[str, Any, Any]]:
    """Return differences between networks with the same weights: heads, strides, epsilons, activations, pooling.

    Returns:
        Name of the layer and its attribute, and the value in both; what only training uses (dropout) is left out.
    """
    first, second = _wiring(one), _wiring(other)
    names = sorted(first.keys() | second.keys(), key=lambda name: (not name.endswith("num_heads"), name))
    return [(name, a, b) for name in names if (a := first.get(name)) != (b := second.get(name))]


def _wiring(network: nn.Module) -> dict[str, Any]:
    """Return what each layer computes with its weights, by the name of the layer and its attribute."""
    wiring: dict[str, Any] = {}
    for name, module in network.named_modules():
        kind = type(module).__name__
        if kind in ("Dropout", "DropPath", "PatchDropout"):
            wiring[f"{name} layer".strip()] = "Identity"
            continue
        wiring[f"{name} layer".strip()] = kind
        for key, value in vars(module).items():
            plain = isinstance(value, (bool, int, float, str, tuple))
            if plain and not key.startswith("_") and key not in _OF_TRAINING:
                wiring[f"{name}.{key}".strip(".")] = value
    return wiring


def _adapted(weights: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return weights for images of other channels or another size.

    timm's rules: filters of the first convolution are repeated over the channels and scaled, or summed for one channel;
    a ViT's position embedding is resampled.
    """
    ours = backbone.state_dict()
    if first := first_convolution(backbone):
        name, channels = f"{first[0]}.weight", first[1].in_channels
        theirs = weights.get(name)
        if theirs is not None and theirs.shape[1] != channels and theirs.shape[1] in (1, 3):
            print(f"weights: {name} is adapted from {theirs.shape[1]} to {channels} channels")
            weights = {**weights, name: adapt_input_conv(channels, theirs, theirs.shape[1])}
    position = weights.get("pos_embed")
    if not isinstance(backbone, VisionTransformer) or position is None or "pos_embed" not in ours:
        return weights
    if position.shape == ours["pos_embed"].shape or position.shape[-1] != ours["pos_embed"].shape[-1]:
        return weights
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    grid = backbone.patch_embed.grid_size
    print(f"weights: the position embedding is resampled to {grid[0]} x {grid[1]} patches")
    return {**weights, "pos_embed": resample_abs_pos_embed(position, list(grid), num_prefix_tokens=prefix)}
