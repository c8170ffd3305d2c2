"""Transfer configs against the fine-tuning settings that the papers fix."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from yaml import safe_load

from moco_plugin.pretraining.config import load_config as load_pretrain_config
from moco_plugin.schema import configs_folder
from moco_plugin.transfer.config import load_detector_config
from tests.helpers.papers import PAPERS, departures


def config(name: str) -> CfgNode:
    return load_detector_config(f"{name}_moco", [])


def thousands(iterations: int) -> str:
    """Write 24000 as 24k."""
    assert iterations % 1000 == 0
    return f"{iterations // 1000}k"


@pytest.mark.parametrize("name", PAPERS["detectors"])
def test_settings(name: str) -> None:
    assert departures(config(name), PAPERS["detectors"][name]) == {}


def test_densepose_is_the_legacy_baseline() -> None:
    """Read without its project, whose keys detectron2 does not know."""
    path = configs_folder() / "detectron2" / "coco" / "coco_densepose_R_50_FPN_s1x_supervised.yaml"
    assert departures(safe_load(path.read_text()), PAPERS["densepose"]) == {}


def test_table_of_runs_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text()
    shown = dict(re.findall(r"^\| ([^|]+) \| - \| (\d+ \| [\d.;kM ]+)", text, re.M))

    def run(*names: str) -> str:
        solvers = [config(name).SOLVER for name in names]
        return f"{solvers[0].IMS_PER_BATCH} | {'; '.join(thousands(s.MAX_ITER) for s in solvers)} "

    assert shown == {
        "VOC detection": run("voc/pascal_voc_R_50_C4_24k"),
        "COCO 1x; 2x; 6x": run(*(f"coco/coco_R_50_FPN_{times}" for times in ("1x", "2x", "6x"))),
        "Cityscapes instances": run("cityscapes/cityscapes_R_50_FPN_24k"),
        "VOC; Cityscapes semantic segmentation": run(
            "voc/pascal_voc_2012_fcn_R_50_30k", "cityscapes/cityscapes_fcn_R_50_90k"
        ),
    }
    for name, length in (("moco_v1_resnet50_200ep", "8 | 256"), ("moco_v3_vit_small_300ep", "32; 64 | 4096")):
        batch = load_pretrain_config(name, ["data.root=x"]).data.batch_size
        assert f"| {length} | " in text and length.endswith(f" {batch}")
