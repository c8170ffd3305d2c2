"""compat supplies what is missing, and nothing where nothing is."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import numpy
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from moco_plugin.errors import UserError
from moco_plugin.transfer import compat
from moco_plugin.transfer.config import fit_device

TRANSFORM, MASKS, DEFORM = "data/transforms/transform.py", "structures/masks.py", "layers/deform_conv.py"
CITYSCAPES = "evaluation/cityscapes_evaluation.py"
OLD = {TRANSFORM: "x = Image.LINEAR\n", MASKS: "y = np.bool\n", DEFORM: "from detectron2 import _C\n", CITYSCAPES: ""}
NEW = {
    TRANSFORM: "x = Image.BILINEAR\n",
    MASKS: "y = bool\nz = np.bool_\n",
    DEFORM: "try:\n    from detectron2 import _C\nexcept ImportError:\n    pass\n",
    CITYSCAPES: "import cityscapesscripts\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for detectron2's folder, in a Python where everything detectron2 0.6 needs is missing."""
    monkeypatch.setattr(compat, "package_dir", lambda: tmp_path)
    monkeypatch.delitem(sys.modules, "detectron2._C", raising=False)
    for owner, name in ((numpy, "int"), (numpy, "float"), (numpy, "str"), (Image, "LINEAR")):
        if name in vars(owner):
            monkeypatch.delattr(owner, name)
    return tmp_path


def write(package: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)


def test_supplies_what_is_missing_once(package: Path) -> None:
    write(package, OLD)
    supplied = compat.before_import()
    assert supplied == ["PIL.Image.LINEAR", "numpy.int", "numpy.float", "numpy.str", "detectron2._C"]
    assert [vars(numpy)[name] for name in ("int", "float", "str")] == [int, float, str]
    assert Image.LINEAR == Image.Resampling.BILINEAR
    with pytest.raises(AttributeError, match=r"without its C\+\+ operators and has no 'nms_rotated'"):
        sys.modules["detectron2._C"].nms_rotated  # noqa: B018
    assert compat.before_import() == []


def test_cityscapes_under_the_name_that_detectron2s_main_branch_imports(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = pytest.importorskip("cityscapesscripts.helpers.labels")
    write(package, NEW)
    compat.before_evaluation("cityscapesscripts")  # what numpy lacks, once
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    write(
        package,
        {**NEW, CITYSCAPES: "from deeplearning.projects.cityscapesApi.cityscapesscripts.helpers import labels\n"},
    )
    name = "cityscapesscripts"
    assert compat.before_evaluation(name) == [compat.CITYSCAPES_API] and compat.before_evaluation(name) == []
    assert importlib.import_module(f"{compat.CITYSCAPES_API}.cityscapesscripts.helpers.labels") is scripts


def test_newer_detectron2_needs_nothing(package: Path) -> None:
    write(package, NEW)
    assert compat.before_import() == []
    assert "detectron2._C" not in sys.modules and not hasattr(Image, "LINEAR")
    assert "int" not in vars(numpy)


def test_built_operators_are_left_alone(package: Path) -> None:
    write(package, {**NEW, DEFORM: OLD[DEFORM], "_C.py": ""})
    assert compat.has_operators(package)
    assert compat.before_import() == []


def test_installed_detectron2_uses_no_other_name_that_numpy_lacks() -> None:
    """The fixed list against the sources: detectron2's and its evaluators'."""
    for package, names in compat.NUMPY_OF.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        sources = "\n".join(path.read_text() for path in Path(spec.origin).parent.rglob("*.py"))
        used = {
            name for name in ("bool", "int", "float", "str", "object", "in1d") if re.search(rf"\bnp\.{name}\b", sources)
        }
        assert used - {"bool"} <= set(names), package


def test_after_import_is_done() -> None:
    compat.apply()
    from detectron2 import model_zoo

    assert compat.before_import() == [] and compat.after_import() == []
    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no/such.yaml")


def test_without_detectron2_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="detectron2 is not installed; run `make setup`"):
        compat.package_dir()


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
