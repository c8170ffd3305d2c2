"""DensePose: detectron2's baseline of November 2019, through detectron2's own project."""

import sys
from types import ModuleType

import pytest
from detectron2.config import CfgNode, get_cfg

from moco_plugin.errors import UserError
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.trainer import Trainer
from tests.helpers.config_differences import DENSEPOSE, FPN, INITIALISATIONS, MSRA, RECORDED, differences

HEAD = "MODEL.ROI_DENSEPOSE_HEAD"
# all that differs from detectron2's Base-RCNN-FPN and the project's defaults, beside FPN: (theirs, ours)
LEGACY = {
    "MODEL.WEIGHTS": ("", MSRA),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "DensePoseROIHeads"),
    "MODEL.ROI_HEADS.NUM_CLASSES": (80, 1),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (0, 2),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
    f"{HEAD}.NAME": ("", "DensePoseV1ConvXHead"),
    f"{HEAD}.POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
    f"{HEAD}.NUM_COARSE_SEGM_CHANNELS": (2, 15),
    f"{HEAD}.POOLER_RESOLUTION": (28, 14),
    f"{HEAD}.HEATMAP_SIZE": (112, 56),
    f"{HEAD}.INDEX_WEIGHTS": (5.0, 2.0),
    f"{HEAD}.PART_WEIGHTS": (1.0, 0.3),
    f"{HEAD}.POINT_REGRESSION_WEIGHTS": (0.01, 0.1),
    f"{HEAD}.DECODER_ON": (True, False),
    "DATASETS.TRAIN": (("coco_2017_train",), ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival")),
    "DATASETS.TEST": (("coco_2017_val",), ("densepose_coco_2014_minival",)),
    "SOLVER.BASE_LR": (0.02, 0.002),
    "SOLVER.STEPS": ((60000, 80000), (100000, 120000)),
    "SOLVER.MAX_ITER": (90000, 130000),
    "SOLVER.WARMUP_FACTOR": (0.001, 0.1),
}


def add_densepose_config(cfg: CfgNode) -> None:
    """Stand in for the project's function: the keys that the config sets, with the project's defaults."""
    cfg.MODEL.DENSEPOSE_ON = True
    defaults = {key.removeprefix(f"{HEAD}."): theirs for key, (theirs, _) in LEGACY.items() if HEAD in key}
    cfg.MODEL.ROI_DENSEPOSE_HEAD = CfgNode(defaults)


def test_densepose_without_its_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "densepose", None)
    for initialisation in INITIALISATIONS:
        with pytest.raises(UserError, match=r"wants detectron2's DensePose project.* run `pip install .*DensePose`"):
            load_detector_config(f"{DENSEPOSE}_{initialisation}", [])


def test_densepose_with_its_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in: the config parses, differs as listed, and loaders and evaluator are the project's."""
    project, engine = ModuleType("densepose"), ModuleType("densepose.engine")

    class ProjectsTrainer:
        build_train_loader = staticmethod(lambda cfg: "train loader")
        build_test_loader = staticmethod(lambda cfg, name: f"test loader of {name}")
        build_evaluator = staticmethod(lambda cfg, name, folder: f"evaluator of {name} in {folder}")

    monkeypatch.setattr(project, "add_densepose_config", add_densepose_config, raising=False)
    monkeypatch.setattr(engine, "Trainer", ProjectsTrainer, raising=False)
    monkeypatch.setitem(sys.modules, "densepose", project)
    monkeypatch.setitem(sys.modules, "densepose.engine", engine)
    random, supervised, moco = (
        load_detector_config(f"{DENSEPOSE}_{i}", ["OUTPUT_DIR", "out"]) for i in INITIALISATIONS
    )
    assert set(differences(random, moco)) == {"MODEL.WEIGHTS"} and supervised.MODEL.WEIGHTS == MSRA
    base = get_cfg()
    add_densepose_config(base)
    base.merge_from_file(str(RECORDED / "Base-RCNN-FPN.yaml"))
    base.OUTPUT_DIR = "out"
    assert differences(base, supervised) == {**FPN, **LEGACY}
    assert Trainer.build_train_loader(moco) == "train loader"
    assert Trainer.build_test_loader(moco, "x") == "test loader of x"
    assert Trainer.build_evaluator(moco, "x") == "evaluator of x in out/inference"
