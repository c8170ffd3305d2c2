"""Reading of checkpoint files of any known layout, recognized by content, without running code."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from moco_plugin.backbones import input_channels
from moco_plugin.checkpoints.layouts import FOREIGN, LAYOUTS, PLAIN, WHERE, Layout
from moco_plugin.checkpoints.load import File, Mismatch, load, load_file, named_tensors
from moco_plugin.checkpoints.metadata import IMAGENET_VIEW, claimed_architecture, hints
from moco_plugin.checkpoints.networks import find_backbone, tensors_of
from moco_plugin.checkpoints.released import resolve
from moco_plugin.data.normalize import View
from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.files import sha256

__all__ = ["Checkpoint", "load_file", "read_checkpoint"]

# Buffers that a network computes itself, and mask tokens, which only pre-training uses.
HARMLESS = re.compile(r"num_batches_tracked$|relative_position_index$|attn_mask$|mask_token$|rope|inv_freq")
KNOWN = (
    "a checkpoint of this project, the released MoCo code, lightly, LightlyTrain, solo-learn, MMSelfSup, MMPreTrain, "
    "VISSL, DenseCL, PixPro, BYOL, VICReg, VICRegL, Barlow Twins, SwAV, SimSiam, DINO or MAE, or weights in the names of "
    "timm, torchvision, Hugging Face or detectron2"
)


# Names that occur once in the networks that are known by their shapes: what stands before is the prefix.
_ANCHOR = re.compile(r"(\S*?)(?<![^.])(?:conv1|stem\.conv1|patch_embed\.proj(?:ection)?(?:\.0)?|conv_proj|0)\.weight$")
_BLOCK = re.compile(r"(?<![^.])(?:layer\d|layers\.\d|blocks\.\d|encoder\.layers|\d+\.\d)")
# Classifiers, projection heads and what only pre-training needs, within an encoder.
HEADS = re.compile(r"(?:fc|head|heads|linear|classifier|pre_logits|projector|mlp_head)\.|mask_token$")
_QUERY = re.compile(r"(.*\.attention\.attention\.)query\.(weight|bias)$")
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")


@dataclass
class Checkpoint:
    """A checkpoint of any layout after reading.

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
        notes: Assumptions about what the file does not say.
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
        architecture: timm's name of the backbone, for files that do not say it. ResNets and ViTs are known by their
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
        return next(iter(tensors_of(name, {}))) if name else None

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
    if architecture is not None:
        about.architecture, about.arguments = architecture, arguments
    try:
        backbone = find_backbone(found.layout, about, state, file.size, named=architecture is not None)
    except Mismatch as error:
        if architecture is not None or found.layout.names_backbone or "--architecture" in str(error):
            raise
        raise Mismatch(f"{error}; if it is another network, give --architecture with timm's name of it") from error
    head_names = [name for name in state if name not in backbone.used and HEADS.match(name)]
    unused = unused_names(
        tensors, found, before, (full[n] for n in full if renamed[n] in backbone.used or renamed[n] in head_names)
    )
    if inner := [name for name in unused if name in set(full.values()) and not HARMLESS.search(name)]:
        raise UserError(
            f"{len(inner)} tensors of the encoder were not read, {inner[0][:80]} first, so the network would compute "
            "something else; give --architecture with timm's name of the network, and its arguments"
        )
    framework = found.layout.framework
    if found.layout is PLAIN:
        layout = _whose_names(file, backbone.network, full, architecture)
        framework = "timm" if layout == "timm" else "torchvision"
    side = getattr(getattr(backbone.network, "patch_embed", None), "img_size", None)
    if isinstance(side, tuple) and side[0] == side[1]:
        about.view.image_size = side[0]
    channels = input_channels(backbone.network)
    if channels != about.view.channels:
        about.view = replace(about.view, mean=[0.5] * channels, std=[0.25] * channels)
        about.notes.append(f"mean 0.5 and std 0.25 are taken for its {channels} channels, which the file does not say")
    return Checkpoint(
        file.path,
        layout,
        backbone.architecture,
        backbone.network,
        backbone.untrained,
        framework=framework,
        original={name: tensors[full[name]] for name in full},
        head=_head(found.layout.head, encoder, tensors, {n: state[n] for n in head_names}),
        view=about.view,
        epoch=about.epoch,
        method=about.method,
        sha256=sha256(file.weights),
        encoder=encoder,
        encoders=("query", "key") if found.key is not None else ("query",),
        arguments=backbone.arguments,
        unused=unused,
        notes=about.notes,
    )


@dataclass(frozen=True)
class Found:
    """Which layout a file has, and what stands before the names of its encoders; None: it has no key encoder."""

    layout: Layout
    query: str
    key: str | None


def find_layout(names: Mapping[str, Tensor], first_name: Callable[[], str | None] = lambda: None) -> Found | None:
    """Return the layout of a file whose tensors have these names; None if no layout fits.

    Args:
        names: The tensors.
        first_name: Says the name of a tensor of the network that is looked for, where it is known; only asked when
            no framework's layout fits.

    Raises:
        UserError: Several networks are in the file, and no layout says which is which.
    """
    for layout in LAYOUTS:
        if layout.mark and not _first(names, layout.mark):
            continue
        query = _first(names, layout.query)
        if query is not None:
            key = _first(names, layout.key) if layout.key else None
            return Found(layout, query, key if key != query else None)
    prefixes = []
    first = first_name()
    if first is not None:
        prefixes = [name[: -len(first)] for name in names if f".{name}".endswith(f".{first}")]
    if not prefixes:
        with_blocks = {name[: m.start()] for name in names for m in _BLOCK.finditer(name)}
        anchors = [m[1] for name in names if (m := _ANCHOR.match(name)) and names[name].ndim == 4]
        prefixes = [prefix for prefix in anchors if prefix in with_blocks]
    known = set(prefixes)  # not those within another, such as a block's own conv1
    prefixes = [prefix for prefix in prefixes if not known & _outer(prefix)]
    prefixes = list(dict.fromkeys(prefixes))
    if len(prefixes) > 1:
        raise UserError(
            f"several networks are in the file, under {', '.join(repr(p[:60]) for p in prefixes[:4])}, and no known "
            "layout says which is the trained one; name one with --prefix"
        )
    return Found(PLAIN, prefixes[0], None) if prefixes else None


def unused_names(names: Iterable[str], found: Found, prefix: str, used: Iterable[str]) -> list[str]:
    """List the tensors that were neither used nor are known to belong to another encoder, a head or a queue.

    Args:
        names: All tensors of the file.
        found: Its layout.
        prefix: Of the encoder that was read.
        used: Names of the backbone and of heads within the encoder.
    """
    patterns = [HEADS.pattern, *filter(None, [found.layout.others])]
    others = re.compile(WHERE + f"(?:{'|'.join(patterns)})")
    other_encoders = tuple(p for p in (found.query, found.key) if p is not None and p != prefix)
    whole = re.fullmatch(WHERE, prefix)  # then the others are below the prefix too
    used = set(used)

    def is_known(name: str) -> bool:
        if name.startswith(prefix) and not whole:
            return False
        return bool(others.match(name)) or name.startswith(other_encoders)

    return [name for name in names if name not in used and not is_known(name)]


def _outer(prefix: str) -> set[str]:
    """Return the prefixes that ``prefix`` is in: "", "a." for "a.b."."""
    return {prefix[: m.end()] for m in re.finditer(r"\.", prefix[:-1])} | ({""} if prefix else set())


def _first(names: Iterable[str], pattern: str) -> str | None:
    """Return what the pattern matches at the beginning of a name, after WHERE, with WHERE; None if nowhere."""
    compiled = re.compile(WHERE + f"(?:{pattern})")
    return next((m[0] for name in names if (m := compiled.match(name))), None)


def encoder_names(names: Iterable[str], found: Found, prefix: str) -> dict[str, str]:
    """Return the full name of each tensor of the encoder below ``prefix``, by its name within the encoder."""
    names = list(names)
    inner = {name[len(prefix) :]: name for name in names if name.startswith(prefix)}
    if found.layout.elsewhere:
        elsewhere = re.compile(WHERE + found.layout.elsewhere)
        inner |= {m[1]: name for name in names if (m := elsewhere.match(name))}
    return inner


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which transformers' queries, keys and values are one tensor, ``qkv``, as in timm."""
    found = dict(state)
    for name in state:
        if match := _QUERY.match(name):
            parts = [f"{match[1]}{part}.{match[2]}" for part in ("query", "key", "value")]
            if all(part in found for part in parts):
                found[f"{match[1]}qkv.{match[2]}"] = torch.cat([found.pop(part) for part in parts])
    return found


def timm_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return timm's name for each name of an encoder's state dict; its own where it is not foreign."""
    if "cls_token" in state and any(
        _CHUNK.match(name) for name in state
    ):  # DINOv2's blocks in chunks, each padded with identities
        return {name: _CHUNK.sub(r"blocks.\1.", name).replace("register_tokens", "reg_token") for name in state}
    prefix = "vit." if any(name.startswith("vit.") for name in state) else ""  # lightly's MaskedVisionTransformerTIMM
    for mark, rename in FOREIGN:
        if prefix + mark in state:
            return {name: rename(name.removeprefix(prefix)) for name in state}
    return {name: name.removeprefix(prefix).replace("register_tokens", "reg_token") for name in state}


def _whose_names(file: File, network: nn.Module, names: Mapping[str, str], architecture: str | None) -> str:
    """Whose names a plain state dict has; a ResNet's are the same in torchvision and timm."""
    if "patch_embed.projection.weight" in names:
        return "MMSelfSup/MMPreTrain"
    said = architecture or file.config or file.metadata.get("target") in ("timm", "lightly-train")
    resnet_of_both = isinstance(network, ResNet) and not said
    return "torchvision" if resnet_of_both or "conv_proj.weight" in names else "timm"


def _head(
    before: str | None, encoder: str, tensors: Mapping[str, Tensor], within: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the projection head where the layout keeps one with its encoder; see ``Layout.head``."""
    if before:
        prefix = before.format(encoder[0])
        within = {f"fc.{n[len(prefix) :]}": value for n, value in tensors.items() if n.startswith(prefix)}
    return {} if before is None else {name: value.clone() for name, value in within.items()}
