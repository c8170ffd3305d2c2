"""Supplies what the installed detectron2 wants and the installed torch, numpy and Pillow no longer have."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import sys
from functools import cache, wraps
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from PIL import Image

from moco_plugin.errors import UserError

logger = logging.getLogger(__name__)


def _in1d(values: Any, wanted: Any) -> numpy.ndarray:
    return numpy.isin(numpy.ravel(values), wanted)


# what numpy had once. Its names for Python's own types: gone in 1.24, used all over detectron2 0.6 and by lvis;
# in1d: gone in 2.4, used by cityscapesscripts
NUMPY_ALIASES: dict[str, Any] = {
    "bool": bool, "int": int, "float": float, "str": str, "object": object, "in1d": _in1d,
}  # fmt: skip
MATCHES = "matches.json"


def package_dir() -> Path:
    """Returns the folder of the installed detectron2, without importing it.

    Raises:
        UserError: It is not installed.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        raise UserError(
            "detectron2 is not installed; run `make setup`, or "
            "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git`"
        )
    return Path(spec.origin).parent


def has_operators(package: Path) -> bool:
    """Tells whether this detectron2 was built with its C++ operators."""
    return PathFinder.find_spec("detectron2._C", [str(package)]) is not None


@cache
def _sources(package: Path) -> str:
    """Returns all of a package's own Python code: what it uses is what may be missing."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))


def _wants_operators(package: Path) -> bool:
    """Tells whether detectron2 fails to import without its operators (0.6 does, its main branch copes)."""
    return (
        re.search(r"^from detectron2 import _C", (package / "layers/deform_conv.py").read_text(), re.M)
        is not None
    )


def before_import() -> list[str]:
    """Prepares for ``import detectron2``.

    Returns:
        The names that were supplied; empty where nothing is missing and on a second call.
    """
    package = package_dir()
    supplied = []
    if not hasattr(Image, "LINEAR") and "Image.LINEAR" in _sources(package):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]  # its older name
        supplied.append("PIL.Image.LINEAR")
    supplied += _supply_numpy(_sources(package))
    if "detectron2._C" not in sys.modules and not has_operators(package) and _wants_operators(package):
        sys.modules["detectron2._C"] = _operators_stand_in()
        supplied.append("detectron2._C")
    return supplied


def _supply_numpy(sources: str) -> list[str]:
    """Supplies numpy's old names where source code uses them and this numpy lacks them; returns which."""
    supplied = []
    for name, builtin in NUMPY_ALIASES.items():
        # vars, because hasattr makes numpy warn about the name
        if name not in vars(numpy) and re.search(rf"\bnp\.{name}\b", sources):
            setattr(numpy, name, builtin)
            supplied.append(f"numpy.{name}")
    return supplied


def before_evaluation(package: str) -> list[str]:
    """Prepares for a package that evaluates: ``lvis`` (0.5.3) or ``cityscapesscripts`` (2.3.0), the newest ones.

    Args:
        package: Its name; it need not be installed.

    Returns:
        The names that were supplied; empty where nothing is missing and on a second call.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    sources = _sources(Path(spec.origin).parent)
    supplied = _supply_numpy(sources)
    if package == "cityscapesscripts" and f'"{MATCHES}"' in sources:
        supplied += _drop_matches()
    return supplied


def _drop_matches() -> list[str]:
    """Keeps Cityscapes' evaluation from writing its matches into the working directory.

    Nothing reads them, and with numpy 2.4, whose counts are not Python's integers, writing them fails.
    """
    name = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
    evaluation: Any = importlib.import_module(name)
    write = evaluation.writeDict2JSON
    if hasattr(write, "__wrapped__"):
        return []

    @wraps(write)
    def write_all_but_matches(content: Any, path: str) -> None:
        if path != MATCHES:
            write(content, path)

    evaluation.writeDict2JSON = write_all_but_matches
    return [f"{name}.writeDict2JSON"]


def after_import() -> list[str]:
    """Mends what can be mended only once detectron2 is imported.

    Returns:
        The names that were supplied; empty where nothing is missing and on a second call.
    """
    supplied = []
    if getattr(sys.modules.get("detectron2._C"), "is_stand_in", False):
        from detectron2.evaluation import coco_evaluation
        from pycocotools.cocoeval import COCOeval

        # The fast evaluation is C++; pycocotools computes the same, and detectron2's main falls back to it.
        if coco_evaluation.COCOeval_opt is not COCOeval:
            coco_evaluation.COCOeval_opt = COCOeval
            supplied.append("COCOeval_opt")
    if "detectron2.model_zoo" not in sys.modules and not _importable("pkg_resources"):
        # Imported here, because the stand-in must not stay: other packages test for pkg_resources.
        sys.modules["pkg_resources"] = _pkg_resources_stand_in()
        try:
            importlib.import_module("detectron2.model_zoo")
        finally:
            del sys.modules["pkg_resources"]
        supplied.append("pkg_resources")
    return supplied


def _importable(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _operators_stand_in() -> ModuleType:
    module = ModuleType("detectron2._C", "In place of detectron2's C++ operators.")
    module.__spec__ = ModuleSpec("detectron2._C", loader=None)

    def missing(name: str) -> Any:
        raise AttributeError(f"this detectron2 was installed without its C++ operators and has no {name!r}")

    for name, value in {
        "is_stand_in": True,
        "get_compiler_version": lambda: "none",  # these three are read for the log of the environment
        "get_cuda_version": lambda: "none",
        "has_cuda": lambda: False,
        "__getattr__": missing,
    }.items():
        setattr(module, name, value)
    return module


def _pkg_resources_stand_in() -> ModuleType:
    module = ModuleType(
        "pkg_resources", "The one function of setuptools' former module that detectron2 calls."
    )

    def resource_filename(package: str, path: str) -> str:
        origin = importlib.import_module(package).__file__
        return os.path.join(os.path.dirname(str(origin)), path)

    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module


def fit_device(cfg: Any) -> list[str]:
    """Adapts a detectron2 config to the machine, and says so.

    Without CUDA, ``MODEL.DEVICE`` becomes ``cpu``; on a CPU, synchronised batch norm becomes batch norm,
    which is the same thing within one process.

    Args:
        cfg: A detectron2 config that is not frozen; changed in place.

    Returns:
        One sentence for each change.
    """
    changes = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        changes.append("MODEL.DEVICE: no CUDA here, so training and evaluation run on the CPU")
    if cfg.MODEL.DEVICE == "cpu":
        for path in _replace_sync_bn(cfg.MODEL, "MODEL"):
            changes.append(f"{path}: SyncBN does not train on a CPU, so BN is used")
    for change in changes:
        logger.warning(change)
    return changes


def _replace_sync_bn(node: Any, path: str) -> list[str]:
    changed = []
    for key, value in node.items():
        if isinstance(value, dict):  # a CfgNode is a dict
            changed += _replace_sync_bn(value, f"{path}.{key}")
        elif key.endswith("NORM") and value == "SyncBN":
            node[key] = "BN"
            changed.append(f"{path}.{key}")
    return changed
