"""The benchmark of accuracy by CPU time and the search for recipes, at toy size."""

import json
from pathlib import Path

import pytest

from moco_plugin.benchmarks.accuracy import compare, recipes, sets
from moco_plugin.demo import images
from moco_plugin.tools.benchmark import main
from tests.conftest import FASHION_MNIST
from tests.helpers.processes import context


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "DEBIAN", FASHION_MNIST)
    monkeypatch.setattr(sets, "QUERIES", 100)
    monkeypatch.setattr(compare, "CONTEXT", context)  # from a process that has imported the packages
    monkeypatch.setattr(compare, "TIMED", (256, 384))


@pytest.mark.slow
def test_contestants_are_measured_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["ours", "lightly's MoCo example"]
    command = ["accuracy", "--minutes", "0.01", "--images", "512", "--seeds", "0", "--folder", str(tmp_path)]
    command += ["--contestants", *names, "--out", str(tmp_path / "out.json")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "is ahead at the end" in shown and "what the best of the others, lightly's MoCo example, has" in shown
    result = json.loads((tmp_path / "out.json").read_text())["results"]
    assert {f"{name}, {share:g}" for name in names for share in compare.SHARES} < result.keys()
    assert {"raw pixels", "untrained"} < result.keys()
    assert all(0 < row["kNN"] < 100 and 0 < row["linear"] < 100 for row in result.values())
    assert (tmp_path / "accuracy.png").is_file()
    monkeypatch.setattr(compare, "CONTEXT", None)  # nothing is trained again
    assert main([*command[:-1], str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["results"] == result


def test_unknown_contestants_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--contestants", "our", "--folder", str(tmp_path)]) == 2
    assert "there is no contestant 'our'; did you mean 'ours'?; known are ours, lightly's" in capsys.readouterr().err


def test_the_search_keeps_what_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def train(recipe: dict[str, str], *given: object) -> dict[str, dict[str, float]]:
        tried.append(recipe)
        better = recipe.get("method_args.temperature") == "0.2"
        return {"accuracy": {"k 1": 50.0 + better}, "untrained": {"k 1": 40.0}}

    monkeypatch.setattr(recipes, "train", train)
    monkeypatch.setattr(recipes, "read_sets", lambda *given: None)
    monkeypatch.setattr(recipes, "measure_pixels", lambda sets: {"k 1": 30.0})
    found = recipes.measure(folder=tmp_path)
    assert found["advice"] == ["kept: method_args.temperature=0.2"]
    assert found["results"]["T: method_args.temperature=0.2"] == {"k 1": 51.0}
    assert tried[0] == recipes.START and tried[-1]["method_args.temperature"] == "0.2"
    assert len({json.dumps(recipe, sort_keys=True) for recipe in tried}) == len(tried)
