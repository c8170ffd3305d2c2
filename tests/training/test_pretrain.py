"""Pre-training through the tool: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from moco_plugin.tools.pretrain import main
from PIL import Image

from tests.conftest import TINY, TRAIN, Tool


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_run_writes_logs_monitor_and_a_safe_checkpoint(tiny_run: Path) -> None:
    log = {int(row["step"]): row for row in rows(tiny_run)}
    for step in range(8):
        for name in ("loss", "top1", "top5", "lr", "images_per_second", "feature_std", "queue_filled"):
            assert float(log[step][name]) >= 0, name
    assert float(log[0]["lr"]) == pytest.approx(0.03 * 16 / 256)
    assert float(log[4]["lr"]) == pytest.approx(0.03 * 16 / 256 / 2)  # cosine by epoch: half after one of two
    assert [step for step in log if log[step]["knn_top1"]] == [0, 4, 8]
    assert list((tiny_run / "tensorboard").glob("events.*"))
    result = json.loads((tiny_run / "result.json").read_text())
    assert (result["epochs"], result["steps"]) == (2, 8)
    state = weights(tiny_run)
    assert int(state["method.queue.pointer"]) == 8 * 16 % 64
    assert int(state["method.queue.filled"]) == 64


def test_finished_run_is_left_alone_and_another_config_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tiny_run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert main([*TINY, f"out={tiny_run}"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*TINY, "optimizer.lr=0.5", f"out={tiny_run}"]) == 2
    refused = capsys.readouterr().err
    assert "(optimizer.lr was 0.03, now 0.5)" in refused and "--overwrite" in refused
    assert (tiny_run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_interrupted_run_ends_as_the_uninterrupted_one(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = tool("pretrain", *TINY, f"out={out}", "trainer.max_epochs=1")
    assert "the same command goes on" in stopped.stdout and not (out / "result.json").exists()
    assert "going on from" in tool("pretrain", *TINY, f"out={out}").stdout
    expected, found = weights(tiny_run), weights(out)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    kept = [name for name in rows(out)[0] if name != "images_per_second"]
    assert [[row[k] for k in kept] for row in rows(out)] == [[row[k] for k in kept] for row in rows(tiny_run)]


def test_folder_of_images_with_one_that_is_broken(tool: Tool, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "deep"
    photos.mkdir(parents=True)
    for number in range(120):
        Image.effect_noise((40, 30), 80).convert("RGB").save(photos / f"{number:03}.png")
    (photos / "007.png").write_bytes(b"\x89PNG")
    arguments = [
        "method=moco_v1", "backbone=resnet18", "backbone_args.channels=[8,16,24,32]", f"data.root={tmp_path}/photos",
        "data.image_size=32", "data.batch_size=24", "method_args.queue_size=64", "schedule.epochs=1",
        f"out={tmp_path}/run", "data.workers=2",
    ]  # fmt: skip
    result = tool("pretrain", *arguments)
    assert f"skipped: {photos}/007.png cannot be decoded (1 so far)" in result.stderr
    for number in (8, 9):
        (photos / f"{number:03}.png").write_bytes(b"")
    failed = tool("pretrain", *arguments, "--overwrite", code=1)
    assert "of 120 images cannot be decoded, more than 1%" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=moko"], "unknown method 'moko'"),
        (["backbone=resnet81"], "did you mean 'resnet18'"),
        (["data.batch_size=20"], "choose a batch of 16 or 24"),
        (["data.batch_size=128", "method_args.queue_size=256"], "holds 64 images; choose a smaller batch"),
        (["trainer.devces=1"], "unknown key trainer.devces"),
        (["data.root=/nowhere"], "/nowhere: found nothing, expected a folder of images"),
        (["data.root=/proc/version"], "/proc/version: found a file"),
        (["knn.train=/proc/version"], "/proc/version: found a file"),
        (["schedule.name=cosin"], "unknown schedule.name 'cosin'"),
        (["data.view_args.hflip=1"], "unknown key data.view_args.hflip"),
        (["method_args.queue_size=8"], "queue_size is 8, below the 16 keys of a batch"),
    ],
)
def test_mistakes_end_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*TINY, f"out={tmp_path}/run", *arguments])
    error = capsys.readouterr().err
    assert code in (1, 2) and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "run").exists()


def test_folder_of_something_else_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for flags in ([], ["--overwrite"]):
        assert main([*TINY, f"out={tmp_path}", *flags]) == 2
        assert "holds files of something else and was kept" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_print_config(tool: Tool) -> None:
    shown = tool(
        "pretrain", "--print-config", "--config", "moco_v1_resnet50_200ep", f"data.root={TRAIN}"
    ).stdout
    assert "milestones:" in shown and "temperature: 0.07" in shown


def test_two_processes_train_what_one_does(tool: Tool, tmp_path: Path) -> None:
    """Without batch norm, the number of processes changes nothing but the rounding."""
    arguments = [
        *TINY, "backbone_args.norm_layer=groupnorm1", "data.batched_views=false", "data.workers=0",
        "schedule.epochs=1", "knn.train=null", "trainer.accelerator=cpu",
    ]  # fmt: skip
    for processes in (1, 2):
        shown = tool(
            "pretrain", *arguments, f"trainer.devices={processes}", f"out={tmp_path}/{processes}"
        ).stdout
        assert f"batch 16 on {processes} process" in shown
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    losses = [[float(row["loss"]) for row in rows(tmp_path / str(n)) if row["loss"]] for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
