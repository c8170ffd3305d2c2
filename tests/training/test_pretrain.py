"""Pre-training through the tool: what it writes, how it goes on, what it refuses."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moco_plugin.data.images import ImageSet
from moco_plugin.pretraining.module import PretrainModule
from moco_plugin.pretraining.prepare import prepare_run
from moco_plugin.tools.pretrain import main
from tests.conftest import TINY, TRAIN
from tests.helpers.foreign import official_v3_vit
from tests.helpers.processes import Tool


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
    board = EventAccumulator(str(tiny_run / "tensorboard")).Reload()
    scalars = {"train/loss", "train/contrast_top1", "features/standard_deviation", "features/knn_top1"}
    assert scalars <= set(board.Tags()["scalars"]) and "hp_metric" not in board.Tags()["scalars"]
    assert board.Tags()["images"] == ["views/pairs"]
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


def test_trainer_arguments_that_name_objects(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["trainer.precision=64-true", "trainer.enable_progress_bar=false", "trainer.logger=csv"]
    arguments += ["trainer.callbacks=[LearningRateMonitor]", "trainer.profiler=simple"]
    shown = tool("pretrain", *TINY, f"out={out}", *arguments, "trainer.max_epochs=1").stdout
    assert "the same command resumes it" in shown and not (out / "result.json").exists()
    assert "Epoch 0" not in shown and (out / "metrics.csv").is_file() and (out / "lightning_logs").is_dir()
    assert all(value.dtype == torch.float64 for value in weights(out).values() if value.is_floating_point())


def test_deep_images_train_as_the_same_in_8_bits(tool: Tool, tmp_path: Path) -> None:
    """PNG folders, loader processes on, through pre-training and evaluation."""
    images, results = ImageSet(TRAIN), []
    for depth in (8, 16):
        folder = tmp_path / f"photos_{depth}"
        for index in range(32):
            values = np.asarray(images.load(index).convert("L"))
            values = values if depth == 8 else values.astype(np.uint16) * 257
            path = folder / f"class_{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
        arguments = [text for text in TINY if not text.startswith(("data.root", "views.engine", "data.workers", "knn"))]
        out = tmp_path / f"run_{depth}"
        tool("pretrain", *arguments, f"data.root={folder}", "data.workers=2", f"out={out}", "trainer.max_epochs=1")
        result = tmp_path / f"{depth}.json"
        sets = ["--train", folder, "--test", folder, "--k", "3", "--out", result]
        tool("evaluate", "knn", "--weights", out / "checkpoints" / "last.ckpt", *sets)
        results.append((weights(out), json.loads(result.read_text())["top1"]))
    (first, top1), (second, other) = results
    assert all(torch.equal(first[name], second[name]) for name in first) and top1 == other


def test_weights_of_another_wiring_are_refused(tool: Tool, tmp_path: Path) -> None:
    """v3's ViT-S has 12 heads and timm's 6; all shapes are equal."""
    official_v3_vit().write(tmp_path / "v3.pth.tar")
    arguments = ["method=moco_v3", "backbone=vit_small_patch16_224", "backbone_args.depth=2", "data.image_size=64"]
    arguments += [f"data.root={TRAIN}[0:32]", f"weights={tmp_path}/v3.pth.tar", f"out={tmp_path}/run"]
    refused = tool("pretrain", *arguments, "backbone_args.num_heads=6", code=2)
    assert "blocks.0.attn.num_heads 12 and backbone=vit_small_patch16_224 has 6" in refused.stderr
    assert "backbone_args.num_heads=12" in refused.stderr and not (tmp_path / "run").exists()


def test_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    failed = tool("pretrain", *TINY, f"out={out}", "optimizer.lr=1e30", "save_every=1", code=1)
    assert "not finite at step" in failed.stderr and "the last good checkpoint was kept" in failed.stderr
    assert all(value.isfinite().all() for value in weights(out).values())


def test_time_limit_counts_anew_when_a_run_goes_on(tool: Tool, tmp_path: Path) -> None:
    arguments = [*TINY, f"out={tmp_path / 'run'}", "knn.train=null"]
    stopped = tool("pretrain", *arguments, "trainer.max_time={seconds: 0}")
    assert "stopped after step 0 of 8; no checkpoint was written yet" in stopped.stdout
    assert "8 steps" in tool("pretrain", *arguments, "trainer.max_time={minutes: 9}").stdout
    assert (tmp_path / "run" / "result.json").exists()
    wrong = tool("pretrain", *arguments, "trainer.max_time=soon", "--overwrite", code=2).stderr
    assert "trainer.max_time is 'soon'; expected DD:HH:MM:SS" in wrong


def test_accumulated_gradients_make_one_step(tool: Tool, tmp_path: Path) -> None:
    shown = tool("pretrain", *TINY, f"out={tmp_path}/run", "trainer.accumulate_grad_batches=2").stdout
    assert "learning rate 0.00375 = 0.03 x 32/256" in shown
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["epochs"], result["steps"]) == (2, 4)
    assert int(weights(tmp_path / "run")["method.queue.filled"]) == 64


def test_compile_takes_both_encoders() -> None:
    module = PretrainModule(prepare_run([*TINY, "compile=true"]).config)
    compiled = [n for n, child in module.method.named_children() if child._compiled_call_impl is not None]
    assert compiled == ["encoder_q", "encoder_k"]


def test_start_from_a_checkpoint(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    tool("pretrain", *TINY, f"out={tmp_path}/run", f"weights={checkpoint}", "optimizer.lr=0", "trainer.max_epochs=1")
    before, after = weights(tiny_run), weights(tmp_path / "run")
    names = [name for name in before if name.startswith("method.encoder_q.backbone") and name.endswith("weight")]
    assert len(names) > 20 and all(torch.equal(before[name], after[name]) for name in names)
    refused = tool(
        "pretrain", *TINY, f"out={tmp_path}/other", f"weights={checkpoint}", "backbone_args.channels=[8,8,8,8]", code=2
    )
    assert "does not fit backbone=resnet18" in refused.stderr


def test_folder_of_images_with_one_that_is_broken(tool: Tool, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "deep"
    photos.mkdir(parents=True)
    for number in range(120):
        Image.effect_noise((40, 30), 80).convert("RGB").save(photos / f"{number:03}.png")
    (photos / "007.png").write_bytes(b"\x89PNG")
    more = "data.image_size=32 data.batch_size=24 method_args.queue_size=64 schedule.epochs=1 data.workers=2"
    arguments = ["method=moco_v1", "backbone=resnet18", "backbone_args.channels=[8,16,24,32]", *more.split()]
    arguments += [f"data.root={tmp_path}/photos", f"out={tmp_path}/run"]
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
        (["data.batch_size=128", "method_args.queue_size=256"], "contains 64 images; choose a smaller batch"),
        (["trainer.devces=1"], "unknown key trainer.devces"),
        (["trainer.enable_checkpointing=false"], "a run is resumed from its checkpoint"),
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp; expected auto, ddp"),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn; expected auto, ddp, single_device"),
        (["trainer.logger=wandbb"], "did you mean 'wandb'?"),
        (["trainer.callbacks=[RichProgresBar]"], "Lightning has no 'RichProgresBar'; did you mean 'RichProgressBar'"),
        (["trainer.profiler=simpel"], "trainer.profiler=simpel; expected simple, advanced"),
        (["trainer.precision=16"], "choose 16-mixed, bf16-mixed"),
        (["trainer.precision=16-true"], "choose 16-mixed, bf16-mixed"),
        (["trainer.plugins=x"], "trainer.plugins=x cannot be combined"),
        (["trainer.accelerator=nosuch"], "trainer: "),
        (["data.root=/nowhere"], "/nowhere: found nothing, expected a folder of images"),
        (["data.root=/proc/version"], "/proc/version: found a file"),
        (["knn.train=/proc/version"], "/proc/version: found a file"),
        (["knn.features=head"], "knn.features is 'head'; expected backbone or encoder"),
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
        assert "contains other files and was kept" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_run_goes_on_with_fewer_processes(tool: Tool, tmp_path: Path) -> None:
    """Without batch norm, the number of processes changes nothing but the rounding."""
    more = "backbone_args.norm_layer=groupnorm1 views.engine=fast data.workers=0 schedule.epochs=1 knn.train=null"
    arguments = [*TINY, *more.split(), "trainer.accelerator=cpu", "trainer.precision=32-true"]
    for out, processes, *stop in (("one", 1), ("both", 2, "trainer.max_steps=2"), ("both", 1)):
        tool("pretrain", *arguments, f"trainer.devices={processes}", f"out={tmp_path}/{out}", *stop)
    torch.testing.assert_close(weights(tmp_path / "both"), weights(tmp_path / "one"), rtol=1e-3, atol=1e-5)
    one, both = ([float(row["loss"]) for row in rows(tmp_path / n) if row["loss"]] for n in ("one", "both"))
    assert one == pytest.approx(both, rel=1e-4) and len(one) == 4
