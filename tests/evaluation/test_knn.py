"""kNN: the votes, and the tool."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

import moco_plugin
from moco_plugin.data.images import ImageSet
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import UsageError
from moco_plugin.evaluation import neighbours
from moco_plugin.evaluation.features import IN_MEMORY, FeatureSet
from moco_plugin.evaluation.knn import default_k, knn_accuracy
from moco_plugin.evaluation.metrics import baseline
from moco_plugin.evaluation.neighbours import TEST_BLOCK, TRAIN_BLOCK, nearest
from moco_plugin.tools.evaluate import main
from tests.conftest import TEST, TRAIN
from tests.helpers.processes import Tool


def of(features: Any, labels: torch.Tensor) -> FeatureSet:
    return FeatureSet(features, labels, torch.arange(len(labels)))


def test_votes_are_weighted_by_similarity() -> None:
    def at(*degrees: float) -> torch.Tensor:
        return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    train, labels = at(5, 40, -40), torch.tensor([1, 0, 0])
    # exp(cos 5 / T) against 2 exp(cos 40 / T): at T 0.1 the one near neighbour wins, at T 10 the two far ones
    for label, temperature, expected in ((1, 0.1, 100), (1, 10, 0), (0, 10, 100)):
        assert knn_accuracy(of(train, labels), of(at(0), torch.tensor([label])), [3], temperature) == {3: expected}


def test_agrees_with_lightly_and_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On pixels, which are as good as any other features to compare votes on."""
    monkeypatch.setattr(neighbours, "TEST_BLOCK", 70)
    monkeypatch.setattr(neighbours, "TRAIN_BLOCK", 333)
    sets: list[torch.Tensor] = []
    for images in map(ImageSet, (TRAIN, TEST)):
        assert images.array is not None
        pixels = torch.from_numpy(images.array.copy()).flatten(1).float()
        sets += [F.normalize(pixels, dim=1), torch.as_tensor(images.labels)]
    train, labels, test, truth = sets
    ks = (1, 10, 20, 200)
    found = knn_accuracy(of(train, labels), of(test, truth), ks)
    for k in ks:
        votes = knn_predict(test, train.T, labels, num_classes=10, knn_k=k, knn_t=0.1)
        assert found[k] == pytest.approx(100 * float((votes[:, 0] == truth).float().mean()))
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1))
        assert found[k] == pytest.approx(100 * model.fit(train, labels).score(test, truth))
    assert len({*found.values()}) > 1


def test_an_image_is_no_neighbour_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TEST_BLOCK", 4)
    monkeypatch.setattr(neighbours, "TRAIN_BLOCK", 3)
    points = F.normalize(torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    similarities = (points @ points.T).fill_diagonal_(-2)
    for part, values, indices in nearest(points, points, 10, same=True):
        expected = similarities[part].topk(10)
        assert torch.equal(indices, expected.indices)
        torch.testing.assert_close(values, expected.values)
    with pytest.raises(UsageError, match="k is 11 with 10 labelled training images besides the image itself"):
        list(nearest(points, points, 11, same=True))


MEASURE = """
import resource, sys, torch
from moco_plugin.evaluation import neighbours
from moco_plugin.evaluation.features import FeatureSet, map_from_disk
from moco_plugin.evaluation.knn import knn_accuracy
neighbours.TEST_BLOCK, neighbours.TRAIN_BLOCK = 512, 1024
count, dim = int(sys.argv[1]), 64

generator = torch.Generator().manual_seed(0)
parts = (torch.randn(1000, dim, generator=generator) for _ in range(count // 1000))
bank, labels = map_from_disk(torch.nn.functional.normalize(part, dim=1) for part in parts), torch.arange(count) % 10
small = FeatureSet(torch.eye(dim), torch.arange(dim), torch.arange(dim))
knn_accuracy(small, small, [2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
whole = FeatureSet(bank, labels, labels)
knn_accuracy(whole, whole, [10, 20], same=True)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def search_bytes(dim: int, k: int, classes: int, test_block: int, train_block: int) -> int:
    """The memory of a search beside the features, which does not depend on the sizes of the sets.

    Two blocks of features, their similarities, the k best of the block before and of this one (values, indices and
    their merger) and, for votes, two tables of test images by classes.
    """
    blocks = 4 * dim * (test_block + train_block) + 4 * test_block * train_block
    return blocks + 12 * test_block * 5 * k + 2 * 4 * test_block * classes


def test_memory_does_not_grow_with_the_sets() -> None:
    """Measured of the process: 12,000 against themselves, whose similarities would take 576 MB."""
    shown = subprocess.run([sys.executable, "-c", MEASURE, "12000"], capture_output=True, text=True, check=True).stdout
    taken, promised = int(shown), search_bytes(64, 20, 10, 512, 1024)
    assert promised < 5e6
    assert taken < promised + 8e6  # the allocator's own
    # ImageNet against itself: what the search takes, with both sets' features on disk or below 512 MiB
    assert search_bytes(2048, 200, 1000, TEST_BLOCK, TRAIN_BLOCK) + 2 * IN_MEMORY < 3e9


def test_tool_measures_a_run_as_its_monitor_did(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    arguments = ["knn", "--weights", tiny_run / "checkpoints/last.ckpt", "--train", f"{TRAIN}[0:100]", "--k", "100"]
    arguments += ["10", "--test", f"{TEST}[0:50]", "--out", tmp_path / "knn.json"]
    shown = tool("evaluate", *arguments).stdout
    result = json.loads((tmp_path / "knn.json").read_text())
    monitored = json.loads((tiny_run / "result.json").read_text())["knn_top1"]
    assert result["top1"] == result["top1_by_k"]["100"] == pytest.approx(monitored)
    assert result["k"] == 100 and 0 < result["top1_by_k"]["10"] < 100
    assert len(result["weights_sha256"]) == 64 and result["versions"]["torch"] == torch.__version__
    assert f"kNN top-1 {monitored:.2f}%" in shown
    assert main([*map(str, arguments)]) == 2  # knn.json is there
    assert main([*map(str, arguments), "--overwrite", "--untrained", "--pixels"]) == 0
    untrained = json.loads((tmp_path / "knn.json").read_text())
    log = (tiny_run / "metrics.csv").read_text().splitlines()
    at_start = dict(zip(log[0].split(","), log[1].split(","), strict=True))["knn_top1"]
    assert untrained["top1"] == pytest.approx(float(at_start))
    pixels = []  # of the view at 32 pixels
    for spec in (f"{TRAIN}[0:100]", f"{TEST}[0:50]"):
        images = ImageSet(spec)
        views = torch.stack([evaluation_transform(32, 1.0)(images.load(index)) for index in range(len(images))])
        pixels.append(of(F.normalize(views.flatten(1).float(), dim=1), torch.as_tensor(images.labels)))
    assert untrained["pixels"] == {str(k): pytest.approx(v) for k, v in knn_accuracy(*pixels, [100, 10]).items()}
    assert result["pixels"] is None


def test_evaluation_from_python_gives_what_the_tool_writes(tiny_run: Path, tmp_path: Path) -> None:
    weights = tiny_run / "checkpoints" / "last.ckpt"
    sets = (f"{TRAIN}[0:60]", f"{TEST}[0:20]")
    result = moco_plugin.evaluate_knn(weights, *sets, k=[5, 10])
    out = tmp_path / "knn.json"
    assert main(f"knn --weights {weights} --train {sets[0]} --test {sets[1]} --k 5 10 --out {out}".split()) == 0
    assert json.loads(out.read_text()) == result
    assert {"evaluate_linear", "evaluate_finetune", "pretrain", "MoCoV1"} <= set(dir(moco_plugin))


def test_default_k_is_below_the_images_of_a_class() -> None:
    """200 neighbours of 578 images vote for the largest class."""
    labels = torch.arange(8).repeat_interleave(72)
    assert default_k(labels) == 36 and default_k(torch.arange(10).repeat(1000)) == 200
    assert default_k(torch.tensor([0, 1])) == 1
    assert baseline(torch.tensor([0, 0, 0, 1])) == "chance 50.0%, largest class 75.0%"
