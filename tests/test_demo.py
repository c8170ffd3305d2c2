"""The whole path through the tools at toy size, to the page as a browser shows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from moco_plugin.tools.demo import main

from tests.conftest import FASHION_MNIST
from tests.processes import Tool
from tests.report.browser import load


def test_quick_demo(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        assert command[:2] == [sys.executable, "-m"]
        finished = tool(command[2].removeprefix("moco_plugin.tools."), *command[3:], **env)
        return SimpleNamespace(wait=lambda: finished.returncode)

    monkeypatch.setattr("moco_plugin.demo.subprocess", SimpleNamespace(Popen=start))
    out = tmp_path / "demo"
    arguments = ["--quick", "--out", str(out), "--images", str(FASHION_MNIST)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "box AP" in shown and "kNN" in shown and str(out / "report.html") in shown
    for command in ("pretrain", "evaluate", "convert-to-d2", "make-scenes", "transfer"):
        assert f"moco-{command} " in shown

    results = json.loads((out / "results.json").read_text())
    for init in ("random", "moco"):
        measured = json.loads((out / f"knn_{init}.json").read_text())["top1"]
        assert str(measured) in json.dumps(results)
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
    assert again.count("(done: ") == again.count("$ ") == 10
