"""Shims for detectron2 and its evaluators on current numpy, Pillow and setuptools.

They supply what is missing: much for detectron2 0.6, little for its main branch, which calls itself 0.6 too.
"""

import importlib.resources
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import numpy
from PIL import Image

from moco_plugin.errors import UserError


def _in1d(values: Any, wanted: Any) -> numpy.ndarray:
    return numpy.isin(numpy.ravel(values), wanted)


NUMPY: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "in1d": _in1d}
"""Names that numpy has dropped, the types in 1.24, in1d in 2.4: of detectron2 0.6, lvis 0.5.3, cityscapesScripts 2.3.0."""
CITYSCAPES_API = "deeplearning.projects.cityscapesApi"
"""Where detectron2's main branch imports cityscapesScripts from; no index has a package of that name."""


def before_import() -> None:
    """Prepare for ``import detectron2``, if it is installed."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None:
        return
    for name, value in NUMPY.items():
        if name not in vars(numpy):  # hasattr would warn
            setattr(numpy, name, value)
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]  # its older name
    operators = PathFinder.find_spec("detectron2._C", spec.submodule_search_locations)
    if operators is None and "detectron2._C" not in sys.modules:
        sys.modules["detectron2._C"] = _operators_stand_in()


def apply() -> None:
    """Import detectron2, prepared to run here; a second call changes nothing.

    Raises:
        UserError: detectron2 or a package that it needs is not installed.
    """
    before_import()
    try:
        import detectron2.evaluation
        import detectron2.modeling
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise UserError(
                "detectron2 is not installed; run `make setup`, or "
                "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git`"
            ) from error
        raise UserError(
            f"detectron2 needs {error.name}, which is not installed; run `pip install '.[detectron2]'` in the clone"
        ) from error
    if not hasattr(sys.modules.get("detectron2._C"), "COCOevalEvaluateImages"):
        from pycocotools.cocoeval import COCOeval

        # The fast evaluation is C++; pycocotools computes the same, and detectron2's main falls back to it.
        detectron2.evaluation.coco_evaluation.COCOeval_opt = COCOeval
    if "detectron2.model_zoo" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        # Imported here, because the stand-in must not stay: other packages test for pkg_resources.
        stand_in: Any = ModuleType("pkg_resources", "The function of setuptools' former module that detectron2 calls.")
        stand_in.resource_filename = lambda package, path: str(importlib.resources.files(package) / path)
        sys.modules["pkg_resources"] = stand_in
        try:
            importlib.import_module("detectron2.model_zoo")
        finally:
            del sys.modules["pkg_resources"]


def prepare_cityscapes() -> None:
    """Prepare for the evaluation of Cityscapes."""
    kinds = ("Instance", "Pixel")
    evaluations: list[Any] = [
        importlib.import_module(f"cityscapesscripts.evaluation.eval{kind}LevelSemanticLabeling") for kind in kinds
    ]
    # It writes matches of instances into the working directory. Nothing reads them, and with the integers of numpy 2.4
    # writing them fails.
    evaluations[0].writeDict2JSON = lambda content, path: None
    if CITYSCAPES_API in sys.modules or importlib.util.find_spec("deeplearning"):
        return
    parts = CITYSCAPES_API.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules[".".join(parts[:end])] = ModuleType(".".join(parts[:end]))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "cityscapesscripts":
            sys.modules[f"{CITYSCAPES_API}.{name}"] = module


def _operators_stand_in() -> ModuleType:
    module = ModuleType("detectron2._C", "In place of detectron2's C++ operators.")
    module.__spec__ = ModuleSpec("detectron2._C", loader=None)

    def missing(name: str) -> Any:
        raise AttributeError(f"this detectron2 was installed without its C++ operators and has no {name!r}")

    for name, value in {
        "get_compiler_version": lambda: "none",  # these three are read for the log of the environment
        "get_cuda_version": lambda: "none",
        "has_cuda": lambda: False,
        "__getattr__": missing,
    }.items():
        setattr(module, name, value)
    return module
