"""compat supplies what detectron2 and its evaluators need, and leaves alone what is there."""

import importlib
import importlib.util
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import numpy
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from moco_plugin.errors import UserError
from moco_plugin.transfer import compat
from moco_plugin.transfer.config import fit_device


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python where everything that detectron2 0.6 needs is missing."""
    monkeypatch.delitem(sys.modules, "detectron2._C", raising=False)
    for owner, name in (*((numpy, name) for name in compat.NUMPY if name != "bool"), (Image, "LINEAR")):
        monkeypatch.delattr(owner, name)


def test_supplies_what_is_missing_once(bare: None) -> None:
    compat.before_import()
    assert [vars(numpy)[name] for name in ("int", "float", "str")] == [int, float, str]
    assert numpy.in1d([[1, 2], [3, 4]], [4, 1]).tolist() == [True, False, False, True]
    assert Image.LINEAR == Image.Resampling.BILINEAR
    operators = sys.modules["detectron2._C"]
    with pytest.raises(AttributeError, match=r"without its C\+\+ operators and has no 'nms_rotated'"):
        operators.nms_rotated  # noqa: B018
    compat.before_import()
    assert sys.modules["detectron2._C"] is operators


def test_built_operators_are_left_alone(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathFinder, "find_spec", lambda name, path: object())
    compat.before_import()
    assert "detectron2._C" not in sys.modules


def test_cityscapes_under_the_name_that_detectron2s_main_branch_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = pytest.importorskip("cityscapesscripts.helpers.labels")
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    compat.prepare_cityscapes()
    assert importlib.import_module(f"{compat.CITYSCAPES_API}.cityscapesscripts.helpers.labels") is scripts


@pytest.mark.parametrize("package", ["detectron2", "lvis", "cityscapesscripts"])
def test_no_other_name_that_numpy_lacks_is_used(package: str) -> None:
    """The fixed list against the sources: detectron2's and its evaluators'."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    sources = "\n".join(path.read_text() for path in Path(spec.origin).parent.rglob("*.py"))
    dropped = ("bool", "int", "float", "str", "object", "in1d")
    assert {name for name in dropped if re.search(rf"\bnp\.{name}\b", sources)} <= compat.NUMPY.keys()


def test_model_zoo_needs_no_setuptools() -> None:
    compat.apply()
    from detectron2 import model_zoo

    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no/such.yaml")


def test_without_detectron2_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(UserError, match="detectron2 is not installed; run `make setup`"):
        compat.apply()


def test_fit_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(device: str) -> CfgNode:
        cfg = get_cfg()
        cfg.MODEL.DEVICE = device
        cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_MASK_HEAD.NORM = "SyncBN"
        cfg.MODEL.ROI_BOX_HEAD.NORM = "GN"
        cfg.SOLVER.AMP.ENABLED = True
        return cfg

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = config("cuda")
    changes = fit_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED
    (keys,) = [change.split(":")[0] for change in changes[2:]]
    assert set(keys.split(", ")) == {f"MODEL.{part}.NORM" for part in ("RESNETS", "FPN", "ROI_MASK_HEAD")}
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_MASK_HEAD.NORM == "BN"
    assert cfg.MODEL.ROI_BOX_HEAD.NORM == "GN"
    assert fit_device(cfg) == []

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = config("cuda")
    assert fit_device(cfg) == [] and cfg.MODEL.RESNETS.NORM == "SyncBN" and cfg.SOLVER.AMP.ENABLED
