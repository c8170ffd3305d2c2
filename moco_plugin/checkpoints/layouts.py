"""The layouts of checkpoints: one row each, told apart by the names of the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from moco_plugin.checkpoints.load import File
from moco_plugin.checkpoints.metadata import (
    Hints,
    nothing,
    of_detectron2,
    of_lightly_train,
    of_mmpretrain,
    of_official_moco,
    of_official_moco_v3,
    of_ours,
    of_solo_learn,
    of_timm,
)
from moco_plugin.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How one framework names what it saves.

    Patterns match from the beginning of a tensor's name, after WHERE.

    Attributes:
        name: Whose layout it is.
        query: What stands before the names of the encoder that is trained.
        key: What stands before those of its momentum encoder; empty where the framework has none.
        others: Known to belong to no backbone: heads, queues, losses.
        mark: A name that must occur, where ``query`` alone does not tell.
        vit_small_heads: Attention heads of a ViT of width 384, which shapes do not tell; None: not known, timm's 6 are
            assumed and a note says so.
        small_stem_padding: Of the 3x3 stem for small images, which shapes do not tell.
        about: Collects what files of the layout say about themselves.
        framework: Whose networks hold weights under the encoder's names: "torchvision", "timm" or "detectron2".
        names_backbone: The file names its backbone; nothing else is tried.
        elsewhere: Tensors of the encoder that are not below ``query``; group 1 is the name within the encoder.
        head: What stands before the projection head's names, where ``{}`` is "q" or "k"; "" is within the encoder;
            None: heads are not read.
    """

    name: str
    query: str
    key: str = ""
    others: str = ""
    mark: str = ""
    vit_small_heads: int | None = None
    small_stem_padding: int = 1
    about: Callable[[File, Hints, Mapping[str, Tensor]], None] = nothing
    framework: str = "torchvision"
    names_backbone: bool = False
    elsewhere: str = ""
    head: str | None = None


# Where state dicts are in files, and what wrappers put before their names.
WHERE = r"(?:(?:state_dict|model|model_state_dict)\.)?(?:module\.)?"
_MOMENTUM = r"\S*(?:teacher|encoder_k|momentum|ema_|target|key_)\S*wrapped_model\."
_WRAPPED = r"\S*?wrapped_model\.(?:_model|_features)\."
_PART = r"(?:net\.|module\.|backbone\.|encoder\.)?"
_MM_PARTS = r"backbone|neck|head|encoder_[qk]|momentum_encoder|(?:target|online)_net|predictor|data_preprocessor"

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "LightlyTrain",
        rf"(?!{_MOMENTUM}){_WRAPPED}",
        rf"(?={_MOMENTUM}){_WRAPPED}",
        others=r"\S*(?:head|criterion|queue|predictor|wrapped_model\._pool)\b|\S*embed_head",
        about=of_lightly_train,
    ),
    Layout(
        "moco_plugin",
        r"method\.encoder_q\.backbone\.",
        r"method\.encoder_k\.backbone\.",
        others=r"method\.(?:encoder_[qk]\.head|predictor|queue)\.",
        about=of_ours,
        framework="timm",
        names_backbone=True,
        head="state_dict.method.encoder_{}.head.",
    ),
    Layout(
        "DenseCL", r"encoder_q\.0\.", r"encoder_k\.0\.", others=r"encoder_[qk]\.|queue2?(?:_ptr)?$", mark=r"queue2$"
    ),
    Layout(
        "PixPro",
        r"encoder\.",
        r"encoder_k\.",
        others=r"(?:projector|projector_k|value_transform|classifier|linear)\b",
        mark=r"projector_k\.|value_transform\.",
    ),
    Layout("BYOL", rf"online_encoder\.{_PART}", rf"target_encoder\.{_PART}", others=r"(?:online|target)_\w+\."),
    Layout("VICRegL", r"backbone\.", others=r"(?:maps_projector|projector|classifier)\.", mark=r"maps_projector\."),
    Layout("Barlow Twins", r"backbone\.", others=r"(?:projector|bn)\.", mark=r"bn\.running_mean$"),
    Layout("VICReg", r"backbone\.", others=r"projector\.", mark=r"model\.(?:module\.)?projector\."),
    Layout(
        "SwAV",
        r"(?=conv1\.weight$|padding\.)",
        others=r"(?:projection_head|prototypes)\.",
        mark=r"prototypes\.|projection_head\.",
    ),
    Layout("SimSiam", r"encoder\.", others=r"(?:encoder\.fc|predictor)\.", mark=r"encoder\.fc\.\d"),
    Layout(
        "MAE",
        r"(?=cls_token$)",
        others=r"decoder_\w+|mask_token$",
        mark=r"decoder_(?:embed|blocks)\.",
        vit_small_heads=6,
    ),
    Layout(
        "MMSelfSup/MMPreTrain",
        r"backbone\.|encoder_q\.0\.",
        r"momentum_encoder\.(?:module\.)?0\.",
        others=rf"(?:{_MM_PARTS})\.|queue",
        mark=r"momentum_encoder\.(?:module\.)?0\.",
        vit_small_heads=12,  # its MoCo v3
        about=of_mmpretrain,
    ),
    Layout(
        "MMSelfSup/MMPreTrain",
        r"backbone\.|encoder_q\.0\.(?=conv1|layer|patch_embed|cls_token)",
        r"(?:encoder_k|target_net)\.(?:module\.)?0\.",
        others=rf"(?:{_MM_PARTS})\.|queue",
        mark=r"(?:encoder_[qk]|target_net|online_net)\.(?:module\.)?0\.(?:conv1|layer|patch_embed|cls_token)"
        r"|neck\.|data_preprocessor\.|head\.(?:fc|layers)\.",
        vit_small_heads=6,
        about=of_mmpretrain,
    ),
    Layout(
        "official MoCo v1/v2",
        r"encoder_q\.",
        r"encoder_k\.",
        others=r"queue(?:_ptr)?$",
        about=of_official_moco,
        head="",
    ),
    Layout(
        "official MoCo v3",
        r"base_encoder\.",
        r"momentum_encoder\.",
        others=r"predictor\.",
        vit_small_heads=12,
        about=of_official_moco_v3,
        head="",
    ),
    Layout(
        "VISSL",
        r"classy_state_dict\.base_model\.model\.trunk\.(?:_feature_blocks\.)?",
        r"classy_state_dict\.loss\.moco_encoder\.(?:module\.)?trunk\.(?:_feature_blocks\.)?",
        others=r"classy_state_dict\.(?:base_model\.model\.heads|base_model\.meta|loss|hooks|task|train)",
    ),
    Layout("VISSL", r"(?:\S+\.)?_feature_blocks\.", others=r"(?:heads|loss)\."),
    Layout(
        "solo-learn",
        r"(?:backbone|encoder)\.",
        r"momentum_(?:backbone|encoder)\.",
        others=r"(?:momentum_)?(?:projector|classifier|predictor|head|prototypes)\b|\w*queue|knn|loss",
        mark=r"(?:momentum_)?(?:projector|classifier)\.",
        small_stem_padding=2,
        about=of_solo_learn,
    ),
    Layout(
        "lightly",
        r"(?:query|student|anchor|online)_backbone\.",
        r"(?:(?:key|teacher|target)_)?backbone\.",
        others=r"\w*(?:head|criterion|classifier|prototypes|memory_bank|predictor)\w*\.",
    ),
    Layout(
        "lightly",
        r"backbone\.",
        r"(?:backbone_momentum|(?:momentum|key|teacher|target)_backbone)\.",
        others=r"\w*(?:head|criterion|classifier|prototypes|memory_bank|predictor|decoder|mask_token)\w*",
        mark=r"backbone_momentum\.|(?:momentum|key|teacher|target)_backbone\."
        r"|\w*(?:projection|prediction)_head|criterion\.|online_classifier\.",
    ),
    Layout(
        "DINO",
        r"student\.(?:module\.)?backbone\.",
        r"teacher\.(?:module\.)?backbone\.",
        vit_small_heads=6,
        others=r"(?:student|teacher)\.(?:module\.)?head\.|dino_loss|ibot_loss",
    ),
    Layout(
        "detectron2",
        r"(?:backbone\.)?(?:bottom_up\.)?(?=stem\.conv1\.weight$)",
        others=r"backbone\.(?:fpn|top_block)|proposal_generator\.|roi_heads\.|sem_seg_head\.|head\.|pixel_|anchor|mask_head",
        about=of_detectron2,
        framework="detectron2",
        elsewhere=r"roi_heads\.(res5\.\d+\.\S+)",  # a C4 detector has its res5 in the heads
        head="",
    ),
    Layout(
        "Hugging Face",
        r"(?:vit\.|resnet\.)?(?=embeddings\.cls_token$|embedder\.embedder\.convolution\.weight$)",
        others=r"(?:vit\.|resnet\.)?pooler\.|decoder\.",
    ),
    Layout(
        "timm",
        r"(?:state_dict|model)\.(?:module\.)?",
        r"(?:state_dict_ema|model_ema)\.(?:module\.)?",
        mark=r"(?:state_dict_ema|model_ema)\.",
        about=of_timm,
        framework="timm",
    ),
)
# A network's own names, in which one of several frameworks saves it.
PLAIN = Layout("timm", "", about=of_timm, framework="timm")
# Names that occur once in the networks that are known by their shapes: what stands before is the prefix.
_ANCHOR = re.compile(r"(\S*?)(?<![^.])(?:conv1|stem\.conv1|patch_embed\.proj(?:ection)?(?:\.0)?|conv_proj|0)\.weight$")
_BLOCK = re.compile(r"(?<![^.])(?:layer\d|layers\.\d|blocks\.\d|encoder\.layers|\d+\.\d)")
# Classifiers, projection heads and what only pre-training needs, within an encoder.
HEADS = re.compile(r"(?:fc|head|heads|linear|classifier|pre_logits|projector|mlp_head)\.|mask_token$")


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
        UserError: Several networks are in the file, and no layout tells which is which.
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
            "layout tells which is the trained one; name one with --prefix"
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
