"""The results that the papers report, in percent; tables and tests read them here.

MoCo v1: arXiv 1911.05722, v2: 2003.04297, v3: 2104.02057; OmniBenchmark: 2207.07106.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        name: The initialisation, as tables show it.
        init: What training starts from: "random", "supervised" or "moco".
        values: One for each metric, in percent.
        method: How the weights were pre-trained: "moco_v1", "moco_v2" or "moco_v3".
        epochs: For how long, on ImageNet; None for other images.
        architecture: timm's name of the network, or how it begins.
        feature_dim: Width of its features, which identifies ResNets with more channels.
        parameters: Its parameters in millions, where name and width do not determine it.
        std: Standard deviation over trials, where the paper gives it.
        recipe: What was followed, where that differs between rows.
    """

    name: str
    init: str
    values: tuple[float, ...]
    method: str = ""
    epochs: int | None = None
    architecture: str = "resnet50"
    feature_dim: int = 2048
    parameters: float | None = None
    std: float | None = None
    recipe: str = ""


def _transfer(
    random: str, supervised: str, v1: str, ig_1b: str, v2_200: str = "", v2_800: str = ""
) -> tuple[Published, ...]:
    """Return the rows of a transfer experiment that have numbers, which are given as text."""
    rows = (
        ("random", "random", random, "", None),
        ("supervised IN-1M", "supervised", supervised, "", None),
        ("MoCo v1 IN-1M, 200 epochs", "moco", v1, "moco_v1", 200),
        ("MoCo v1 IG-1B", "moco", ig_1b, "moco_v1", None),
        ("MoCo v2 IN-1M, 200 epochs", "moco", v2_200, "moco_v2", 200),
        ("MoCo v2 IN-1M, 800 epochs", "moco", v2_800, "moco_v2", 800),
    )
    return tuple(
        Published(name, init, tuple(map(float, values.split())), method, epochs)
        for name, init, values, method, epochs in rows
        if values
    )


# v1: tables 2 to 6 and appendix; v2: its table of results on VOC
TRANSFER = {
    "voc_c4": _transfer(
        "60.2 33.8 33.1", "81.3 53.5 58.8", "81.5 55.9 62.6", "82.2 57.2 63.7", "82.4 57.0 63.6", "82.5 57.4 64.0"
    ),
    "voc_dilated_c5": _transfer("64.4 37.9 38.6", "81.4 54.0 59.1", "81.1 54.6 59.9", "81.6 55.5 61.2"),
    "voc07_c4": _transfer("", "74.4 42.4 42.7", "74.9 46.6 50.1", "75.6 47.6 51.7"),
    "coco_c4_1x": _transfer(
        "26.4 44.0 27.8 29.3 46.9 30.8",
        "38.2 58.2 41.2 33.3 54.7 35.2",
        "38.5 58.3 41.6 33.6 54.8 35.6",
        "39.1 58.7 42.2 34.1 55.4 36.4",
    ),
    "coco_c4_2x": _transfer(
        "35.6 54.6 38.2 31.4 51.5 33.5",
        "40.0 59.9 43.1 34.7 56.5 36.9",
        "40.7 60.5 44.1 35.4 57.3 37.6",
        "41.1 60.7 44.8 35.6 57.4 38.1",
    ),
    "coco_fpn_1x": _transfer(
        "31.0 49.5 33.2 28.5 46.8 30.4",
        "38.9 59.6 42.7 35.4 56.5 38.1",
        "38.5 58.9 42.0 35.1 55.9 37.7",
        "38.9 59.4 42.3 35.4 56.5 37.9",
    ),
    "coco_fpn_2x": _transfer(
        "36.7 56.7 40.0 33.7 53.8 35.9",
        "40.6 61.3 44.4 36.8 58.1 39.5",
        "40.8 61.6 44.7 36.9 58.4 39.7",
        "41.1 61.8 45.1 37.4 59.1 40.2",
    ),
    "coco_fpn_6x": _transfer(
        "41.4 61.9 45.1 37.6 59.1 40.3",
        "41.9 62.5 45.6 38.0 59.6 40.8",
        "42.3 62.7 46.2 38.3 60.1 41.2",
        "42.8 63.2 47.0 38.7 60.5 41.3",
    ),
    "coco_keypoint": _transfer("65.9 86.5 71.7", "65.8 86.9 71.9", "66.8 87.4 72.5", "66.9 87.8 73.0"),
    "coco_densepose": _transfer("39.4 78.5 35.1", "48.3 85.6 50.6", "50.1 86.8 53.9", "50.6 87.0 54.3"),
    "lvis_1x": _transfer("", "23.5 36.6 24.8", "23.2 36.0 24.7", "24.3 37.4 25.9"),
    "lvis_2x": _transfer("22.5 34.8 23.8", "23.2 36.0 24.4", "24.1 37.4 25.5", "24.9 38.2 26.4"),
    "cityscapes_instance": _transfer("51.1 25.4", "59.6 32.9", "59.3 32.3", "60.3 32.9"),
    "cityscapes_semantic": _transfer("65.3", "74.6", "75.3", "75.5"),
    "voc_semantic": _transfer("39.5", "74.4", "72.5", "73.6"),
}
"""The rows of each transfer experiment, by the name of its task; values in the order of the task's metrics."""

LVIS_2X_FROZEN = (24.4, 37.8, 25.8)
"""The supervised row of LVIS 2x with frozen batch norm; in all other rows it is trained."""

LINEAR = (
    Published("MoCo v1 R50, 200 epochs", "moco", (60.6,), "moco_v1", 200),
    Published("MoCo v1 RX50, 200 epochs", "moco", (63.9,), "moco_v1", 200, "resnext50", parameters=46.0),
    Published("MoCo v1 R50w2x, 200 epochs", "moco", (65.4,), "moco_v1", 200, feature_dim=4096),
    Published("MoCo v1 R50w4x, 200 epochs", "moco", (68.6,), "moco_v1", 200, feature_dim=8192),
    Published("MoCo v2 R50, 200 epochs", "moco", (67.5,), "moco_v2", 200, std=0.1),
    Published("MoCo v2 R50, 800 epochs", "moco", (71.1,), "moco_v2", 800),
    Published("MoCo v3 R50, 100 epochs", "moco", (68.9,), "moco_v3", 100),
    Published("MoCo v3 R50, 300 epochs", "moco", (72.8,), "moco_v3", 300),
    Published("MoCo v3 R50, 1000 epochs", "moco", (74.6,), "moco_v3", 1000),
    Published("MoCo v3 ViT-S, 300 epochs", "moco", (73.2,), "moco_v3", 300, "vit_small", 384),
    Published("MoCo v3 ViT-B, 300 epochs", "moco", (76.7,), "moco_v3", 300, "vit_base", 768),
)
"""Linear classification on frozen features, ImageNet top-1. RX50 is ResNeXt-50 32x8d (v1, Table 1)."""

FINETUNE = (
    Published("R50, random", "random", (76.5,), recipe="imagenet"),
    Published("MoCo v1 R50, IN-1M", "moco", (77.0,), recipe="imagenet"),
    Published("MoCo v1 R50, IG-1B", "moco", (77.3,), recipe="imagenet"),
    Published("MoCo v3 ViT-S", "moco", (81.4,), recipe="DeiT's"),
    Published("MoCo v3 ViT-B", "moco", (83.2,), recipe="DeiT's"),
    Published("R50, random", "random", (61.8,), recipe="inaturalist"),
    Published("R50, supervised IN-1M", "supervised", (66.1,), recipe="inaturalist"),
    Published("MoCo v1 R50, IN-1M", "moco", (65.6,), recipe="inaturalist"),
    Published("MoCo v1 R50, IG-1B", "moco", (65.8,), recipe="inaturalist"),
)
"""End-to-end fine-tuning, top-1, on the set that the recipe is named for; DeiT's is that paper's, on ImageNet."""

OMNIBENCHMARK = Published("MoCo v2, as OmniBenchmark reports it", "moco", (34.8,))
"""The mean over the realms of the mean per-class accuracy."""
