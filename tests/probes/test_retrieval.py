"""Retrieval: recall, and the picture of neighbours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_plugin.probes.retrieval import chance_recall
from moco_plugin.tools.evaluate import main
from tests.conftest import TEST, TRAIN


@pytest.mark.parametrize("same", [False, True])
def test_chance_is_the_mean_recall_of_draws(same: bool) -> None:
    random = np.random.default_rng(0)
    train = torch.tensor([0] * 5 + [1] * 3 + [2])
    test = train if same else torch.tensor([0, 0, 1, 2, 3])
    hits = []
    for _ in range(4000):
        for index, label in enumerate(test):
            others = np.delete(np.arange(9), index) if same else np.arange(9)
            hits.append(bool((train[random.choice(others, 3, replace=False)] == label).any()))
    assert chance_recall(train, test, 3, same) == pytest.approx(100 * np.mean(hits), abs=1)


def test_tool_measures_and_draws(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = f"{tiny_run}/checkpoints/last.ckpt"
    arguments = f"retrieve --weights {weights} --train {TRAIN}[0:100] --test {TEST}[0:30]".split()
    page, picture = tmp_path / "neighbours.html", tmp_path / "neighbours.png"
    assert main([*arguments, "--out", f"{tmp_path}/result.json", "--picture", str(page)]) == 0
    recall = json.loads((tmp_path / "result.json").read_text())["recall"]
    assert 0 < recall["1"] < recall["5"] < recall["10"] <= 100
    assert f"recall at 5: {recall['5']:.2f}%" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("Test image: ") == 10 and html.count("Neighbour 10 of") == 10
    assert main([*arguments, "--picture", str(picture), "--k", "3"]) == 0
    with Image.open(picture) as drawn:
        assert drawn.height > 2 * drawn.width  # ten rows of four
    assert main([*arguments, "--picture", str(picture)]) == 2
    assert "exists already and was kept" in capsys.readouterr().err
    assert main([*arguments, "--picture", f"{tmp_path}/neighbours.pdf"]) == 2
    assert "ends in neither .html nor .png" in capsys.readouterr().err
