"""timm backbones with the papers' initialization."""

import itertools
import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import timm
import torch
from huggingface_hub import constants as hub
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models import VisionTransformer
from timm.models.resnet import BasicBlock
from torch import nn

from moco_plugin.errors import UsageError, UserError, did_you_mean, reason
from moco_plugin.files import STALLED, fetching

# Arguments of timm.create_model that read, download or trust files; only ``pretrained=True/False`` is allowed.
LOADING = {
    *("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
    *("pretrained_model_args", "pretrained_loc", "cache_dir", "model_dir"),
}


def create_backbone(
    name: str,
    *,
    image_size: int | None = None,
    width: int = 1,
    small_stem: bool = False,
    conv_stem: bool = False,
    sincos_position: bool = False,
    frozen_patch_projection: bool = False,
    any_size: bool = False,
    **arguments: Any,
) -> nn.Module:
    """Create a timm model that maps N x C x H x W images to N x ``feature_dim(model)`` features.

    Residual networks start with gamma 1 in the last batch norm of each block, as torchvision's do and v1 and
    v2 were trained; timm's own default of 0, which v3 has, is ``zero_init_last=True``.

    Args:
        name: Any name that timm.create_model knows.
        image_size: Side of the images in pixels, for the models that must know it (ViTs, Swin).
        width: Factor on all channels of a ResNet, stem included: 2 and 4 make v1's R50w2x and R50w4x.
        small_stem: Start a ResNet with a 3x3 convolution of stride 1 and no max-pool, for images such as CIFAR's.
        sincos_position: Fixed 2-d sine-cosine position embedding of a ViT (v3).
        conv_stem: Embed a ViT's patches by v3's stack of convolutions (``vit_conv_small`` and ``_base``, appendix of v3).
        frozen_patch_projection: A ViT's random patch projection is not trained (v3, section 5).
        any_size: Accept images of any size if the network can: ViTs resample position embeddings, Swin pads windows.
        **arguments: Further arguments of timm.create_model, such as ``in_chans`` (C, 3 unless given), ``channels``,
            ``pretrained`` or, for v3's ViTs, ``weight_init="moco"``.

    Raises:
        UsageError: Unknown name (similar names are suggested), or arguments that the model does not accept or that
            make timm read files.
        UserError: Pre-trained weights cannot be fetched.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models()) or "; timm.list_models() lists them"
        raise UsageError(f"unknown backbone {name!r}: timm has no model of that name{hint}")
    if refused := sorted(LOADING & arguments.keys()):
        raise UsageError(f"backbone_args.{refused[0]} makes timm read other files; leave it out, and give weights=FILE")
    if not isinstance(arguments.get("pretrained", False), bool):
        raise UsageError(f"backbone_args.pretrained is {str(arguments['pretrained'])[:60]!r}; expected true or false")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if (width != 1 or small_stem) and not is_resnet(name):
        argument = "width" if width != 1 else "small_stem"
        raise UsageError(f"backbone_args.{argument} is for timm's ResNets, and {name} is none; leave it out")
    if width != 1:
        arguments["channels"] = tuple(width * c for c in arguments.get("channels", (64, 128, 256, 512)))
    # left out where a model does not accept them
    optional = {"zero_init_last": arguments.pop("zero_init_last", False)}
    if conv_stem:
        arguments["embed_layer"] = ConvStem
    if any_size:  # the argument's name in each family
        optional |= {"dynamic_img_size": True, "strict_img_size": False}
    if image_size is not None and "img_size" not in arguments:
        optional["img_size"] = image_size
    if frozen_patch_projection and "weight_init" in arguments:  # without patches a better sentence follows
        optional["weight_init"] = arguments.pop("weight_init")
    model = create_optional(name, arguments, optional)
    if width != 1:
        widen_stem(model, 64 * width)
    if small_stem:
        _shrink_stem(model)
    if frozen_patch_projection:
        freeze_patch_projection(model, name, bool(arguments.get("pretrained")))
    if sincos_position:
        fix_position(model, name)
    return model


def is_plain_vit(model: nn.Module) -> bool:
    """Return whether a network is a ViT with a learned position embedding and one convolution as patch projection."""
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        return False
    return isinstance(model.patch_embed.proj, nn.Conv2d) and isinstance(model.pos_embed, nn.Parameter)


def is_resnet(name: str) -> bool:
    """Return whether timm defines a model with its ResNets and ResNeXts."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.endswith(".resnet")


def create_optional(name: str, arguments: dict[str, Any], optional: dict[str, Any]) -> nn.Module:
    """Create a timm model without its classifier, with as many of the optional arguments as its family accepts.

    Only a TypeError of timm shows which it accepts: they pass through functions of ``**kwargs`` to the class.

    Raises:
        UsageError: It does not take ``arguments``, or a value is wrong.
        UserError: Pre-trained weights cannot be fetched.
    """
    sizes = range(len(optional), -1, -1)
    with _fetching() if arguments.get("pretrained") else nullcontext("") as unanswered:
        for keys in itertools.chain.from_iterable(itertools.combinations(optional, size) for size in sizes):
            try:
                return timm.create_model(name, num_classes=0, **arguments, **{key: optional[key] for key in keys})
            except TypeError as error:
                refused: Exception = error
            except ValueError as error:
                raise UsageError(f"backbone_args of {name}: {error}") from error
            except (OSError, RuntimeError) as error:
                if not arguments.get("pretrained"):
                    raise
                raise UserError(
                    f"timm's pre-trained weights of {name} cannot be fetched ({unanswered or reason(error)}); get a file of "
                    "them elsewhere, and give weights=FILE"
                ) from error
    raise UsageError(f"backbone_args of {name}: {refused}") from refused


@contextmanager
def _fetching() -> Iterator[str]:
    """Fetch weights inside the block; if Hugging Face does not answer, use only the cache, without retries.

    Yields:
        The reason why it does not answer, or "".
    """
    offline, unanswered = hub.HF_HUB_OFFLINE, ""
    with fetching():
        try:
            urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=STALLED).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except OSError as error:
            hub.HF_HUB_OFFLINE = True
            unanswered = f"{hub.ENDPOINT} does not answer: {getattr(error, 'reason', error)}"
        try:
            yield unanswered
        finally:
            hub.HF_HUB_OFFLINE = offline


class ConvStem(PatchEmbed):
    """MoCo v3's stem for ViTs: four 3x3 convolutions of stride 2, then one 1x1 (Xiao et al., arXiv 2106.14881)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels, dim = cast(int, self.proj.in_channels), cast(int, self.proj.out_channels)
        layers: list[nn.Module] = []
        for width in (dim // 8, dim // 4, dim // 2, dim):
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels, dim, 1))  # type: ignore[assignment]


def _start(convolution: nn.Conv2d) -> nn.Conv2d:
    """Draw a convolution's weights as timm's (and torchvision's) ResNet does."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def widen_stem(model: Any, channels: int) -> None:
    """Give a ResNet with a 7x7 stem ``channels`` channels there (timm fixes them at 64)."""
    if not isinstance(model.conv1, nn.Conv2d):
        raise UsageError("backbone_args.width is for ResNets with a 7x7 stem; leave it out")
    model.conv1 = _start(nn.Conv2d(model.conv1.in_channels, channels, 7, stride=2, padding=3, bias=False))
    model.bn1 = type(model.bn1)(channels)
    model.feature_info[0]["num_chs"] = channels
    first = model.layer1[0]
    first.conv1 = _start(
        nn.Conv2d(channels, first.conv1.out_channels, first.conv1.kernel_size, 1, first.conv1.padding, bias=False)
    )
    if isinstance(first, BasicBlock) and channels == first.conv2.out_channels:
        first.downsample = None  # the shortcut is the identity, as in the network at its usual width
    elif first.downsample is not None:
        first.downsample[0] = _start(nn.Conv2d(channels, first.downsample[0].out_channels, 1, bias=False))


def _shrink_stem(model: Any) -> None:
    if isinstance(stem := model.conv1, nn.Conv2d):
        model.conv1 = _start(nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False))
    else:  # three 3x3 convolutions
        model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()


def freeze_patch_projection(model: nn.Module, name: str, pretrained: bool) -> None:
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        raise UsageError(
            f"backbone_args.frozen_patch_projection: {name} has no patch projection (patch_embed.proj); "
            "choose a ViT, or set it to false"
        )
    if not pretrained:  # Xavier's uniform over the flattened patch, as v3's code has it
        fan = projection.weight[0].numel() + projection.out_channels
        nn.init.uniform_(projection.weight, -math.sqrt(6 / fan), math.sqrt(6 / fan))
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)


def fix_position(model: nn.Module, name: str) -> None:
    position, grid = getattr(model, "pos_embed", None), getattr(model, "patch_embed", None)
    if not isinstance(position, nn.Parameter) or position.ndim != 3 or not hasattr(grid, "grid_size"):
        raise UsageError(
            f"backbone_args.sincos_position: {name} has no learned position embedding (pos_embed); "
            "choose a ViT, or set it to false"
        )
    # sin and cos of the row, then of the column; zeros for the class token
    fixed = build_sincos2d_pos_embed(list(cast(Any, grid).grid_size), position.shape[2], interleave_sin_cos=True)
    with torch.no_grad():
        position.zero_()[0, position.shape[1] - len(fixed) :] = fixed
    position.requires_grad_(False)


def feature_dim(backbone: nn.Module) -> int:
    """Return the width of the pooled features of a timm model."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return name and layer of a network's first convolution, which takes the images; None if it has none."""
    return next(((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)), None)


def input_channels(network: nn.Module) -> int:
    """Return the channels of the images that a network takes: those of its first convolution; 3 if it has none."""
    first = first_convolution(network)
    return first[1].in_channels if first else 3


def check_features(backbone: nn.Module, name: str, image_size: int, channels: int = 3) -> int:
    """Return the width of the features, measured on two images.

    Raises:
        UsageError: It does not take images of that size, or gives no N x C features.
    """
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        first = first_convolution(backbone)
        if first is not None and first[1].in_channels != channels:
            raise UsageError(
                f"backbone {name} takes images of {first[1].in_channels} channels, expected {channels}; "
                f"set backbone_args.in_chans={channels}"
            ) from error
        raise UsageError(
            f"backbone {name} does not take images of {image_size} x {image_size} ({reason(error)}); "
            "choose another data.image_size or backbone"
        ) from error
    backbone.train(was_training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or not features.shape[1]:
        found = f"shape {tuple(features.shape)}" if hasattr(features, "shape") else f"a {type(features).__name__}"
        raise UsageError(f"backbone {name} has no features to train: found {found}, expected one vector per image")
    return int(features.shape[1])


def breaks_channels_last(network: nn.Module) -> str:
    """Return the name of a convolution that torch cannot train in channels-last layout on CPUs, or "".

    The backward pass of oneDNN (torch 2.14.1) writes out of bounds in strided 1 x 1 convolutions of fewer than 8 input
    channels: networks of very few channels, and the stems of MobileOne.
    """
    layers = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    breaking = (name for name, c in layers if c.in_channels < 8 and set(c.kernel_size) == {1} and max(c.stride) > 1)
    return next(breaking, "")
