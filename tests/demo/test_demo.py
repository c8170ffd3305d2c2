"""The whole path through the tools at toy size, to the page as a browser shows it."""

import json
from pathlib import Path

import pytest

from moco_plugin.demo import run
from moco_plugin.tools.demo import main
from tests.conftest import FASHION_MNIST
from tests.helpers.browser import load
from tests.helpers.processes import context


def test_quick_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "CONTEXT", context)  # the same process has imported the packages for other tests too
    out = tmp_path / "demo"
    arguments = ["--quick", "--out", str(out), "--images", str(FASHION_MNIST)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Toy size: every stage works, and the numbers below mean nothing." in shown and "helps" not in shown
    assert "box AP" in shown and "kNN" in shown and str(out / "report.html") in shown
    for command in ("pretrain", "evaluate", "convert-to-d2", "make-scenes", "transfer"):
        assert f"moco-{command} " in shown

    results = json.loads((out / "results.json").read_text())
    for init in ("random", "moco"):
        measured = json.loads((out / f"knn_{init}.json").read_text())["top1_by_k"]
        assert {"1", "5", "20", "200"} == measured.keys()
        assert all(str(value) in json.dumps(results) for value in measured.values())
        for detector in ("c4", "fpn"):
            log = (out / "transfer" / detector / init / "trial_1" / "log.txt").read_text()
            filled = "105 of 105 backbone tensors filled from" if init == "moco" else "none, random initialisation"
            assert f"weights: {filled}" in log
    page = (out / "report.html").read_text()
    for section in ("Results", "Pre-training", "What it finds similar", "What detectors make of it"):
        assert section in page
    assert load(out / "report.html", tmp_path / "profile")[1] == []

    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert again.count("(done: ") == again.count("$ ") == 14
