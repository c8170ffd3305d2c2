"""The layouts of checkpoints (layouts.yaml), recognized by the names of the tensors."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moco_plugin.checkpoints import metadata
from moco_plugin.safe_yaml import read_yaml_file


@dataclass(frozen=True)
class Layout:
    """The names in one framework's checkpoints.

    Patterns match from the beginning of a tensor's name, after WHERE.

    Attributes:
        name: Name of the framework.
        query: Prefix of the names of the encoder that is trained.
        key: Prefix of those of its momentum encoder; empty if the framework has none.
        others: Names that belong to no backbone: heads, queues, losses.
        mark: A name that must occur, if ``query`` is ambiguous.
        vit_small_heads: Attention heads of a ViT of width 384, which the shapes do not determine; None: timm's 6 are
            assumed, with a note.
        small_stem_padding: Padding of the 3x3 stem for small images, which the shapes do not determine.
        collect: The function of ``metadata`` that collects the layout's metadata, without ``of_``.
        framework: Framework of the encoder's names: "torchvision", "timm" or "detectron2".
        names_backbone: The file names its backbone; nothing else is tried.
        elsewhere: Tensors of the encoder without the prefix; group 1 is the name within the encoder.
        head: Prefix of the projection head's names, in which ``{}`` is "q" or "k"; "" is within the encoder; None: heads
            are not read.
    """

    name: str
    query: str
    key: str = ""
    others: str = ""
    mark: str = ""
    vit_small_heads: int | None = None
    small_stem_padding: int = 1
    collect: str = ""
    framework: str = "torchvision"
    names_backbone: bool = False
    elsewhere: str = ""
    head: str | None = None

    @property
    def collector(self) -> metadata.Collector | None:
        """The function that collects the layout's metadata, if there is one."""
        return getattr(metadata, f"of_{self.collect}") if self.collect else None


_ROWS = read_yaml_file(Path(__file__).with_suffix(".yaml"))
LAYOUTS = tuple(Layout(**row) for row in _ROWS["layouts"])
# The keys of state dicts in files, and the prefixes of wrappers.
WHERE = r"(?:(?:state_dict|model|model_state_dict)\.)?(?:module\.)?"
# The names of a network alone, which several frameworks save.
PLAIN = Layout("timm", "", collect="timm", framework="timm")

Rename = Callable[[str], str]
# Names of a ViT's tensors in timm and torchvision; those of a ResNet are the same in both.
VIT_NAMES = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.": "conv_proj.",
    "norm.": "encoder.ln.",
}
VIT_BLOCK_NAMES = {
    "norm1.": "ln_1.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}


def _renaming(*rules: tuple[str, str] | tuple[str, str, int]) -> Rename:
    """Return a function that applies the rules of layouts.yaml to a name."""
    compiled = [(re.compile(pattern), replacement, shift) for pattern, replacement, *shift in rules]

    def rename(name: str) -> str:
        for pattern, replacement, shift in compiled:
            if shift and (match := pattern.search(name)):
                replacement = replacement.replace("{}", str(int(match[1]) + shift[0]))
            name = pattern.sub(replacement, name)
        return name

    return rename


_TORCHVISION_VIT = _renaming(
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
    *(
        (rf"^encoder\.layers\.encoder_layer_(\d+)\.{re.escape(n)}", rf"blocks.\1.{m}")
        for m, n in VIT_BLOCK_NAMES.items()
    ),
    *((rf"^{re.escape(theirs)}", ours) for ours, theirs in VIT_NAMES.items()),
)
# By a name that only this way of naming has.
FOREIGN: dict[str, Rename] = {"encoder.pos_embedding": _TORCHVISION_VIT} | {
    mark: _renaming(*row["rules"]) for row in _ROWS["names"] for mark in row["marks"]
}
