"""kNN: the votes, and the tool."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from moco_plugin.tools.evaluate import main
from torch.nn import functional as F

from moco_plugin.errors import UsageError
from moco_plugin.evaluation import knn
from moco_plugin.evaluation.knn import knn_top1
from tests.conftest import TEST, TRAIN
from tests.processes import Tool


def test_votes_are_weighted_by_similarity() -> None:
    def at(*degrees: float) -> torch.Tensor:
        return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    train, labels = at(5, 40, -40), torch.tensor([1, 0, 0])
    # exp(cos 5 / T) against 2 exp(cos 40 / T): at T 0.1 the one near neighbour wins, at T 10 the two far ones
    assert knn_top1(train, labels, at(0), torch.tensor([1]), k=3, temperature=0.1) == 100
    assert knn_top1(train, labels, at(0), torch.tensor([1]), k=3, temperature=10) == 0
    assert knn_top1(train, labels, at(0), torch.tensor([0]), k=3, temperature=10) == 100


def test_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(knn, "CHUNK", 7)
    train, test = F.normalize(torch.randn(80, 5), dim=1), F.normalize(torch.randn(30, 5), dim=1)
    labels, truth = torch.randint(4, (80,)), torch.randint(4, (30,))
    correct = 0
    for feature, label in zip(test, truth, strict=True):
        votes = [0.0] * 4
        for i in sorted(range(80), key=lambda i: -float(train[i] @ feature))[:20]:
            votes[int(labels[i])] += math.exp(float(train[i] @ feature) / 0.1)
        correct += votes.index(max(votes)) == label
    assert knn_top1(train, labels, test, truth, k=20) == pytest.approx(100 * correct / 30)


def test_k_above_the_number_of_images() -> None:
    with pytest.raises(UsageError, match="k is 200 with 3 labelled training images"):
        knn_top1(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3))


def test_tool_measures_a_run_as_its_monitor_did(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    arguments = [
        "knn",
        "--weights",
        tiny_run / "checkpoints/last.ckpt",
        "--train",
        f"{TRAIN}[0:100]",
        "--k",
        "100",
    ]
    arguments += ["--test", f"{TEST}[0:50]", "--out", tmp_path / "knn.json"]
    shown = tool("evaluate", *arguments).stdout
    result = json.loads((tmp_path / "knn.json").read_text())
    monitored = json.loads((tiny_run / "result.json").read_text())["knn_top1"]
    assert result["top1"] == pytest.approx(monitored)
    assert f"kNN top-1 {monitored:.2f}%" in shown
    assert main([*map(str, arguments)]) == 2  # knn.json is there
    assert main([*map(str, arguments), "--overwrite", "--untrained"]) == 0
    untrained = json.loads((tmp_path / "knn.json").read_text())
    log = (tiny_run / "metrics.csv").read_text().splitlines()
    at_start = dict(zip(log[0].split(","), log[1].split(","), strict=True))["knn_top1"]
    assert untrained["top1"] == pytest.approx(float(at_start))
