"""The results that the papers report (papers.yaml), in percent.

MoCo v1: arXiv 1911.05722, v2: 2003.04297, v3: 2104.02057; OmniBenchmark: 2207.07106.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_plugin.safe_yaml import read_yaml_file


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


def _published(row: dict[str, Any]) -> Published:
    return Published(**{**row, "values": tuple(row["values"])})


REPORTED: dict[str, Any] = read_yaml_file(Path(__file__).with_name("papers.yaml"))
TRANSFER = {
    task: tuple(
        _published({"name": name, "values": values, **REPORTED["initialisations"][name]})
        for name, values in rows.items()
    )
    for task, rows in REPORTED["transfer"].items()
}
"""The rows of each transfer experiment, by the name of its task; values in the order of the task's metrics."""
LVIS_2X_FROZEN: tuple[float, ...] = tuple(REPORTED["lvis_2x_frozen"])
"""The supervised row of LVIS 2x with frozen batch norm; in all other rows it is trained."""
LINEAR = tuple(map(_published, REPORTED["linear"]))
"""Linear classification on frozen features, ImageNet top-1."""
FINETUNE = tuple(map(_published, REPORTED["finetune"]))
"""End-to-end fine-tuning, top-1, on the set that the recipe is named for."""
OMNIBENCHMARK = _published(REPORTED["omnibenchmark"])
"""The mean over the realms of the mean per-class accuracy."""
