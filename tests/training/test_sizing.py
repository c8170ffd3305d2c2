"""Recipes that fit small sets and CPUs, and the memory of a step."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from moco_plugin.backbones import create_backbone
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UsageError
from moco_plugin.methods import MoCo
from moco_plugin.pretraining import run as run_of_pretraining
from moco_plugin.pretraining import sizing
from moco_plugin.pretraining.config import PretrainConfig, config_dict, load_config, merge_config
from moco_plugin.pretraining.module import PretrainModule
from moco_plugin.pretraining.prepare import adapt_recipe, prepare_run, recipe_named_by
from moco_plugin.pretraining.sizing import check_memory, step_memory
from moco_plugin.schema import parse_overrides
from moco_plugin.tools.pretrain import main
from tests.conftest import TINY
from tests.helpers.processes import Tool


def adapted(images: int, cpu: bool, *overrides: str) -> tuple[PretrainConfig, list[str]]:
    """Return a method's recipe for so many images, and what was said."""
    given = parse_overrides(["data.root=x", *overrides])
    config = merge_config(recipe_named_by(given), given)
    return config, adapt_recipe(config, given, images, cpu)


def test_small_sets_take_the_authors_small_queue() -> None:
    config, (line,) = adapted(1000, False, "method=moco", "data.batch_size=64")
    assert (config.method_args["queue_size"], config.method_args["momentum"]) == (125, 0.99)
    assert "for 1000 images" in line and "method_args.queue_size=125 method_args.momentum=0.99" in line
    config, (line,) = adapted(100_000, False, "method=moco")
    assert line == "for 100000 images: method_args.queue_size=12500 (K at most an eighth of the images)"
    config, lines = adapted(600_000, False, "method=moco")
    assert lines == [] and config.method_args["queue_size"] == 65536


@pytest.mark.parametrize("native", [False, True])
def test_cpu_runs_are_small_and_what_is_named_stays(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native, "amx_bf16": False}, raising=False
    )
    config, lines = adapted(800, True, "method=moco", "data.image_size=160", "method_args.queue_size=512")
    assert (config.backbone, config.data.image_size, config.data.batch_size) == ("resnet18", 160, 64)
    assert config.schedule.epochs == 42 and config.method_args["queue_size"] == 512  # 42 x 12 steps
    precision = " trainer.precision=bf16-mixed" if native else ""
    assert f"for a CPU: backbone=resnet18{precision} data.batch_size=64 schedule.epochs=42" in lines[0]
    assert "momentum=0.99" in lines[1] and "queue_size" not in lines[1]
    config, lines = adapted(40_000, True, "method=moco", "trainer.precision=32-true")
    assert config.trainer["precision"] == "32-true"
    assert config.method_args["queue_size"] == 512 and "K at most an eighth of the images and 512 on a CPU" in lines[1]


def test_a_queue_holds_the_keys_of_a_symmetric_batch() -> None:
    config, _ = adapted(60, True, "method=moco", "method_args.symmetric=true")
    assert (config.data.batch_size, config.method_args["queue_size"]) == (56, 112)


def test_a_batch_is_no_larger_than_the_set() -> None:
    config, _ = adapted(90, False, "method=moco_v3")
    assert config.data.batch_size == 88


def test_config_as_printed_is_the_one_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(20):
        Image.new("RGB", (40, 30), (10 * index, 99, 50)).save(tmp_path / f"{index}.jpg")
    overrides = [f"data.root={tmp_path}", "trainer.accelerator=cpu"]
    assert main(["--print-config", *overrides]) == 0
    shown, run = capsys.readouterr().out, prepare_run(overrides)
    assert yaml.safe_load(shown) == config_dict(run.config) and run.config.data.batch_size == 16
    assert shown.startswith("".join(f"# {line}\n" for line in run.choices)) and len(run.choices) == 3
    assert run.images is not None and len(run.images) == 20
    assert main(["--print-config", "--config", "one_gpu", "data.root=x", "backbone_args.in_chans=4"]) == 0
    assert "# data.mean and data.std of the 4 channels are measured when" in capsys.readouterr().out
    assert main(["--print-config", "data.root=/nowhere"]) == 0
    assert "# not fitted to the set and the machine: /nowhere: found nothing" in capsys.readouterr().out


def test_memory_grows_with_the_batch_and_changes_nothing() -> None:
    model = MoCo(create_backbone("resnet18", image_size=64), 512, queue_size=64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, large = step_memory(model, 64, 16), step_memory(model, 64, 64)
    assert 1.3 * small < large < 4 * small
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_refused_with_the_batch_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cpu = MoCo(create_backbone("resnet18", image_size=64), 512, queue_size=64), torch.device("cpu")
    monkeypatch.setattr(sizing, "available_memory", lambda device: 10**9)
    config = load_config("moco_v2", ["data.root=x", "data.image_size=64", "data.batch_size=64"])
    assert "of 1.0 GB of free memory" in check_memory(config, model, cpu, 1, 1)
    config.data.batch_size = 1024
    with pytest.raises(UsageError, match=r"of 1.0 GB of free memory .+; choose data.batch_size=\d+") as refused:
        check_memory(config, model, cpu, 1, 1)
    fits = int(str(refused.value).split("data.batch_size=")[1].split(",")[0])
    assert fits % 16 == 0 and step_memory(model, 64, fits) <= 0.9e9 < step_memory(model, 64, fits + 128)


def test_memory_in_the_precision_of_the_run_and_of_all_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MoCo(create_backbone("resnet18", image_size=64), 512, queue_size=64)
    kinds = (("32-true", "cpu"), ("16-mixed", "cuda"), ("bf16-mixed", "cpu"), ("64-true", "cpu"))
    full, half, both, double = (step_memory(model, 64, 64, 3, *kind) for kind in kinds)
    assert 0.5 * full < half < 0.85 * full and full < both < double == pytest.approx(2 * full)
    monkeypatch.setattr(sizing, "available_memory", lambda device: 10**9)
    monkeypatch.setattr(sizing, "process_memory", lambda: 3 * 10**8)
    config = load_config("moco_v2", ["data.root=x", "data.image_size=64", "data.batch_size=1024"])
    said = check_memory(config, model, torch.device("cpu"), 16, 2)  # 8 machines: 64 images a process
    assert "of 1.0 GB of free memory (each process already uses 0.3 GB)" in said
    for network in model.modules_to_compile():
        network.compile(backend=lambda graph, inputs: pytest.fail("compiled"))
    assert step_memory(model, 64, 64) == full


def test_full_gpu_ends_in_a_sentence_with_the_batch_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(run_of_pretraining, "available_memory", lambda device: 10**8)
    monkeypatch.setattr(MoCo, "forward", full)
    assert main([*TINY, "knn.train=null", f"out={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert re.search(
        r"error: the GPU ran out of memory; choose data.batch_size=\d+, .*no checkpoint was written", error
    )


@pytest.mark.parametrize(("accelerator", "synchronised"), [("cpu", False), ("auto", True)])
def test_batch_norm_of_v3_is_that_of_the_runs_device(
    accelerator: str, synchronised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has a GPU, whether it is used or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    more = ["method=moco_v3", "backbone=resnet18", "data.root=x", f"trainer.accelerator={accelerator}"]
    module = PretrainModule(load_config("moco_v3_resnet", [*more, "method_args.hidden_dim=8"]))
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in module.modules()) == synchronised


def test_weights_of_a_vit_fit_images_of_another_size(tool: Tool, tmp_path: Path) -> None:
    for number in range(16):
        Image.new("RGB", (40, 30), (10 * number, 99, 50)).save(tmp_path / f"{number}.jpg")
    common = ["method=moco", f"data.root={tmp_path}", "backbone=test_vit", "data.batch_size=16", "schedule.steps=1"]
    common += ["schedule.interval=step", "trainer.accelerator=cpu", "backbone_args.dynamic_img_size=false"]
    tool("pretrain", *common, "data.image_size=32", f"out={tmp_path / 'small'}")
    weights = f"weights={tmp_path / 'small/checkpoints/last.ckpt'}"
    shown = tool("pretrain", *common, "data.image_size=64", weights, f"out={tmp_path / 'large'}").stdout
    assert "the position embedding is resampled to 4 x 4 patches" in shown


def test_weights_of_rgb_images_fit_images_of_other_channels(tool: Tool, tmp_path: Path) -> None:
    for number in range(16):
        np.save(tmp_path / f"{number}.npy", np.full((4, 40, 30), 10 * number, np.uint8))
    torch.manual_seed(0)
    rgb = timm.create_model("resnet18", num_classes=0, channels=(8, 8, 8, 8))
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    arguments = ["method=moco", f"data.root={tmp_path}", "backbone=resnet18", "backbone_args.channels=[8,8,8,8]"]
    arguments += ["backbone_args.in_chans=4", f"weights={tmp_path / 'rgb.pth'}", "optimizer.lr=0", "schedule.steps=1"]
    arguments += ["schedule.interval=step", "data.image_size=32", "trainer.accelerator=cpu", f"out={tmp_path / 'run'}"]
    shown = tool("pretrain", *arguments).stdout
    assert "conv1.weight is adapted from 3 to 4 channels" in shown
    found = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt").backbone.state_dict()["conv1.weight"]
    kernel = rgb.state_dict()["conv1.weight"]
    assert torch.allclose(found, 0.75 * torch.cat([kernel, kernel[:, :1]], dim=1))
