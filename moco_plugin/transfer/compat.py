"""Shims for detectron2 0.6 and its evaluators on current numpy, Pillow and setuptools."""

import importlib
import importlib.util
import os
import re
import sys
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
from PIL import Image

from moco_plugin.errors import UserError


def _in1d(values: Any, wanted: Any) -> numpy.ndarray:
    return numpy.isin(numpy.ravel(values), wanted)


# names that numpy has dropped: those of Python's own types in 1.24, in1d in 2.4
NUMPY: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "in1d": _in1d}
# what needs which of them: detectron2 0.6, lvis 0.5.3, cityscapesscripts 2.3.0
NUMPY_OF = {"detectron2": ("bool", "int", "float", "str"), "lvis": ("float",), "cityscapesscripts": ("in1d",)}
# a line of detectron2 for each shim that it needs; its main branch calls itself 0.6 too
SIGNS = {
    "PIL.Image.LINEAR": ("data/transforms/transform.py", r"\bImage\.LINEAR\b"),
    "numpy": ("structures/masks.py", r"\bnp\.bool\b"),
    "detectron2._C": ("layers/deform_conv.py", r"^from detectron2 import _C"),
    "cityscapesApi": ("evaluation/cityscapes_evaluation.py", r"\bdeeplearning\.projects\.cityscapesApi\b"),
}
# where detectron2's main branch imports cityscapesScripts from; no index has a package of that name
CITYSCAPES_API = "deeplearning.projects.cityscapesApi"
CITYSCAPES_MODULES = (
    "cityscapesscripts",
    *(f"cityscapesscripts.{part}" for part in ("helpers", "helpers.labels", "evaluation")),
)
CITYSCAPES_MODULES += tuple(
    f"{CITYSCAPES_MODULES[-1]}.eval{kind}LevelSemanticLabeling" for kind in ("Instance", "Pixel")
)
MATCHES = "matches.json"


def package_dir() -> Path:
    """Return the folder of the installed detectron2, without importing it.

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
    """Return whether this detectron2 was built with its C++ operators."""
    return PathFinder.find_spec("detectron2._C", [str(package)]) is not None


def _needs(package: Path, shim: str) -> bool:
    """Return whether this detectron2 needs a shim, by the line that shows it."""
    file, line = SIGNS[shim]
    return re.search(line, (package / file).read_text(encoding="utf-8"), re.M) is not None


def apply() -> None:
    """Import detectron2, prepared so that 0.6 and its main branch both run here; a second call changes nothing.

    Raises:
        UserError: detectron2 or a package that it needs is not installed.
    """
    package_dir()
    before_import()
    try:
        import detectron2.evaluation
        import detectron2.modeling  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"detectron2 needs {error.name}, which is not installed; run `pip install '.[detectron2]'` in the clone"
        ) from error
    after_import()


def before_import() -> list[str]:
    """Prepare for ``import detectron2``, if it is installed; return the names that were supplied, none on a second call."""
    if importlib.util.find_spec("detectron2") is None:
        return []
    package = package_dir()
    supplied = []
    if not hasattr(Image, "LINEAR") and _needs(package, "PIL.Image.LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]  # its older name
        supplied.append("PIL.Image.LINEAR")
    if _needs(package, "numpy"):
        supplied += _supply_numpy("detectron2")
    if "detectron2._C" not in sys.modules and not has_operators(package) and _needs(package, "detectron2._C"):
        sys.modules["detectron2._C"] = _operators_stand_in()
        supplied.append("detectron2._C")
    return supplied


def _alias_cityscapes() -> list[str]:
    """Give cityscapesScripts the name by which detectron2's main branch imports it when it evaluates."""
    if CITYSCAPES_API in sys.modules or not _needs(package_dir(), "cityscapesApi") or _importable("deeplearning"):
        return []
    parts = CITYSCAPES_API.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules[".".join(parts[:end])] = ModuleType(".".join(parts[:end]))
    for name in CITYSCAPES_MODULES:
        sys.modules[f"{CITYSCAPES_API}.{name}"] = importlib.import_module(name)
    return [CITYSCAPES_API]


def _supply_numpy(package: str) -> list[str]:
    """Supply the names that a package needs and this numpy lacks; return them."""
    missing = [name for name in NUMPY_OF[package] if name not in vars(numpy)]  # hasattr would warn
    for name in missing:
        setattr(numpy, name, NUMPY[name])
    return [f"numpy.{name}" for name in missing]


def before_evaluation(package: str) -> list[str]:
    """Prepare for a package that evaluates.

    Args:
        package: "lvis", "cityscapesscripts", or another, which needs nothing; it need not be installed.

    Returns:
        The names that were supplied; empty where nothing is missing and on a second call.
    """
    if package not in NUMPY_OF or importlib.util.find_spec(package) is None:
        return []
    return _supply_numpy(package) + (_drop_matches() + _alias_cityscapes() if package == "cityscapesscripts" else [])


def _drop_matches() -> list[str]:
    """Keep Cityscapes' evaluation from writing its matches into the working directory.

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
    """Supply what needs an imported detectron2; return the names that were supplied, none on a second call."""
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
    module = ModuleType("pkg_resources", "The one function of setuptools' former module that detectron2 calls.")

    def resource_filename(package: str, path: str) -> str:
        origin = importlib.import_module(package).__file__
        return os.path.join(os.path.dirname(str(origin)), path)

    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module
