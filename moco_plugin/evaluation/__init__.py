"""Evaluation of backbones: kNN, retrieval, linear classification, fine-tuning, few or several labels, OmniBenchmark."""

from moco_plugin.evaluation.classify import evaluate_finetune, evaluate_linear
from moco_plugin.evaluation.fast import evaluate_linear_fast, evaluate_lowshot
from moco_plugin.evaluation.multilabel import evaluate_multilabel
from moco_plugin.evaluation.omnibenchmark import evaluate_omnibenchmark
from moco_plugin.evaluation.run import evaluate_knn, evaluate_retrieval

__all__ = [
    "evaluate_finetune",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_linear_fast",
    "evaluate_lowshot",
    "evaluate_multilabel",
    "evaluate_omnibenchmark",
    "evaluate_retrieval",
]
