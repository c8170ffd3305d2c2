"""What each transfer config changes of detectron2's baseline."""

import json
from pathlib import Path
from typing import Any

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg

from moco_plugin.runs.run_folder import flatten
from moco_plugin.safe_yaml import read_yaml_file
from moco_plugin.schema import configs_folder

FOLDER = configs_folder() / "detectron2"

RECORDED = Path(__file__).parents[1] / "data" / "detectron2_model_zoo"

INITIALISATIONS = ("random", "supervised", "moco")

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"

OFFICIAL_NAMES = ("voc/pascal_voc_R_50_C4_24k", "coco/coco_R_50_C4_2x")  # what the released code calls them

Changes = dict[str, tuple[Any, Any]]
_TABLES: dict[str, Any] = read_yaml_file(RECORDED.parent / "config_differences.yaml")


def changes(*names: str) -> Changes:
    """Return these changes, one after the other: by key, detectron2's value and ours."""
    return {key: tuple(pair) for name in names for key, pair in _TABLES["changes"][name].items()}


# detectron2's equivalent baseline of an experiment, and all that differs
BASELINES: dict[str, tuple[str, Changes]] = {
    experiment: (name, changes(*names)) for experiment, (name, *names) in _TABLES["baselines"].items()
}
FCN = {experiment: changes(*names) for experiment, names in _TABLES["segmentation"].items()}
DENSEPOSE = "coco/coco_densepose_R_50_FPN_s1x"

EXPERIMENTS = (*BASELINES, *FCN)

# one of each that build another network
NETWORKS = (
    "voc/pascal_voc_R_50_C4_24k",
    "voc/pascal_voc_R_50_dilated_C5_24k",
    "coco/coco_R_50_C4_2x",
    "coco/coco_R_50_FPN_1x",
    "coco/coco_retinanet_R_50_FPN_1x",
    "coco/coco_keypoint_R_50_FPN_2x",
    "lvis/lvis_v0.5_R_50_FPN_1x",
    "cityscapes/cityscapes_R_50_FPN_24k",
    *FCN,
)


def name_of(experiment: str, initialisation: str) -> str:
    """Return the config's name: the released code's where it has one."""
    plain = experiment in OFFICIAL_NAMES and initialisation == "supervised"
    return experiment if plain else f"{experiment}_{initialisation}"


def flat(node: CfgNode) -> dict[str, Any]:
    """Return a config's values by key, tuples as lists."""
    leaves: dict[str, Any] = json.loads(json.dumps(flatten(node)))
    return leaves


def differences(theirs: CfgNode, ours: CfgNode) -> Changes:
    a, b = flat(theirs), flat(ours)
    return {key: (a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def baseline(name: str) -> CfgNode:
    """Return detectron2's config as recorded, after showing that the installed detectron2, if it has it, agrees."""
    cfg = get_cfg()
    cfg.merge_from_file(str(RECORDED / f"{name}.yaml"))
    try:
        installed = model_zoo.get_config_file(f"{name}.yaml")
    except RuntimeError:  # the index's copy of v0.6 comes without configs
        return cfg
    other = get_cfg()
    other.merge_from_file(installed)
    assert differences(cfg, other) == {}
    return cfg
