"""The layouts of checkpoints: one row each, recognized by the names of the tensors."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from moco_plugin.checkpoints import metadata


@dataclass(frozen=True)
class Layout:
    """The names in one framework's checkpoints.

    Patterns match from the beginning of a tensor's name, after WHERE.

    Attributes:
        name: Whose layout it is.
        query: What stands before the names of the encoder that is trained.
        key: What stands before those of its momentum encoder; empty where the framework has none.
        others: Known to belong to no backbone: heads, queues, losses.
        mark: A name that must occur, where ``query`` is ambiguous.
        vit_small_heads: Attention heads of a ViT of width 384, which the shapes do not determine; None: timm's 6 are
            assumed and a note says so.
        small_stem_padding: Of the 3x3 stem for small images, which the shapes do not determine.
        collect: Collects what files of the layout say about themselves.
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
    collect: metadata.Collector | None = None
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
        collect=metadata.of_lightly_train,
    ),
    Layout(
        "moco_plugin",
        r"method\.encoder_q\.backbone\.",
        r"method\.encoder_k\.backbone\.",
        others=r"method\.",
        collect=metadata.of_ours,
        framework="timm",
        names_backbone=True,
        head="state_dict.method.encoder_{}.head.",
    ),
    Layout(  # torch.save(method.state_dict(), ...)
        "moco_plugin",
        r"encoder_q\.backbone\.",
        r"encoder_k\.backbone\.",
        others=r"encoder_[qk]\.|predictor\.|queue\.",
        framework="timm",
        head="encoder_{}.head.",
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
        collect=metadata.of_mmpretrain,
    ),
    Layout(
        "MMSelfSup/MMPreTrain",
        r"backbone\.|encoder_q\.0\.(?=conv1|layer|patch_embed|cls_token)",
        r"(?:encoder_k|target_net)\.(?:module\.)?0\.",
        others=rf"(?:{_MM_PARTS})\.|queue",
        mark=r"(?:encoder_[qk]|target_net|online_net)\.(?:module\.)?0\.(?:conv1|layer|patch_embed|cls_token)"
        r"|neck\.|data_preprocessor\.|head\.(?:fc|layers)\.",
        vit_small_heads=6,
        collect=metadata.of_mmpretrain,
    ),
    Layout(
        "official MoCo v1/v2",
        r"encoder_q\.",
        r"encoder_k\.",
        others=r"queue(?:_ptr)?$",
        collect=metadata.of_released_moco,
        head="",
    ),
    Layout(
        "official MoCo v3",
        r"base_encoder\.",
        r"momentum_encoder\.",
        others=r"predictor\.",
        collect=metadata.of_released_moco,
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
        collect=metadata.of_solo_learn,
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
        collect=metadata.of_detectron2,
        framework="detectron2",
        elsewhere=r"roi_heads\.(res5\.\d+\.\S+)",  # a C4 detector has its res5 in the heads
        head="",
    ),
    Layout(
        "Hugging Face",
        r"(?:\w+\.)?(?=embeddings\.cls_token$|embedder\.embedder\.convolution\.weight$)",
        others=r"(?:\w+\.)?pooler\.|decoder\.",
    ),
    Layout(
        "timm",
        r"(?:state_dict|model)\.(?:module\.)?",
        r"(?:state_dict_ema|model_ema)\.(?:module\.)?",
        mark=r"(?:state_dict_ema|model_ema)\.",
        collect=metadata.of_timm,
        framework="timm",
    ),
)
# A network's own names, in which one of several frameworks saves it.
PLAIN = Layout("timm", "", collect=metadata.of_timm, framework="timm")

Rename = Callable[[str], str]
# timm's names of a ViT's tensors and torchvision's; a ResNet's are the same in both
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


def _replace(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rename:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in pairs]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename


_DETECTRON2 = _replace(
    (r"^res([2-5])\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\bconv(\d)\.norm\.", r"bn\1."),
    (r"\bshortcut\.norm\.", "downsample.1."),
    (r"\bshortcut\.(?=weight|bias)", "downsample.0."),
    (r"^stem\.", ""),
)
# transformers' ResNets and ViTs, the latter by the names in files and by those of version 5
_HUGGING_FACE_RESNET = _replace(
    (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    (r"^(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
_HUGGING_FACE_VIT = _replace(
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?qkv\.", ".attn.qkv."),
    (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)

SHORTCUT = (r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.")  # lightly's own ResNet
_MMPRETRAIN_VIT = _replace(
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^(?:ln1|norm1)\.", "norm."),
    (r"^layers\.(\d+)\.(?:ln|norm)([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.attn\.gamma1\.weight$", r"blocks.\1.ls1.gamma"),
    (r"^layers\.(\d+)\.ffn\.gamma2\.weight$", r"blocks.\1.ls2.gamma"),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
)


_TORCHVISION_VIT = _replace(
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
    *(
        (rf"^encoder\.layers\.encoder_layer_(\d+)\.{re.escape(n)}", rf"blocks.\1.{m}")
        for m, n in VIT_BLOCK_NAMES.items()
    ),
    *((rf"^{re.escape(theirs)}", ours) for ours, theirs in VIT_NAMES.items()),
)


def _sequential(first: int) -> Rename:
    """For nn.Sequential(*resnet.children()): 0 is the stem's convolution, 1 its norm, and the stages start at ``first``."""
    return _replace(
        (r"^0\.", "conv1."),
        (r"^1\.", "bn1."),
        (rf"^([{first}-{first + 3}])\.", lambda match: f"layer{int(match[1]) - first + 1}."),
        SHORTCUT,
    )


# By a name that only this way of naming has.
FOREIGN: tuple[tuple[str, Rename], ...] = (
    ("res2.0.conv1.weight", _DETECTRON2),
    ("layer1.0.shortcut.0.weight", _replace(SHORTCUT)),
    ("layer2.0.shortcut.0.weight", _replace(SHORTCUT)),
    ("patch_embed.projection.weight", _MMPRETRAIN_VIT),
    ("encoder.pos_embedding", _TORCHVISION_VIT),
    ("embeddings.patch_embeddings.projection.weight", _HUGGING_FACE_VIT),
    ("embedder.embedder.convolution.weight", _HUGGING_FACE_RESNET),
    ("resnet.embedder.embedder.convolution.weight", _HUGGING_FACE_RESNET),
    *((f"{first}.0.conv1.weight", _sequential(first)) for first in (2, 3, 4)),
)
