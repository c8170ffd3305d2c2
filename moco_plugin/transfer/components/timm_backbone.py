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
from moco_plugin.errors import UsageError

Norm = str | Callable[[int], nn.Module]
PYRAMID = ("res2", "res3", "res4", "res5")  # strides 4 to 32


def add_timm_config(cfg: Any) -> None:
    """Add ``MODEL.TIMM`` to a detectron2 config; detectron2's defaults get it on import."""
    cfg.MODEL.setdefault("TIMM", CfgNode())
    cfg.MODEL.TIMM.setdefault("NAME", "")  # as in timm.list_models()
    # arguments of moco_plugin.backbones.create_backbone and so of timm.create_model, what backbone_args is in
    # pre-training, as pairs of KEY VALUE, e.g. ["num_heads", 12, "img_size", 384]
    cfg.MODEL.TIMM.setdefault("ARGS", [])
    # the network's batch norms: "BN" (trained on each GPU), "SyncBN" (over all) or "FrozenBN"; others do not change
    cfg.MODEL.TIMM.setdefault("NORM", "BN")
    # the maps to return, res2 to res5 for strides 4 to 32; empty: all from stride 4 on
    cfg.MODEL.TIMM.setdefault("OUT_FEATURES", [])


add_timm_config(DEFAULTS)


class TimmBackbone(Backbone):
    """A timm network that returns feature maps.

    The network is ``model``, so each weight keeps timm's own name below ``model.``. Maps are named as those of
    detectron2's ResNets, by stride: ``res2`` has stride 4, ``res5`` 32 (a map that is not coarser than the one
    before, as in a dilated network, gets the next name). Of a plain ViT, all of whose maps have one stride, the
    last is returned, without the final norm, which ViTDet does not use. Layers behind the last map are removed.

    Args:
        model: A network of timm's; it is changed.
        out_features: Names of the maps to return; none: all from stride 4 on.

    Raises:
        UsageError: A network without feature maps, or maps that it does not have.
    """

    def __init__(self, model: nn.Module, out_features: Sequence[str] = ()) -> None:
        super().__init__()
        name = type(model).__name__
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
        self._indices = cast(Any, model).prune_intermediate_layers([maps[n][0] for n in names], prune_norm=True)
        self.model = model

    @property
    def size_divisibility(self) -> int:
        """The largest stride: images are padded to a multiple, else patches would not fit."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps (N x C x H / stride x W / stride) of N x 3 x H x W images, by name."""
        maps = cast(Any, self.model).forward_intermediates(
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
    a 1 x 1 and a 3 x 3 convolution, each with norm. Attention is global in every block; ViTDet's windows, which
    save memory at 1024 pixels and more, are not part of it.

    Args:
        bottom_up: Returns one map.
        strides: Of the levels, each twice the one before; their names are ``p2`` for 4, and so on.
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
        names = [f"p{round(math.log2(stride))}" for stride in strides]
        self._levels = tuple(names)
        for name, stride in zip(names, strides, strict=True):
            resample, channels = _resample(shape.channels, round(math.log2(shape.stride / stride)), norm)
            convolutions = [
                Conv2d(c, out_channels, k, padding=k // 2, bias=norm == "", norm=get_norm(norm, out_channels))
                for c, k in ((channels, 1), (out_channels, 3))
            ]
            self.add_module(name, nn.Sequential(*resample, *convolutions))
        self.top_block = top_block
        for level in range(getattr(top_block, "num_levels", 0)):
            names.append(f"p{round(math.log2(strides[-1])) + level + 1}")
        self._out_features = names
        self._out_feature_strides = {name: 2 ** int(name[1:]) for name in names}
        self._out_feature_channels = dict.fromkeys(names, out_channels)
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
    """Return ``MODEL.TIMM.ARGS`` as a dict.

    Raises:
        UsageError: No pairs of KEY VALUE.
    """
    pairs = list(cfg.MODEL.TIMM.ARGS)
    if len(pairs) % 2 or not all(isinstance(key, str) for key in pairs[::2]):
        raise UsageError(f"MODEL.TIMM.ARGS is a list of pairs, such as ['num_heads', 12], got {pairs}")
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def create_network(cfg: Any, channels: int) -> nn.Module:
    """Create the network of ``MODEL.TIMM``, for images of any size and so many channels.

    Raises:
        UsageError: No such network, or arguments that it does not take.
    """
    if not cfg.MODEL.TIMM.NAME:
        raise UsageError("MODEL.TIMM.NAME is empty; give it a name that timm.list_models() has")
    arguments = network_arguments(cfg) | ({"in_chans": channels} if channels != 3 else {})
    try:
        return create_backbone(cfg.MODEL.TIMM.NAME, any_size=True, **arguments)
    except (UsageError, TypeError) as error:
        raise UsageError(f"MODEL.TIMM: {error}") from error


def freeze(model: nn.Module, freeze_at: int) -> None:
    """Freeze the first parts of a timm network, their batch norms' statistics included.

    Args:
        model: A network of timm's.
        freeze_at: As ``MODEL.BACKBONE.FREEZE_AT``: 0 nothing, 1 the stem (a ViT's patches and positions), 2 also
            the first stage (a ViT's first block), and so on, in the groups that timm itself makes.
    """
    if freeze_at <= 0:
        return
    if not hasattr(model, "group_matcher"):
        raise UsageError(
            f"timm does not say what the stem of {type(model).__name__} is; set MODEL.BACKBONE.FREEZE_AT to 0"
        )
    groups = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    frozen = {name for group, names in groups.items() if group < freeze_at for name in names}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm) and f"{name}.weight" in frozen:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, freeze_batch_norm_2d(module))


def set_norm(model: nn.Module, norm: str) -> nn.Module:
    """Return a network with the batch norms of ``MODEL.TIMM.NORM``; other norms do not change.

    Raises:
        UsageError: Neither BN, SyncBN nor FrozenBN.
    """
    if norm == "SyncBN":
        return cast(nn.Module, convert_sync_batchnorm(model))
    if norm == "FrozenBN":
        return cast(nn.Module, freeze_batch_norm_2d(model))
    if norm != "BN":
        raise UsageError(f"MODEL.TIMM.NORM is {norm!r}; expected BN, SyncBN or FrozenBN")
    return model


def _backbone(cfg: Any, input_shape: ShapeSpec, out_features: Sequence[str]) -> TimmBackbone:
    """Build the backbone, and check its maps for an image of an uncommon shape."""
    model = create_network(cfg, input_shape.channels)
    backbone = TimmBackbone(model, () if is_plain(model) else out_features)
    _check_maps(backbone, cfg.MODEL.TIMM.NAME, input_shape.channels)
    freeze(backbone.model, cfg.MODEL.BACKBONE.FREEZE_AT)
    backbone.model = set_norm(backbone.model, cfg.MODEL.TIMM.NORM)
    return backbone


@torch.no_grad()
def _check_maps(backbone: TimmBackbone, name: str, channels: int) -> None:
    height, width = 2 * backbone.size_divisibility, 3 * backbone.size_divisibility
    backbone.eval()
    try:
        maps = backbone(torch.zeros(1, channels, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"MODEL.TIMM.NAME: timm's {name} does not take images of any size ({reason}); choose another"
        ) from error
    backbone.train()
    for map_name, shape in backbone.output_shape().items():
        expected = (1, shape.channels, height // shape.stride, width // shape.stride)
        if maps[map_name].shape != expected:
            raise UsageError(
                f"MODEL.TIMM.NAME: {map_name} of timm's {name} has shape {tuple(maps[map_name].shape)}, "
                f"and timm says {expected}; choose another"
            )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network of ``MODEL.TIMM``: ``res2`` to ``res5``, or the one map of a plain ViT (``res4``)."""
    return _backbone(cfg, input_shape, cfg.MODEL.TIMM.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """Put detectron2's FPN on that network, or ViTDet's simple pyramid on a plain ViT: ``p2`` to ``p6``.

    ``MODEL.FPN.IN_FEATURES`` names the maps (all from stride 4 on if empty); from a plain ViT, levels of their strides are
    made. ``MODEL.FPN.NORM`` may be "LN" too, ViTDet's choice.
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
        top.in_feature = f"p{round(math.log2(last.stride))}"  # detectron2 takes it to be p5
    try:
        return FPN(bottom_up, names, options.OUT_CHANNELS, norm, top, options.FUSE_TYPE)
    except AssertionError as error:
        raise UsageError(f"MODEL.FPN.IN_FEATURES {names} of timm's {cfg.MODEL.TIMM.NAME}: {error}") from error


BUILDERS = frozenset(
    builder.__name__ for builder in (build_timm_backbone, build_timm_fpn_backbone, build_retinanet_timm_fpn_backbone)
)
