"""Reading of checkpoint files of any known layout, recognized by content, without running code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from moco_plugin.backbones import create_backbone, input_channels
from moco_plugin.checkpoints import resnet, vit
from moco_plugin.checkpoints.layouts import HEADS, PLAIN, Found, encoder_names, find_layout, unused_names
from moco_plugin.checkpoints.load import File, load, load_file, named_tensors
from moco_plugin.checkpoints.metadata import IMAGENET_VIEW, Hints, claimed_architecture, hints
from moco_plugin.checkpoints.networks import Mismatch, fit
from moco_plugin.checkpoints.released import resolve
from moco_plugin.checkpoints.renaming import merged, timm_names
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.files import sha256

__all__ = ["Checkpoint", "load_file", "read_checkpoint"]

# Buffers that a network computes by itself, and what is masked in pre-training alone.
HARMLESS = re.compile(r"num_batches_tracked$|relative_position_index$|attn_mask$|mask_token$|rope|inv_freq")
KNOWN = (
    "a checkpoint of this project, the released MoCo code, lightly, LightlyTrain, solo-learn, MMSelfSup, MMPreTrain, "
    "VISSL, DenseCL, PixPro, BYOL, VICReg, VICRegL, Barlow Twins, SwAV, SimSiam, DINO or MAE, or weights in the names of "
    "timm, torchvision, Hugging Face or detectron2"
)


@dataclass
class Checkpoint:
    """What every layout is read into.

    Attributes:
        path: The file, or the folder of timm's.
        layout: Whose layout it is.
        architecture: Name of the backbone.
        backbone: The timm network, in eval mode, with the weights loaded, without a head.
        framework: Whose networks hold the weights under the names in the file: "torchvision", "timm" or "detectron2".
        original: The encoder's tensors under their names in the file.
        untrained: Builds the same network with random weights, from the run's seed where the file has it.
        head: The projection head's weights under the names that official checkpoints give them (fc...).
        view: How images are shown to the backbone.
        epoch: Epochs trained, where the file says.
        method: The method's name, where the file says.
        sha256: Of the file.
        encoder: Which encoder was read: "query" or "key".
        encoders: Those that the file holds.
        arguments: By which the backbone differs from timm's ``architecture``.
        unused: Names of tensors that were neither used nor are known to be another encoder's, a head's or a queue's.
        notes: What the file does not tell and was taken to be so.
    """

    path: Path
    layout: str
    architecture: str
    backbone: nn.Module
    untrained: Callable[[], nn.Module]
    framework: str = "timm"
    original: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    view: View = field(default_factory=lambda: IMAGENET_VIEW)
    epoch: int | None = None
    method: str | None = None
    sha256: str = ""
    encoder: str = "query"
    encoders: tuple[str, ...] = ("query",)
    arguments: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Network:
    """A backbone with its weights, and how it came about."""

    architecture: str
    arguments: dict[str, Any]
    untrained: Callable[[], nn.Module]
    backbone: nn.Module


def read_checkpoint(
    path: str | Path,
    encoder: str = "query",
    architecture: str | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    prefix: str | None = None,
) -> Checkpoint:
    """Read a checkpoint of any known layout.

    Args:
        path: A file, the folder that ``timm.create_model('local-dir:...')`` opens, or the name of a released checkpoint.
        encoder: "query", the encoder that is trained, or "key", its momentum encoder.
        architecture: timm's name of the backbone, for files that do not tell it. ResNets and ViTs are known by their
            shapes, and some layouts name theirs.
        arguments: Of ``create_backbone``, for ``architecture``, such as ``{"num_heads": 12}``.
        prefix: What stands before the names of the encoder, for files of several networks in which none is known.

    Raises:
        UserError: Not a checkpoint, unsafe, of no known layout, or with weights missing.
        UsageError: timm has no such architecture.
    """
    if architecture is not None and not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models()) or "; timm.list_models() lists them"
        raise UsageError(f"unknown architecture {architecture!r}: timm has no model of that name{hint}")
    file = load(resolve(path))
    try:
        return _read(file, encoder, architecture, dict(arguments or {}), prefix)
    except UserError as error:
        if str(file.path) in str(error):
            raise
        raise type(error)(f"{file.path}: {error}") from error
    except Exception as error:  # what hostile numbers and shapes raise in the libraries below
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{file.path} does not hold the weights of a network ({reason})") from error


def _read(
    file: File, encoder: str, architecture: str | None, arguments: dict[str, Any], prefix: str | None
) -> Checkpoint:
    tensors = merged(named_tensors(file))
    if prefix is not None:
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise UserError(f"{file.path} has no tensor whose name starts with {prefix!r}")

    def first_name() -> str | None:
        name = architecture or claimed_architecture(file)
        return next(iter(_skeleton(name, {}))) if name else None

    found = find_layout(tensors, first_name)
    if found is None:
        keys = ", ".join(str(key)[:60] for key in list(file.content)[:4])
        raise UserError(f"{file.path} is of no known layout (its first keys: {keys}); expected {KNOWN}")
    layout = found.layout.name
    before = found.query if encoder == "query" else found.key
    if before is None:
        raise UserError(f"{file.path} ({layout}) holds one encoder only; leave out --encoder key")
    about = hints(file, found.layout.about, tensors)
    full = encoder_names(tensors, found, before)
    renamed = timm_names({name: tensors[full[name]] for name in full})
    state = {renamed[name]: tensors[full[name]] for name in full}
    try:
        network, used = _network(file, found, about, state, architecture, arguments)
    except Mismatch as error:
        if architecture is not None or found.layout.names_backbone or "--architecture" in str(error):
            raise
        raise Mismatch(f"{error}; if it is another network, give --architecture with timm's name of it") from error
    head_names = [name for name in state if name not in used and HEADS.match(name)]
    unused = unused_names(
        tensors, found, before, (full[n] for n in full if renamed[n] in used or renamed[n] in head_names)
    )
    if inner := [name for name in unused if name in set(full.values()) and not HARMLESS.search(name)]:
        raise UserError(
            f"{len(inner)} tensors of the encoder were not read, {inner[0][:80]} first, so the network would compute "
            "something else; give --architecture with timm's name of the network, and its arguments"
        )
    framework = found.layout.framework
    if found.layout is PLAIN:
        layout = _whose_names(file, network, full, architecture)
        framework = "timm" if layout == "timm" else "torchvision"
    side = getattr(getattr(network.backbone, "patch_embed", None), "img_size", None)
    if isinstance(side, tuple) and side[0] == side[1]:
        about.view.image_size = side[0]
    channels = input_channels(network.backbone)
    if channels != about.view.channels:
        about.view = replace(about.view, mean=[0.5] * channels, std=[0.25] * channels)
        about.notes.append(f"mean 0.5 and std 0.25 are taken for its {channels} channels, which the file does not tell")
    return Checkpoint(
        file.path,
        layout,
        network.architecture,
        network.backbone,
        network.untrained,
        framework=framework,
        original={name: tensors[full[name]] for name in full},
        head=_head(found.layout.head, encoder, tensors, {n: state[n] for n in head_names}),
        view=about.view,
        epoch=about.epoch,
        method=about.method,
        sha256=sha256(file.weights),
        encoder=encoder,
        encoders=("query", "key") if found.key is not None else ("query",),
        arguments=network.arguments,
        unused=unused,
        notes=about.notes,
    )


def _network(
    file: File,
    found: Found,
    about: Hints,
    state: Mapping[str, Tensor],
    architecture: str | None,
    arguments: dict[str, Any],
) -> tuple[_Network, set[str]]:
    """Return the backbone and the names of the weights in it."""
    size = file.size
    if architecture is not None:
        about.architecture, about.arguments = architecture, arguments
    mismatch: Mismatch | None = None
    if about.architecture is not None and timm.is_model(about.architecture):
        try:
            return _named(about, state, size)
        except Mismatch as error:
            if architecture is not None or found.layout.names_backbone:
                raise
            mismatch = error  # a ResNet or ViT that was changed: its shapes tell
    elif found.layout.names_backbone:
        raise UserError(f"its config names the backbone {str(about.architecture)[:60]!r}, which timm does not have")
    for roots, of_shapes in ((resnet.ROOTS, _resnet), (vit.ROOTS, _vit)):
        own = {name: value for name, value in state.items() if name.partition(".")[0] in roots}
        if roots[0] + ".weight" in own or "pos_embed" in own or "patch_embed.proj.weight" in own:
            _check_size(own, size)
            return of_shapes(own, found, about), set(own)
    raise mismatch or Mismatch(
        f"the weights are not those of a plain ResNet or ViT (first keys: {', '.join(n[:60] for n in list(state)[:3])}), "
        "and the file does not name another; give --architecture with timm's name of it"
    )


def _named(about: Hints, state: Mapping[str, Tensor], size: int) -> tuple[_Network, set[str]]:
    """Return the network that the file or the user names; tensors of other parts are left out."""
    name, arguments, seed = str(about.architecture), about.arguments, about.seed

    def untrained() -> nn.Module:
        if seed is not None:
            torch.manual_seed(seed)
        return create_backbone(name, **arguments).eval()

    expected = _skeleton(name, arguments)
    roots = {n.partition(".")[0] for n in expected}
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "fc"
    classifiers = tuple(f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier))
    own = {
        n: value
        for n, value in state.items()
        if n in expected or (n.partition(".")[0] in roots and not n.startswith(classifiers))
    }
    _check_size(own, size, tied=True)
    return _Network(name, arguments, untrained, fit(untrained, own, name)), set(own)


def _skeleton(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of timm's network, without memory."""
    try:
        with torch.device("meta"):
            return create_backbone(name, **arguments).state_dict()
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError, KeyError) as error:
        raise Mismatch(f"timm cannot build {name} as the file says: {' '.join(str(error).split())[:200]}") from error


def _resnet(state: Mapping[str, Tensor], found: Found, about: Hints) -> _Network:
    name, untrained, backbone = resnet.resnet_from_state(state, found.layout.small_stem_padding)
    if isinstance(backbone.maxpool, nn.Identity):
        about.notes.append("taken to have stride 1 and no max-pool behind its 3x3 stem, which the file does not tell")
    return _Network(name, {}, untrained, backbone)


def _vit(state: Mapping[str, Tensor], found: Found, about: Hints) -> _Network:
    small = "pos_embed" in state and state["pos_embed"].shape[-1:] == (384,)
    heads = about.heads or (found.layout.vit_small_heads if small else None)
    network = _Network(*vit.vit_from_state(vit.fold_class_position(state), heads))
    if small and heads is None:
        about.notes.append(
            "taken to have 6 attention heads, as timm's vit_small, which the file does not tell; MoCo v3's ViT-S has 12: "
            "--architecture vit_small_patch16_224 num_heads=12"
        )
    return network


def _check_size(state: Mapping[str, Tensor], size: int, tied: bool = False) -> None:
    """Raise UserError for weights that share memory, which could make a network that is larger than the file.

    Args:
        state: The weights.
        size: Bytes of the file.
        tied: Count tensors that are one and the same once: layers of a known network may be tied.
    """
    own = {(v.data_ptr(), v.shape) if tied else name: v.nbytes for name, v in state.items()}
    total = sum(own.values())
    if total > size:
        raise UserError(
            f"its weights claim {total} bytes in a file of {size}; expected weights of their own for each layer"
        )


def _whose_names(file: File, network: _Network, names: Mapping[str, str], architecture: str | None) -> str:
    """Whose names a plain state dict has; a ResNet's are the same in torchvision and timm."""
    if "patch_embed.projection.weight" in names:
        return "MMSelfSup/MMPreTrain"
    said = architecture or file.config or file.metadata.get("target") in ("timm", "lightly-train")
    resnet_of_both = isinstance(network.backbone, ResNet) and not said
    return "torchvision" if resnet_of_both or "conv_proj.weight" in names else "timm"


def _head(
    before: str | None, encoder: str, tensors: Mapping[str, Tensor], within: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the projection head where the layout keeps one with its encoder; see ``Layout.head``."""
    if before:
        prefix = before.format(encoder[0])
        within = {f"fc.{n[len(prefix) :]}": value for n, value in tensors.items() if n.startswith(prefix)}
    return {} if before is None else {name: value.clone() for name, value in within.items()}
