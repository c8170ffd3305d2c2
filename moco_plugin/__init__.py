"""Momentum Contrast (MoCo v1, v2, v3) for timm, lightly, LightlyTrain and detectron2.

The names below are imported when they are first used.
"""

# ruff: noqa: F401  (type checkers read the imports, and __all__ follows from _MODULES)
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_plugin.backbones import create_backbone, feature_dim
    from moco_plugin.checkpoints.convert import convert
    from moco_plugin.checkpoints.read import read_checkpoint
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

_MODULES = {
    "moco_plugin.backbones": ("create_backbone", "feature_dim"),
    "moco_plugin.checkpoints.read": ("read_checkpoint",),
    "moco_plugin.pretraining.config": ("load_config",),
    "moco_plugin.pretraining.prepare": ("prepare_run",),
    "moco_plugin.checkpoints.convert": ("convert",),
    "moco_plugin.evaluation.knn": ("evaluate_knn",),
    "moco_plugin.evaluation.linear": ("evaluate_finetune", "evaluate_linear"),
    "moco_plugin.methods": ("METHODS", "Method", "MoCo", "MoCoV1", "MoCoV3", "build_method"),
    "moco_plugin.pretraining.run": ("pretrain",),
    "moco_plugin.probes.cached_features": ("evaluate_linear_fast", "evaluate_lowshot"),
    "moco_plugin.probes.embedding": ("embed",),
    "moco_plugin.probes.multilabel": ("evaluate_multilabel",),
    "moco_plugin.probes.omnibenchmark": ("evaluate_omnibenchmark",),
    "moco_plugin.probes.retrieval": ("evaluate_retrieval",),
    "moco_plugin.detectors.predict": ("predict",),
    "moco_plugin.transfer.runner": ("run_trials",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moco_plugin' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
