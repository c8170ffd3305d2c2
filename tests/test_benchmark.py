"""tools/benchmark.py as a user types it, at toy size: what is measured, not how fast it was."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.processes import Tool


def test_step_is_timed_beside_its_peers(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    sizes = ["--image-size", "32", "--batch-size", "8", "--queue-size", "64", "--rounds", "2"]
    printed = tool("benchmark", "step", *sizes, "--out", out).stdout
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["bare encoders", "plain batch norm", "groups", "lightly"]
    assert results["bare encoders"]["ratio"] == 1.0 and all(name in printed for name in results)
    assert all(row["cpu_milliseconds"] > 0 and row["ratio"] > 0 for row in results.values())


def test_views_and_contrast_are_timed_beside_their_peers(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    tool("benchmark", "views", "--image-size", "32", "--images", "2", "--rounds", "1", "--out", out)
    results = json.loads(out.read_text())["results"]
    assert {"released", "lightly", "LightlyTrain", "reference", "fast", "device (loader)"} < results.keys()
    tool("benchmark", "contrast", "--batch-size", "4", "--queue-size", "2048", "--rounds", "1", "--out", out)
    assert list(json.loads(out.read_text())["results"]) == ["released", "ours", "two products"]


def test_cost_model_names_the_limit(tool: Tool) -> None:
    slow_network = ["--gpus", "1", "64", "--gigabytes-per-second", "0.01"]
    printed = tool("benchmark", "cost", "--backbone", "resnet50", *slow_network).stdout.splitlines()
    assert '"gigaflops": 8.2' in printed[-1] and '"megaparameters": 23.5' in printed[-1]
    assert "limit loading" in tool("benchmark", "cost", "--cores", "1").stdout.splitlines()[0]
    assert "limit traffic" in printed[1]


@pytest.mark.parametrize(("engine", "channels"), [("fast", 3), ("device", 3), ("device", 4)])
def test_load_names_the_part_that_limits_a_run(tool: Tool, tmp_path: Path, engine: str, channels: int) -> None:
    for number in range(4):
        if channels == 3:
            Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.jpg")
        else:
            np.save(tmp_path / f"{number}.npy", np.full((30, 40, channels), 40 * number, np.uint8))
    settings = [f"data.root={tmp_path}", "data.batch_size=4", "data.image_size=32", f"views.engine={engine}"]
    small = ["backbone=resnet18", "method_args.queue_size=8", "method_args.batch_norm_groups=1"]
    small.append(f"backbone_args.in_chans={channels}")
    printed = tool("benchmark", "load", "method=moco", *settings, *small, "--batches", "1").stdout
    assert all(part in printed for part in ("read", "decode", "views", "step", "limits this run", "change: "))


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


def test_the_check_of_gpus_is_rehearsed(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "gpu_check.json"
    printed = tool("benchmark", "gpu-check", "--cpu", "--out", out).stdout
    results = json.loads(out.read_text())["results"]
    expected = {"batch norm", "contrast, T 0.01", "step, precision float16", "evaluate", "convert"}
    assert expected | {"train_net, mixed precision", "predict"} < results.keys()
    assert all(row["passed"] for row in results.values()), results
    assert "| batch norm | yes |" in printed
