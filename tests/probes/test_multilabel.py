"""Mean average precision on images of several labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from moco_plugin.probes.multilabel import average_precision
from tests.helpers.processes import Tool

COLOURS = {"red": 0, "green": 1, "blue": 2}


def test_average_precision_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 30 * torch.randn(200, 5, generator=generator)
    truth = torch.rand(200, 5, generator=generator) < 0.3
    truth[:, 4] = False
    found = average_precision(scores, truth)
    expected = [100 * average_precision_score(truth[:, index], scores[:, index]) for index in range(4)]
    assert found[:4].tolist() == pytest.approx(expected, abs=1e-3) and found[4].isnan()


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose labels are the colours that are bright in them."""
    folder = tmp_path_factory.mktemp("lists")
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        rows = []
        for number in range(count):
            bright = random.random(3) < 0.5
            Image.fromarray((random.integers(0, 60, (32, 32, 3)) + 180 * bright).astype(np.uint8)).save(
                folder / f"{split}{number}.png"
            )
            rows.append(f"{split}{number}.png," + ";".join(name for name, index in COLOURS.items() if bright[index]))
        (folder / f"{split}.csv").write_text("path,labels\n" + "\n".join(rows) + "\n")
    return folder


def test_through_the_tool(lists: Path, tiny_run: Path, tool: Tool) -> None:
    weights = tiny_run / "checkpoints" / "last.ckpt"
    sets = ("--train", lists / "train.csv", "--test", lists / "test.csv")
    out = lists / "result.json"
    done = tool("evaluate", "multilabel", "--weights", weights, *sets, "--workers", "2", "--out", out)
    result = json.loads(out.read_text())
    assert set(result["linear_ap"]) == set(COLOURS) and result["test_images"] == 20
    assert result["linear_map"] == pytest.approx(np.mean(list(result["linear_ap"].values())))
    assert result["linear_map"] > 70 > result["chance_map"] and result["knn_map"] > result["chance_map"]
    assert f"linear {result['linear_map']:.2f}%" in done.stdout
    refused = tool("evaluate", "knn", "--weights", weights, *sets, code=2)
    assert (
        "train.csv has several labels per image, expected one; evaluate multilabel takes such lists" in refused.stderr
    )
    refused = tool("make_shards", lists / "train.csv", lists / "shards" / "train", code=2)
    assert "several labels per image, and a shard stores one; expected one or none" in refused.stderr


def test_one_folder_is_split(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "photos" / ("dark", "bright")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (200 * (number % 2) + number,) * 3).save(path)
    weights = tiny_run / "checkpoints" / "last.ckpt"
    photos, out = tmp_path / "photos", tmp_path / "knn.json"
    done = tool("evaluate", "knn", "--weights", weights, "--train", photos, "--out", out)
    result = json.loads(out.read_text())
    assert "testing on a fifth of each class" in done.stdout
    assert (result["train_images"], result["test_images"]) == (32, 8)
    assert result["test"] == f"{photos}[80%:]" and result["top1"] == 100
