"""Momentum Contrast (MoCo v1, v2, v3) for timm, lightly, LightlyTrain and detectron2.

Public names are imported lazily, on first use.
"""

# ruff: noqa: F401  (type checkers and editors read the imports, and so does __getattr__)
import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_plugin.backbones import create_backbone, feature_dim
    from moco_plugin.checkpoints.convert import convert
    from moco_plugin.checkpoints.read import read_checkpoint
    from moco_plugin.data.pairs import PairLoader
    from moco_plugin.detectors.predict import predict
    from moco_plugin.evaluation.knn import evaluate_knn
    from moco_plugin.evaluation.linear import evaluate_finetune, evaluate_linear
    from moco_plugin.methods import METHODS, Method, MoCo, MoCoV1, MoCoV3, build_method
    from moco_plugin.pretraining.config import load_config
    from moco_plugin.pretraining.prepare import prepare_run
    from moco_plugin.pretraining.run import pretrain
    from moco_plugin.probes.cached_features import evaluate_linear_fast, evaluate_lowshot
    from moco_plugin.probes.embedding import embed
    from moco_plugin.probes.multilabel import evaluate_multilabel
    from moco_plugin.probes.omnibenchmark import evaluate_omnibenchmark
    from moco_plugin.probes.retrieval import evaluate_retrieval
    from moco_plugin.transfer.runner import run_trials

__version__ = "0.1.0"

# The module of each public name, taken from the imports above.
_MODULES = {
    alias.name: str(node.module)
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("moco_plugin.")
    for alias in node.names
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
