"""Runs that fail, or must not start, say why in one sentence and keep what was saved."""

import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image

from moco_plugin.errors import UsageError
from moco_plugin.runs.run_folder import Identity, SavedRun, differences, locked
from moco_plugin.tools.pretrain import main
from tests.conftest import TRAIN
from tests.helpers.processes import Tool, output_of, start_tool

FAULTS = Path(__file__).with_name("run_with.py")
RUN = (
    "method=moco backbone=resnet18 backbone_args.channels=[8,16,24,32] data.image_size=32 data.batch_size=8 "
    "data.workers=1 method_args.queue_size=32 method_args.dim=16 schedule.epochs=2 trainer.log_every_n_steps=1 "
    "trainer.accelerator=cpu"
).split()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        Image.effect_noise((40, 36), 80).convert("RGB").save(folder / f"{number:02}.jpg")
    return folder


@pytest.fixture
def command(photos: Path, tmp_path: Path) -> list[str]:
    return [*RUN, f"data.root={photos}", f"out={tmp_path}/run"]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def join(process: BaseProcess) -> tuple[int | None, str]:
    process.join(120)
    assert process.exitcode is not None, "still running"
    return process.exitcode, output_of(process)[1]


def one_sentence(errors: str) -> str:
    """Return the only line that starts with "error:"."""
    assert "Traceback" not in errors, errors
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    return line


def test_changed_images_are_refused(command: list[str], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "trainer.max_steps=2"]) == 0
    assert "stopped after step 2 of 6" in capsys.readouterr().out
    (photos / "00.jpg").rename(photos / "99.jpg")
    assert "the images of data.root changed: other names or labels than when" in refused(capsys, command)
    for number in range(100, 110):
        shutil.copy(photos / "01.jpg", photos / f"{number}.jpg")
    (photos / "01.jpg").unlink()
    error = refused(capsys, command)
    assert "30 images when" in error and "and 39 now; restore them" in error


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.accumulate_grad_batches=2",
        "trainer.precision=64-true",
        "trainer.gradient_clip_val=1.0",
        "trainer.limit_train_batches=2",
        "data.image_size=40",
    ],
)
def test_settings_that_change_the_result_may_not_change(
    setting: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "trainer.max_steps=2"]) == 0
    capsys.readouterr()
    key, value = setting.split("=")
    assert f"({key} was " in (error := refused(capsys, [*command, setting])) and f"now {value})" in error
    free = ["data.workers=2", "save_every=1", "trainer.max_time={hours: 1}", "timeout=60"]
    assert main([*command, "trainer.max_steps=3", *free]) == 0


def test_what_was_typed_is_named_before_what_follows_from_it() -> None:
    then = Identity({"schedule": {"epochs": 42, "steps": None}, "backbone": "x"}, {})
    now = Identity({"schedule": {"epochs": 200, "steps": 60}, "backbone": "x"}, {})
    with pytest.raises(UsageError, match=r"\(schedule.steps was None, now 60, and 1 more\)"):
        SavedRun(Path("run/last.ckpt"), then.state()).check_same(now)


def test_second_run_in_a_folder_is_refused_until_the_first_ends(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (first,) = start_tool(tmp_path, FAULTS, "pause", "2", *command)
    wait_for(run / "paused")
    for flags in ([], ["--overwrite"]):
        assert f"{run} is in use by process {first.pid} on" in refused(capsys, [*command, *flags])
    first.kill()
    first.join()
    (run / "paused").unlink()
    assert main(command) == 0  # at once, though the loader processes of the first may still be ending
    assert (run / "result.json").exists()


def test_a_locked_or_full_output_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    config, full = tmp_path / "config.yaml", tmp_path / "full.json"
    config.write_text(f"method: moco\ndata:\n  root: {TRAIN}\nout: {tmp_path / 'run'}\n")
    full.touch()
    evaluate = ["--weights", str(config), "--train", TRAIN, "--test", TRAIN, "--out"]
    cases = [
        ("pretrain", ["--config", str(config)], "run is in use"),
        ("evaluate", ["linear", *evaluate, str(tmp_path / "a.json")], "a_run is in use"),
        ("evaluate", ["finetune", *evaluate, str(full)], "full.json exists already"),
    ]
    with locked(tmp_path / "run"), locked(tmp_path / "a_run"):
        for name, arguments, message in cases:
            code = (
                f"import sys, moco_plugin.tools.{name} as tool; print(tool.main({arguments}), 'torch' in sys.modules)"
            )
            ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert ran.stdout == "2 False\n" and message in ran.stderr, ran


def test_stale_files_of_killed_processes_are_removed(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*command, "trainer.max_steps=2"]) == 0
    stale = [run / "checkpoints" / ".last.abc123.ckpt", run / ".metrics.abc123.csv", run / ".config.a.yaml"]
    for path in stale:
        path.write_bytes(b"part of a file")
    assert main([*command, "trainer.max_steps=3"]) == 0
    assert not any(path.exists() for path in stale)


def test_overwrite_removes_the_run_and_nothing_else(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*command, "trainer.max_steps=3"]) == 0
    (run / "notes.txt").write_text("mine")
    (run / "config.yaml").unlink()  # as an interrupted --overwrite of an earlier version left it
    assert main([*command, "trainer.max_steps=2", "method_args.dim=8", "--overwrite"]) == 0
    assert (run / "notes.txt").read_text() == "mine" and (run / "config.yaml").exists()


def test_full_disk_ends_in_one_sentence(command: list[str], tool: Tool, tmp_path: Path) -> None:
    failed = tool(FAULTS, "size", 200_000, *command, code=1)
    error = one_sentence(failed.stderr)
    assert f"cannot write {tmp_path}/run/checkpoints/last.ckpt: File too large; free some space" in error
    assert os.listdir(tmp_path / "run" / "checkpoints") == []


def test_deleted_folder_ends_in_one_sentence(command: list[str], tool: Tool, tmp_path: Path) -> None:
    failed = tool(FAULTS, "delete", 3, *command, code=1)
    assert f"{tmp_path}/run was deleted while the run was writing to it" in one_sentence(failed.stderr)
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "out=/proc/run"]) == 1
    assert "cannot write /proc/run: " in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("fault", ["crash", "freeze"])
def test_process_that_ends_or_freezes_ends_the_others(fault: str, command: list[str], tmp_path: Path) -> None:
    arguments = [*command, "trainer.devices=2", "save_every=2", "timeout=5", "trainer.strategy=ddp"]
    first, second = start_tool(tmp_path, FAULTS, fault, "3", *arguments, processes=2)
    code, errors = join(first)
    second.kill()
    second.join()
    error = one_sentence(errors)
    expected = "another training process ended" if fault == "crash" else "did not respond for 5 s"
    assert code == 1 and expected in error, error
    assert f"{tmp_path}/run/checkpoints/last.ckpt is kept and the same command resumes it" in error


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_signal_to_all_processes_saves_and_stops(name: str, command: list[str], tmp_path: Path) -> None:
    """A terminal and a job scheduler send signals to the loader processes as well."""
    run, number = tmp_path / "run", getattr(signal, name)
    (process,) = start_tool(tmp_path, FAULTS, "pause", "2", *command)
    wait_for(run / "paused")
    signal_loaders_and(process, number)
    (run / "paused").unlink()
    code, errors = join(process)
    assert code == 128 + number and "Traceback" not in errors
    assert f"stopped by {name} after step 2; {run}/checkpoints/last.ckpt is kept" in errors
    assert main(command) == 0


def test_second_interrupt_stops_at_once(command: list[str], tmp_path: Path) -> None:
    (process,) = start_tool(tmp_path, FAULTS, "pause", "2", *command)
    wait_for(tmp_path / "run" / "paused")
    signal_loaders_and(process, signal.SIGINT)
    time.sleep(0.5)
    signal_loaders_and(process, signal.SIGINT)
    code, errors = join(process)
    assert code == 130 and "Traceback" not in errors and errors.splitlines()[-1] == "interrupted"


def signal_loaders_and(process: BaseProcess, number: int) -> None:
    """Send a signal to a process and its children, as a terminal does with Ctrl-C."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children, "no loader process"
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, number)


def test_changed_settings_are_named_by_their_full_key() -> None:
    assert differences({"a": {"b": 1, "c": {}}, "d": 0}, {"a": {"b": 2, "c": {"e": "x"}}, "d": None}) == [
        "a.b was 1, now 2",
        "a.c.e was not set, now x",
        "d was 0, now None",
    ]
    assert differences({"a": {}}, {}) == []
