"""tools/benchmark.py as a user types it, at toy size: what is measured, not how fast it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.processes import Tool


def test_step_is_timed_beside_its_peers(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    sizes = ["--image-size", "32", "--batch-size", "8", "--queue-size", "64", "--rounds", "2"]
    printed = tool("benchmark", "step", *sizes, "--out", out).stdout
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["no contrast", "moco", "lightly"] and all(name in printed for name in results)
    assert results["no contrast"]["ratio"] == 1.0
    assert all(row["milliseconds"] > 0 and row["ratio"] > 0 for row in results.values())


def test_a_process_sends_its_own_images_at_most_once(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "traffic.json"
    tool("benchmark", "traffic", "--processes", "3", "--rounds", "2", "--out", out)
    sent = json.loads(out.read_text())["results"]["3"]
    assert sent["exchange"] < 1 < 1.9 < sent["gather"]  # gathering sends a batch to each of the two others


def test_conversion_is_counted_beside_renaming_alone(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "convert.json"
    tool("benchmark", "convert", "--backbone", "resnet18", "--rounds", "1", "--out", out)
    result = json.loads(out.read_text())
    assert list(result["results"]) == ["with proof", "renaming alone"]
    assert result["settings"]["file_megabytes"] == pytest.approx(2 * 44.8 + 33.6, abs=1)  # two encoders and the queue
    for row in result["results"].values():
        assert row["cpu_seconds"] > 0 and 0 < row["peak_to_file"] < 3
    failed = tool("benchmark", "convert", "--file", tmp_path / "absent", code=2)
    assert "absent: no such file" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "batch_size is 0"),
        (["--rounds", "0"], "rounds is 0"),
        (["--queue-size", "4", "--batch-size", "8"], "queue_size is 4"),
        (["--backbone", "resnet1"], "resnet1"),
        (["--device", "gpu"], "--device"),
    ],
)
def test_bad_arguments_are_one_sentence(tool: Tool, arguments: list[str], message: str) -> None:
    failed = tool("benchmark", "step", *arguments, code=2)
    assert message in failed.stderr and "Traceback" not in failed.stderr
