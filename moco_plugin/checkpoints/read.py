"""Reading of checkpoint files, whose layout is recognized by content."""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from moco_plugin.backbones import input_channels
from moco_plugin.checkpoints.fill import Unfit
from moco_plugin.checkpoints.layouts import FOREIGN, LAYOUTS, PLAIN, WHERE, Layout
from moco_plugin.checkpoints.metadata import IMAGENET_VIEW, Claims, claimed_architecture, collect_claims
from moco_plugin.checkpoints.networks import find_backbone, tensors_of
from moco_plugin.checkpoints.released import resolve
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError, UserError, did_you_mean, reason
from moco_plugin.files import sha256
from moco_plugin.weight_files.load import WeightFile, load_file, named_tensors

KNOWN = (
    "a checkpoint of this project, the released MoCo code, lightly, LightlyTrain, solo-learn, MMSelfSup, MMPreTrain, "
    "VISSL, DenseCL, PixPro, BYOL, VICReg, VICRegL, Barlow Twins, SwAV, SimSiam, DINO or MAE, or weights in the names of "
    "timm, torchvision, Hugging Face or detectron2"
)


@dataclass
class Checkpoint:
    """A checkpoint of any layout after reading.

    Attributes:
        path: The file, or the folder of timm's.
        layout: Name of its layout.
        architecture: Name of the backbone.
        backbone: The timm network, in eval mode, with the weights loaded, without a head.
        untrained: Builds the same network with random weights, from the run's seed if the file has it.
        framework: Framework of the names in the file: "torchvision", "timm" or "detectron2".
        original: The encoder's tensors under their names in the file.
        head: The projection head's weights under the names of official checkpoints (fc...).
        view: Preprocessing of images.
        epoch: Epochs trained, if known.
        method: Name of the method, if known.
        sha256: SHA-256 of the file.
        encoder: The encoder that was read: "query" or "key".
        encoders: The encoders in the file.
        arguments: Arguments of ``create_backbone`` by which the backbone differs from timm's ``architecture``.
        unused: Tensors that were not read and are not known to belong to another encoder, a head or a queue.
        notes: Assumptions about missing metadata.
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
        architecture: timm's name of the backbone, for files without it. ResNets and ViTs are recognized by their
            shapes, and some layouts name theirs.
        arguments: Arguments of ``create_backbone`` for ``architecture``, such as ``{"num_heads": 12}``.
        prefix: Prefix of the encoder's names, for files of several unknown networks.

    Raises:
        UserError: Not a checkpoint, unsafe, of no known layout, or with weights missing.
        UsageError: timm has no such architecture.
    """
    if architecture is not None and not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models()) or "; timm.list_models() lists them"
        raise UsageError(f"unknown architecture {architecture!r}: timm has no model of that name{hint}")
    file = load_file(resolve(path))
    try:
        return _read(file, encoder, architecture, dict(arguments or {}), prefix)
    except (Unfit, UsageError) as error:  # neither names the file
        raise type(error)(f"{file.path}: {error}") from error
    except UserError:
        raise
    except Exception as error:  # what hostile numbers and shapes raise in the libraries below
        said = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"{file.path} does not contain the weights of a network ({said})") from error


def _read(
    file: WeightFile, encoder: str, architecture: str | None, arguments: dict[str, Any], prefix: str | None
) -> Checkpoint:
    tensors = merged(named_tensors(file))
    if prefix is not None:
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise UserError(f"{file.path} has no tensor whose name starts with {prefix!r}")
    location = locate(tensors, architecture or claimed_architecture(file))
    if location is None:
        keys = ", ".join(key[:60] if isinstance(key, str) else type(key).__name__ for key in list(file.content)[:4])
        raise UserError(f"{file.path} has no known layout (its first keys: {keys}); expected {KNOWN}")
    layout, before = location.layout, location.query if encoder == "query" else location.key
    if before is None:
        raise UserError(f"{file.path} ({layout.name}) contains only one encoder; leave out --encoder key")
    claims = collect_claims(file, layout.collector, tensors)
    if architecture is not None:
        claims.architecture, claims.arguments = architecture, arguments
    full_names = {name.removeprefix(before): name for name in tensors if name.startswith(before)}
    if layout.elsewhere:
        elsewhere = re.compile(WHERE + layout.elsewhere)
        full_names |= {match[1]: name for name in tensors if (match := elsewhere.match(name))}
    renamed = timm_names(full_names)
    names = {renamed[name]: full_names[name] for name in full_names}
    state = {name: tensors[full] for name, full in names.items()}
    backbone = find_backbone(layout, claims, state, file.size, named=architecture is not None)
    unused = account_for(tensors, location, before, names, backbone.used)
    _show_as_the_network_is(claims, backbone.network)
    name, framework = layout.name, layout.framework
    if layout is PLAIN:
        name = _whose_names(file, backbone.network, full_names, architecture)
        framework = "timm" if name == "timm" else "torchvision"
    return Checkpoint(
        file.path,
        name,
        backbone.architecture,
        backbone.network,
        backbone.untrained,
        framework=framework,
        original={name: tensors[full] for name, full in full_names.items()},
        head=_head(layout, encoder, tensors, {name: state[name] for name in state.keys() - backbone.used}),
        view=claims.view,
        epoch=claims.epoch,
        method=claims.method,
        sha256=sha256(file.weights),
        encoder=encoder,
        encoders=("query", "key") if location.key is not None else ("query",),
        arguments=backbone.arguments,
        unused=unused,
        notes=claims.notes,
    )


# Names that occur once in the networks that are recognized by their shapes; the group is the prefix.
STEM = re.compile(r"(\S*?)(?<![^.])(?:conv1|stem\.conv1|patch_embed\.proj(?:ection)?(?:\.0)?|conv_proj|0)\.weight$")
BLOCK = re.compile(r"(?<![^.])(?:layer\d|layers\.\d|blocks\.\d|encoder\.layers|\d+\.\d)")


@dataclass(frozen=True)
class Location:
    """The layout of a file, and the prefixes of its encoders' names; ``key`` is None without a key encoder."""

    layout: Layout
    query: str
    key: str | None


def locate(tensors: Mapping[str, Tensor], architecture: str | None = None) -> Location | None:
    """Find the encoders among the tensors of a file; return None if no layout fits.

    Args:
        tensors: By their full names.
        architecture: timm's name of the network to find if no framework's layout fits; by default a ResNet or ViT.

    Raises:
        Unfit: Several networks are in the file, and no layout identifies them.
    """
    for layout in LAYOUTS:
        if layout.mark and not _first(tensors, layout.mark):
            continue
        query = _first(tensors, layout.query)
        if query is not None:
            key = _first(tensors, layout.key) if layout.key else None
            return Location(layout, query, key if key != query else None)
    prefixes: list[str] = []
    if architecture is not None:
        first = next(iter(tensors_of(architecture, {})))
        prefixes = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
    if not prefixes:
        with_blocks = {name[: match.start()] for name in tensors for match in BLOCK.finditer(name)}
        stems = [match[1] for name in tensors if (match := STEM.match(name)) and tensors[name].ndim == 4]
        prefixes = [prefix for prefix in stems if prefix in with_blocks]
    outermost: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not outermost or not prefix.startswith(outermost[-1]):  # not within another, such as a block's own conv1
            outermost.append(prefix)
    if len(outermost) > 1:
        raise Unfit(
            f"several networks are in the file, under {', '.join(repr(p[:60]) for p in outermost[:4])}, and no known "
            "layout identifies the trained one; name it with --prefix"
        )
    return Location(PLAIN, outermost[0], None) if outermost else None


# Classifiers, projection heads and mask tokens within an encoder.
HEADS = re.compile(r"(?:fc|head|heads|linear|classifier|pre_logits|projector|mlp_head)\.|mask_token$")
# Buffers that a network computes itself, and mask tokens, which are only used in pre-training.
HARMLESS = re.compile(r"num_batches_tracked$|relative_position_index$|attn_mask$|mask_token$|rope|inv_freq")


def account_for(
    tensors: Mapping[str, Tensor], location: Location, prefix: str, names: Mapping[str, str], used: Container[str]
) -> list[str]:
    """Return the tensors that were not used and are not known to belong to another encoder, a head or a queue.

    Args:
        tensors: All tensors of the file.
        location: Its layout and encoders.
        prefix: Prefix of the encoder that was read.
        names: The full names of that encoder's tensors by their names in timm.
        used: Names in timm of the backbone's tensors.

    Raises:
        Unfit: A tensor of the encoder was not used, so the network would compute something else.
    """
    others = "|".join(filter(None, [HEADS.pattern, location.layout.others]))
    known = re.compile(WHERE + f"(?:{others})")
    other_encoders = tuple(p for p in (location.query, location.key) if p is not None and p != prefix)
    is_read = {full for name, full in names.items() if name in used or HEADS.match(name)}
    others_have_prefix = re.fullmatch(WHERE, prefix)
    unused = []
    for name in tensors:
        of_this_encoder = name.startswith(prefix) and not others_have_prefix
        is_known = not of_this_encoder and (known.match(name) or name.startswith(other_encoders))
        if name not in is_read and not is_known:
            unused.append(name)
    of_encoder = set(names.values())
    if inner := [name for name in unused if name in of_encoder and not HARMLESS.search(name)]:
        raise Unfit(
            f"{len(inner)} tensors of the encoder were not read, {inner[0][:80]} first, so the network would compute "
            "something else; give --architecture with timm's name of the network, and its arguments"
        )
    return unused


def _first(names: Iterable[str], pattern: str) -> str | None:
    """Return the first match of WHERE and a pattern at the beginning of a name, or None."""
    compiled = re.compile(WHERE + f"(?:{pattern})")
    return next((match[0] for name in names if (match := compiled.match(name))), None)


# Tensors of transformers that are one tensor in timm, in its order.
APART = (
    (re.compile(r"(.*\.attention\.)query\.(weight|bias)$"), ("query", "key", "value"), "qkv"),
    (re.compile(r"(.*\.attention\.)q_proj\.(weight|bias)$"), ("q_proj", "k_proj", "v_proj"), "qkv"),
    (re.compile(r"(.*\.mlp\.)gate_proj\.(weight|bias)$"), ("gate_proj", "up_proj"), "fc1"),
)


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in which transformers' queries, keys and values are one tensor, ``qkv``, as in timm."""
    result = dict(tensors)
    for name in tensors:
        for pattern, names, whole in APART:
            if match := pattern.match(name):
                parts = [name.replace(names[0], part) for part in names]
                if all(part in result for part in parts):
                    result[f"{match[1]}{whole}.{match[2]}"] = torch.cat([result.pop(part) for part in parts])
    return result


CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")  # DINOv2's blocks in chunks, each padded with identities


def timm_names(names: Iterable[str]) -> dict[str, str]:
    """Return timm's name for each name within an encoder; its own where it is not foreign."""
    names = list(names)
    if "cls_token" in names and any(CHUNK.match(name) for name in names):
        return {name: CHUNK.sub(r"blocks.\1.", name).replace("register_tokens", "reg_token") for name in names}
    prefix = "vit." if any(name.startswith("vit.") for name in names) else ""  # lightly's MaskedVisionTransformerTIMM
    foreign = (rename for mark, rename in FOREIGN.items() if prefix + mark in names)
    rename = next(foreign, lambda name: name.replace("register_tokens", "reg_token"))
    return {name: rename(name.removeprefix(prefix)) for name in names}


def _whose_names(file: WeightFile, network: nn.Module, names: Container[str], architecture: str | None) -> str:
    """Return the framework of the names in a plain state dict; ResNets have the same in torchvision and timm."""
    if "patch_embed.projection.weight" in names:
        return "MMSelfSup/MMPreTrain"
    said = architecture or file.config or file.metadata.get("target") in ("timm", "lightly-train")
    resnet_of_both = isinstance(network, ResNet) and not said
    return "torchvision" if resnet_of_both or "conv_proj.weight" in names else "timm"


def _show_as_the_network_is(claims: Claims, network: nn.Module) -> None:
    """Set the view's image size and channels to those of the network."""
    side = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if isinstance(side, tuple) and side[0] == side[1]:
        claims.view.image_size = side[0]
    channels = input_channels(network)
    if channels != claims.view.channels:
        claims.view = replace(claims.view, mean=[0.5] * channels, std=[0.25] * channels)
        claims.notes.append(f"mean 0.5 and std 0.25 are taken for its {channels} channels, which the file does not say")


def _head(
    layout: Layout, encoder: str, tensors: Mapping[str, Tensor], within: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the projection head, if the layout has one; see ``Layout.head``."""
    if layout.head is None:
        return {}
    prefix = layout.head.format(encoder[0])
    head = {f"fc.{n.removeprefix(prefix)}": value for n, value in tensors.items() if n.startswith(prefix)}
    head = head if prefix else {name: value for name, value in within.items() if HEADS.match(name)}
    return {name: head[name].clone() for name in sorted(head)}
