"""Linear classification and fine-tuning as published: the protocol's numbers, the frozen network, resume.

That training is a plain loop, on one process and several, is in tests/oracle/test_evaluations.py.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from moco_plugin.checkpoints.read import IMAGENET_VIEW, Checkpoint, read_checkpoint
from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.classifier import ClassifierModule, TrainingCrops, training_crop, weights_digest
from moco_plugin.evaluation.linear import starting_lr
from moco_plugin.evaluation.protocols import linear_protocol, load_protocol
from moco_plugin.tools.evaluate import main
from tests.conftest import TEST, TRAIN

SETS = ["--train", f"{TRAIN}[0:80]", "--test", f"{TEST}[0:37]"]
TOY = "data.batch_size=32 data.workers=0 schedule.epochs=2 schedule.milestones=[1] trainer.accelerator=cpu".split()


def weights(run: Path) -> list[str]:
    return ["--weights", f"{run}/checkpoints/last.ckpt"]


def rows(out: Path) -> list[dict[str, str]]:
    with open(out.with_name(f"{out.stem}_run") / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def checkpoint_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}_run") / "last.ckpt"


def state(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(checkpoint_of(out), weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def linear(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a linear classification of two epochs, of two batches of 32 and one of 16."""
    out = tmp_path_factory.mktemp("linear") / "linear.json"
    assert main(["linear", *weights(tiny_run), *SETS, "--out", str(out), *TOY]) == 0
    return out


@pytest.mark.parametrize(
    ("task", "name", "batch", "epochs", "lr", "factors"),
    [
        ("linear", "moco_v1", 256, 100, 30.0, {0: 1, 59: 1, 60: 0.1, 79: 0.1, 80: 0.01, 99: 0.01}),
        ("linear", "moco_v3_resnet", 1024, 90, 0.1 * 4, {0: 1, 45: 0.5, 30: 0.75}),
        ("linear", "moco_v3_vit", 1024, 90, 3 * 4, {0: 1, 45: 0.5, 60: 0.25}),
        ("finetune", "imagenet", 256, 100, 0.03, {0: 1, 69: 1, 70: 0.1, 89: 0.1, 90: 0.01}),
        ("finetune", "inaturalist", 256, 100, 0.025, {0: 1, 69: 1, 70: 0.1, 89: 0.1, 90: 0.01}),
    ],
)
def test_protocols_are_the_papers(
    task: str, name: str, batch: int, epochs: int, lr: float, factors: dict[int, float]
) -> None:
    config = load_protocol(task, name)
    linear = task == "linear"
    assert (config.frozen, config.data.batch_size, config.schedule.epochs) == (linear, batch, epochs)
    assert starting_lr(config, untrained=False) == pytest.approx(lr)
    assert starting_lr(config, untrained=True) == pytest.approx(lr if linear else 0.1)
    if linear:
        assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.weight_decay) == ("sgd", 0.9, 0.0)
        assert (config.data.min_scale, config.data.crop_ratio) == (0.08, 0.875)
    module = ClassifierModule(nn.Linear(2, 2), 2, 2, config, 1.0, IMAGENET_VIEW, (1, 1))
    module.total_steps = 10**6
    made = module.configure_optimizers()
    (group,) = made["optimizer"].param_groups
    lrs = {}
    for epoch in range(epochs):
        lrs[epoch] = group["lr"]
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert made["lr_scheduler"]["interval"] == "epoch"
    assert {epoch: lrs[epoch] for epoch in factors} == pytest.approx(factors)


def test_classifier_starts_as_the_papers_do() -> None:
    torch.manual_seed(0)
    config = load_protocol("linear", "moco_v1")
    module = ClassifierModule(nn.Linear(2, 2048), 2048, 1000, config, 30.0, IMAGENET_VIEW, (1, 1))
    weight = module.fc.weight.detach()
    assert float(weight.std()) == pytest.approx(0.01, rel=0.01)
    assert abs(float(weight.mean())) < 1e-4 and not module.fc.bias.any()
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


def test_protocol_by_the_checkpoints_method(tiny_run: Path) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    assert linear_protocol(checkpoint) == "moco_v1"
    v3 = Checkpoint(checkpoint.path, "", "", checkpoint.backbone, nn.Identity, method="moco_v3")
    assert linear_protocol(v3) == "moco_v3_resnet"
    with pytest.raises(UsageError, match="no config 'moco_v9'; shipped are moco_v1, moco_v3_resnet, moco_v3_vit"):
        load_protocol("linear", "moco_v9")
    with pytest.raises(UsageError, match=r"unknown config key 'data\.batch'; valid under data are image_size"):
        load_protocol("linear", "moco_v1", ["data.batch=3"])


def test_result_and_log_of_a_linear_classification(linear: Path, tiny_run: Path) -> None:
    result = json.loads(linear.read_text())
    assert (result["protocol"], result["recipe"], result["epochs"], result["steps"]) == ("linear", "moco_v1", 2, 6)
    assert result["settings"]["optimizer"]["lr"] == 30 and result["lr"] == pytest.approx(30 * 32 / 256)
    assert (result["train_images"], result["test_images"], result["image_size"]) == (80, 37, 32)
    backbone = read_checkpoint(tiny_run / "checkpoints" / "last.ckpt").backbone
    assert result["backbone_sha256"] == weights_digest(backbone)
    assert state(linear)["state_dict"].keys() == {"fc.weight", "fc.bias"}  # the frozen network is in its own checkpoint
    assert result["weights"] == f"{tiny_run}/checkpoints/last.ckpt" and len(result["weights_sha256"]) == 64
    log = rows(linear)
    lrs = [float(row["lr"]) for row in log if row["lr"]]
    assert lrs == pytest.approx([3.75, 0.375])  # one row per epoch of three steps, x0.1 after the first
    top1 = [float(row["top1"]) for row in log if row["top1"]]
    assert len(top1) == 2 and result["top1"] == top1[-1]
    assert result["top1"] == pytest.approx(100 * round(37 * result["top1"] / 100) / 37, abs=1e-4)


def test_backbone_that_changes_is_an_error(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(ClassifierModule, "train", nn.Module.train)  # batch norm gathers statistics
    out = tmp_path / "linear.json"
    epoch = ["schedule.epochs=1", "schedule.milestones=[0.5]"]
    assert main(["linear", *weights(tiny_run), *SETS, *TOY, *epoch, "--out", str(out)]) == 1
    assert "the frozen backbone changed while its classifier was trained" in capsys.readouterr().err
    assert not out.exists() and not checkpoint_of(out).exists()


@pytest.mark.parametrize("what", ["linear", "finetune"])
def test_evaluation_cut_off_within_an_epoch_ends_as_one_that_was_not(
    what: str, linear: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [what, *weights(tiny_run), *SETS, *TOY]
    whole, out = linear, tmp_path / "part.json"
    if what == "finetune":
        whole = tmp_path / "whole.json"
        assert main([*command, "--out", str(whole)]) == 0
    assert main([*command, "--out", str(out), "trainer.max_steps=4"]) == 0
    assert not out.exists() and f"stopped after step 4 of 6; {checkpoint_of(out)} is kept" in capsys.readouterr().out
    assert main([*command, "--out", str(out), "optimizer.lr=1"]) == 2
    assert (
        f"contains a run with other settings (optimizer.lr was {0.03 if what == 'finetune' else 30.0}, now 1.0)"
        in capsys.readouterr().err
    )
    assert main([*command, "--out", str(out)]) == 0
    assert f"resuming from {checkpoint_of(out)}, step 4" in capsys.readouterr().out
    first, second = (state(path) for path in (whole, out))
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
    momenta = [s["optimizer_states"][0]["state"] for s in (first, second)]
    for key, value in momenta[0].items():
        assert torch.equal(value["momentum_buffer"], momenta[1][key]["momentum_buffer"])
    assert json.loads(whole.read_text()) == json.loads(out.read_text())
    assert rows(whole) == rows(out)
    if what == "finetune":
        before = read_checkpoint(tiny_run / "checkpoints" / "last.ckpt").backbone.state_dict()
        after = {k.removeprefix("backbone."): v for k, v in first["state_dict"].items() if k.startswith("backbone.")}
        assert after.keys() == before.keys()
        assert [k for k, v in after.items() if torch.equal(v, before[k])] == []  # everything is trained


def test_label_share_draws_class_by_class(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "few.json"
    arguments = ["linear", *weights(tiny_run), "--train", TRAIN, *SETS[2:], *TOY, "data.label_share=0.05"]
    assert main([*arguments, "schedule.epochs=1", "schedule.milestones=[]", "--out", str(out), "--untrained"]) == 0
    result = json.loads(out.read_text())
    assert 20 <= result["train_images"] <= 40 and result["untrained"] and result["steps"] <= 2


def folder_of_images(folder: Path, classes: dict[str, int]) -> str:
    for name, count in classes.items():
        for index in range(count):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), index).save(path)
    return str(folder)


def test_corrupt_image_is_named_and_the_next_one_comes_with_its_own_label(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = folder_of_images(tmp_path / "pets", {"cat": 60, "dog": 60})
    (tmp_path / "pets/cat/9.png").write_bytes(b"\x89PNG")  # the last of the cats, in sorted order
    images = ImageSet(pets)
    crops = TrainingCrops(images, torch.tensor([0, 59, 60]), training_crop(8, 0.08), seed=0)
    assert [crops[position][1:] for position in (0, 1, 4)] == [(0, ""), *2 * [(1, f"{pets}/cat/9.png")]]
    sets = ["--train", pets, "--test", pets]
    run = ["linear", *weights(tiny_run), *sets, *TOY, "schedule.epochs=1", "schedule.milestones=[]"]
    assert main(run) == 0
    assert capsys.readouterr().err.count(f"skipped: {pets}/cat/9.png cannot be decoded (1 so far)") == 2  # train, test
    for index in (3, 4):
        (tmp_path / f"pets/dog/{index}.png").write_bytes(b"")
    assert main(run) == 1
    assert "of 120 images cannot be decoded, more than 1%" in capsys.readouterr().err


def test_mistakes_end_in_one_sentence(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = folder_of_images(tmp_path / "flat", {".": 2})
    pets = folder_of_images(tmp_path / "pets", {"cat": 2, "dog": 2})
    birds = folder_of_images(tmp_path / "birds", {"cat": 2, "owl": 2})
    for command, train, test, more, message in (
        ("linear", flat, flat, [], f"{flat} has no labels; expected a folder of one subfolder per class"),
        ("finetune", pets, flat, [], f"{flat} has no labels"),
        ("lowshot", flat, pets, [], f"{flat} has no labels"),
        ("linear", pets, birds, [], f"differ: only {pets} has dog; only {birds} has owl"),
        ("knn", pets, birds, [], f"differ: only {pets} has dog; only {birds} has owl"),
        ("knn", pets, pets[:-4] + "pets/", ["--k", "2", "5"], "k is 5 with 4 labelled training images; choose k"),
        ("retrieve", pets, pets, ["--k", "4"], "k is 4 with 3 labelled training images besides the image itself"),
        ("linear", pets, pets, ["trainer.devces=2"], "unknown key trainer.devces"),
        ("linear", pets, pets, ["schedule.interval=week"], "schedule.interval is week"),
        ("finetune", pets, pets, ["--protocol", "imagnet"], "did you mean 'imagenet'?"),
        ("linear-fast", pets, pets, ["--lrs", "0"], "--lrs has 0; expected learning rates above 0"),
        ("knn", pets, pets, ["--temperature", "0"], "--temperature is 0.0; expected a value above 0"),
    ):
        code = main([command, *weights(tiny_run), "--train", train, "--test", test, *more])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1 and message in error, error
