"""Any timm network as detectron2's backbone: on its own, under FPN, or a plain ViT under a simple pyramid."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.config.defaults import _C as DEFAULTS
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from timm.layers import LayerNorm2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco_plugin.backbones import create_backbone
from moco_plugin.errors import UsageError, reason

Norm = str | Callable[[int], nn.Module]
PYRAMID = ("res2", "res3", "res4", "res5")  # strides 4 to 32


DEFAULTS.MODEL.TIMM = CfgNode(
    {
        "NAME": "",  # as in timm.list_models()
        # arguments of moco_plugin.backbones.create_backbone and so of timm.create_model, as pairs of KEY VALUE, e.g.
        # ["num_heads", 12, "img_size", 384]
        "ARGS": [],
        # the network's batch norms: "BN" (trained on each GPU), "SyncBN" (over all) or "FrozenBN"; others do not change
        "NORM": "BN",
        # the maps to return, res2 to res5 for strides 4 to 32; empty: all from stride 4 on
        "OUT_FEATURES": [],
    }
)
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "BN": lambda model: model,
    "SyncBN": convert_sync_batchnorm,
    "FrozenBN": freeze_batch_norm_2d,
}


class TimmBackbone(Backbone):
    """A timm network that returns feature maps.

    Weights have timm's names below ``model.``. Maps are named by stride as in detectron2's ResNets: ``res2`` has stride
    4, ``res5`` 32 (in a dilated network, a map of the same stride as the one before gets the next name). A plain ViT
    returns its last map, without the final norm, which ViTDet does not use. Layers behind the last map are removed.

    Args:
        model: A timm network; it is changed.
        out_features: Names of the maps to return; none: all from stride 4 on.

    Raises:
        UsageError: The network has no feature maps, or not these.
    """

    def __init__(self, model: nn.Module, out_features: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, name = cast(Any, model), type(model).__name__
        if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
            raise UsageError(f"timm's {name} gives no feature maps; choose another MODEL.TIMM.NAME")
        maps = _maps(model)
        for wanted in out_features:
            if wanted not in maps:
                raise UsageError(f"timm's {name} has no map {wanted!r}; it has {', '.join(maps)}")
        names = [n for n in maps if n in out_features or (not out_features and maps[n][1] >= 4)] or list(maps)
        self._out_features = names
        self._out_feature_channels = {n: maps[n][2] for n in names}
        self._out_feature_strides = {n: maps[n][1] for n in names}
        # layers behind the last map would get no gradient, which DistributedDataParallel does not allow
        self._indices = self.model.prune_intermediate_layers([maps[n][0] for n in names], prune_norm=True)

    @property
    def size_divisibility(self) -> int:
        """The largest stride: images are padded to a multiple, else patches would not fit."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps (N x C x H / stride x W / stride) of N x 3 x H x W images, by name."""
        maps = self.model.forward_intermediates(
            images, indices=self._indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(self._out_features, maps, strict=True))


def is_plain(model: nn.Module) -> bool:
    """Return whether all maps of a timm network have one stride, as those of a plain ViT."""
    info = cast(Any, model).feature_info
    return len({i["reduction"] for i in info}) == 1 and len(list(info)) > 1


def _maps(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Return index, stride and channels of each map by its name."""
    entries = list(enumerate(cast(Any, model).feature_info))
    maps: dict[str, tuple[int, int, int]] = {}
    level = -1
    for index, info in entries[-1:] if is_plain(model) else entries:
        stride = info["reduction"]
        if stride & (stride - 1):
            raise UsageError(
                f"timm's {type(model).__name__} has maps of stride {stride}, and detectron2 takes only "
                "powers of two; choose another MODEL.TIMM.NAME, or another patch_size in MODEL.TIMM.ARGS"
            )
        level = max(level + 1, round(math.log2(stride)))
        maps[f"res{level}"] = (index, stride, info["num_chs"])
    return maps


class SimplePyramid(Backbone):
    """ViTDet's simple feature pyramid: all levels from the last map of a plain ViT (arXiv 2203.16527, section 3).

    A level is the map itself, deconvolved (2 x 2, stride 2, a norm and GELU between two) or max-pooled, and then
    a 1 x 1 and a 3 x 3 convolution, each with norm. Attention is global in every block: ViTDet's windows, which
    save memory at 1024 pixels and more, are not implemented.

    Args:
        bottom_up: Returns one map.
        strides: Strides of the levels, each twice the one before; 4 is named ``p2``, and so on.
        out_channels: Channels of each level.
        norm: As in detectron2's ``get_norm``; ViTDet has LayerNorm.
        top_block: detectron2's block for coarser levels.
    """

    def __init__(
        self,
        bottom_up: TimmBackbone,
        strides: Sequence[int] = (4, 8, 16, 32),
        out_channels: int = 256,
        norm: Norm = LayerNorm2d,
        top_block: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        ((self._in_feature, shape),) = bottom_up.output_shape().items()
        self._levels = [_level(stride) for stride in strides]
        for name, stride in zip(self._levels, strides, strict=True):
            resample, channels = _resample(shape.channels, round(math.log2(shape.stride / stride)), norm)
            convolutions = [
                Conv2d(c, out_channels, k, padding=k // 2, bias=norm == "", norm=get_norm(norm, out_channels))
                for c, k in ((channels, 1), (out_channels, 3))
            ]
            self.add_module(name, nn.Sequential(*resample, *convolutions))
        self.top_block = top_block
        coarser = [strides[-1] * 2 ** (level + 1) for level in range(getattr(top_block, "num_levels", 0))]
        self._out_feature_strides = {_level(stride): stride for stride in (*strides, *coarser)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility: int = max(shape.stride, strides[-1])

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels (N x out_channels x H / stride x W / stride) of N x 3 x H x W images, by name."""
        features = self.bottom_up(images)[self._in_feature]
        levels = [getattr(self, name)(features) for name in self._levels]
        if self.top_block is not None:
            levels += self.top_block(levels[-1])
        return dict(zip(self._out_features, levels, strict=True))


def _level(stride: int) -> str:
    return f"p{round(math.log2(stride))}"


def _resample(channels: int, doublings: int, norm: Norm) -> tuple[list[nn.Module], int]:
    """Return the layers that make a map 2 ** doublings times as fine, and their channels."""
    layers: list[nn.Module] = [nn.MaxPool2d(2) for _ in range(-doublings)]
    for step in range(doublings):
        if step > 0:
            layers += [get_norm(norm, channels) or nn.Identity(), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return layers, channels


def network_arguments(cfg: Any) -> dict[str, Any]:
    """Return ``MODEL.TIMM.ARGS`` as a dict; raise UsageError unless it consists of pairs."""
    pairs = list(cfg.MODEL.TIMM.ARGS)
    if len(pairs) % 2 or not all(isinstance(key, str) for key in pairs[::2]):
        raise UsageError(f"MODEL.TIMM.ARGS is a list of pairs, such as ['num_heads', 12], got {pairs}")
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def freeze(model: nn.Module, freeze_at: int) -> None:
    """Freeze the first parts of a timm network and the statistics of their batch norms.

    Args:
        model: A timm network.
        freeze_at: As ``MODEL.BACKBONE.FREEZE_AT``: 0 nothing, 1 the stem (a ViT's patches and positions), 2 also
            the first stage (a ViT's first block), and so on, in timm's own groups.
    """
    if freeze_at <= 0:
        return
    if not hasattr(model, "group_matcher"):
        raise UsageError(f"timm does not name the stem of {type(model).__name__}; set MODEL.BACKBONE.FREEZE_AT to 0")
    groups = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    frozen = {name for group, names in groups.items() if group < freeze_at for name in names}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm) and f"{name}.weight" in frozen:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, freeze_batch_norm_2d(module))


def _backbone(cfg: Any, input_shape: ShapeSpec, out_features: Sequence[str]) -> TimmBackbone:
    """Build the network of ``MODEL.TIMM`` for images of any size.

    Raises:
        UsageError: There is no such network, it does not take these arguments, or its maps do not fit.
    """
    name, norm, channels = cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.NORM, input_shape.channels
    if not name:
        raise UsageError("MODEL.TIMM.NAME is empty; set it to a name of timm.list_models()")
    if norm not in NORMS:
        raise UsageError(f"MODEL.TIMM.NORM is {norm!r}; expected BN, SyncBN or FrozenBN")
    arguments = network_arguments(cfg) | ({"in_chans": channels} if channels != 3 else {})
    try:
        model = create_backbone(name, any_size=True, **arguments)
    except (UsageError, TypeError) as error:
        raise UsageError(f"MODEL.TIMM: {error}") from error
    backbone = TimmBackbone(model, () if is_plain(model) else out_features)
    _check_maps(backbone, name, channels)
    freeze(backbone.model, cfg.MODEL.BACKBONE.FREEZE_AT)
    backbone.model = NORMS[norm](backbone.model)
    return backbone


@torch.no_grad()
def _check_maps(backbone: TimmBackbone, name: str, channels: int) -> None:
    """Check the maps of an image that is not square."""
    height, width = 2 * backbone.size_divisibility, 3 * backbone.size_divisibility
    backbone.eval()
    try:
        maps = backbone(torch.zeros(1, channels, height, width))
        for key, shape in backbone.output_shape().items():
            expected = (1, shape.channels, height // shape.stride, width // shape.stride)
            if maps[key].shape != expected:
                raise ValueError(f"{key} has shape {tuple(maps[key].shape)}, expected {expected}")
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"MODEL.TIMM.NAME: timm's {name} does not take images of any size ({reason(error)}); choose another"
        ) from error
    backbone.train()


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network of ``MODEL.TIMM``: ``res2`` to ``res5``, or the one map of a plain ViT (``res4``)."""
    return _backbone(cfg, input_shape, cfg.MODEL.TIMM.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """Put detectron2's FPN on that network, or ViTDet's simple pyramid on a plain ViT: ``p2`` to ``p6``.

    ``MODEL.FPN.IN_FEATURES`` names the maps (all from stride 4 on if empty); a plain ViT gets levels of their strides.
    ``MODEL.FPN.NORM`` can also be "LN", ViTDet's choice.
    """
    return _pyramid(cfg, input_shape, lambda channels, name: LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """Build the same with RetinaNet's two convolved levels on top: ``p3`` to ``p7`` from res3 to res5."""
    out = cfg.MODEL.FPN.OUT_CHANNELS
    return _pyramid(cfg, input_shape, lambda channels, name: LastLevelP6P7(channels, out, name))


def _pyramid(cfg: Any, input_shape: ShapeSpec, top_block: Callable[[int, str], nn.Module]) -> Backbone:
    options = cfg.MODEL.FPN
    norm: Norm = LayerNorm2d if options.NORM == "LN" else options.NORM
    bottom_up = _backbone(cfg, input_shape, options.IN_FEATURES or cfg.MODEL.TIMM.OUT_FEATURES)
    maps = bottom_up.output_shape()
    if is_plain(bottom_up.model):
        levels = [int(name.removeprefix("res")) for name in options.IN_FEATURES or PYRAMID]
        top = top_block(options.OUT_CHANNELS, f"p{levels[-1]}")
        return SimplePyramid(bottom_up, [2**level for level in levels], options.OUT_CHANNELS, norm, top)
    names = list(options.IN_FEATURES) or list(maps)
    last = maps[names[-1]]
    top = top_block(last.channels, names[-1])
    if isinstance(top, LastLevelMaxPool):
        top.in_feature = _level(last.stride)  # detectron2 takes it to be p5
    try:
        return FPN(bottom_up, names, options.OUT_CHANNELS, norm, top, options.FUSE_TYPE)
    except AssertionError as error:
        raise UsageError(f"MODEL.FPN.IN_FEATURES {names} of timm's {cfg.MODEL.TIMM.NAME}: {error}") from error


BUILDERS = frozenset(
    builder.__name__ for builder in (build_timm_backbone, build_timm_fpn_backbone, build_retinanet_timm_fpn_backbone)
)
