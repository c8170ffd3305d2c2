"""DensePose: detectron2's baseline of November 2019, through detectron2's own project."""

import sys
from types import ModuleType

import pytest
from detectron2.config import CfgNode, get_cfg

from moco_plugin.errors import UserError
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.trainer import Trainer
from tests.helpers.config_differences import DENSEPOSE, INITIALISATIONS, MSRA, RECORDED, changes, differences

HEAD = "MODEL.ROI_DENSEPOSE_HEAD"
LEGACY = changes("densepose")


def add_densepose_config(cfg: CfgNode) -> None:
    """Stand in for the project's function: the keys that the config sets, with the project's defaults."""
    cfg.MODEL.DENSEPOSE_ON = True
    defaults = {key.removeprefix(f"{HEAD}."): theirs for key, (theirs, _) in LEGACY.items() if HEAD in key}
    cfg.MODEL.ROI_DENSEPOSE_HEAD = CfgNode(defaults)


def test_densepose_without_its_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "densepose", None)
    for initialisation in INITIALISATIONS:
        with pytest.raises(UserError, match=r"needs detectron2's DensePose project.* run `pip install .*DensePose`"):
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
    assert differences(base, supervised) == changes("tuned", "fpn", "densepose")
    assert Trainer.build_train_loader(moco) == "train loader"
    assert Trainer.build_test_loader(moco, "x") == "test loader of x"
    assert Trainer.build_evaluator(moco, "x") == "evaluator of x in out/inference"
