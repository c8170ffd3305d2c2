"""method=moco inside LightlyTrain: real runs of LightlyTrain at toy size."""

from __future__ import annotations

import copy
import importlib
import json
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.methods import build_method
from moco_plugin.methods.batch_norm import SplitBatchNorm
from tests.processes import Tool

lightly_train = pytest.importorskip("lightly_train")
integration = importlib.import_module("moco_plugin.integrations.lightly_train")
helpers = importlib.import_module("lightly_train._commands.train_helpers")
packages = importlib.import_module("lightly_train._models.package_helpers")

CHANNELS = [8, 16, 24, 32]
TINY = {
    "model": "timm/resnet18",
    "model_args": {"channels": CHANNELS},
    "batch_size": 16,
    "epochs": 2,
    "num_workers": 0,
    "accelerator": "cpu",
    "devices": 1,
    "transform_args": {"image_size": [32, 32]},
    "method_args": {"queue_size": 48, "dim": 16},
}


def as_arguments(values: dict[str, Any]) -> list[str]:
    """As on the command line."""
    return [f"{key}={json.dumps(value) if isinstance(value, dict) else value}" for key, value in values.items()]


def network(name: str = "resnet18", **arguments: Any) -> Any:
    """A network as LightlyTrain wraps it."""
    return packages.get_wrapped_model(f"timm/{name}", num_input_channels=3, model_args=arguments)


def make(
    name: str,
    wrapped: Any = None,
    optim: str = "auto",
    optim_args: dict[str, Any] | None = None,
    images: int = 1_000_000,
    epochs: int = 200,
    batch: int = 256,
    **method_args: Any,
) -> Any:
    """One of our methods, built by LightlyTrain's functions in the order of its command."""
    wrapped = network(channels=CHANNELS) if wrapped is None else wrapped
    cls = helpers.method_helpers.get_method_cls(name)
    optimizer = helpers.get_optimizer_args(helpers.get_optimizer_type(optim), optim_args, cls, wrapped)
    scaling = helpers.get_scaling_info(images, epochs)
    arguments = helpers.get_method_args(cls, method_args, scaling, optimizer, wrapped)
    embedding = helpers.get_embedding_model(wrapped)
    method = helpers.get_method(cls, arguments, optimizer, embedding, batch, 3)
    method.trainer = SimpleNamespace(
        global_step=0, estimated_stepping_batches=10 * epochs, max_epochs=epochs, accumulate_grad_batches=1
    )
    return method


@pytest.fixture(scope="module")
def run(photos: Path, tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps, made with the tool."""
    out = tmp_path_factory.mktemp("lightly_train") / "run"
    tool("lightly_train", "pretrain", f"out={out}", f"data={photos}/train", "method=moco", *as_arguments(TINY))
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The method's state in a run's last checkpoint."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    return {key.removeprefix("method."): value for key, value in state.items()}


def test_command_trains(run: Path) -> None:
    state = weights(run)
    assert state["queue.filled"] == 48 and state["queue.pointer"] == 8 * 16 % 48
    torch.testing.assert_close(state["queue.keys"].norm(dim=1), torch.ones(48))
    q, k = (state[f"encoder_{e}.backbone.embedding_model.wrapped_model._model.layer4.1.conv2.weight"] for e in "qk")
    assert 0 < (q - k).norm() < 0.1 * q.norm()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "top1", "top5", "feature_std", "queue_filled"} <= set().union(*rows)
    # cosine per epoch from 0.03 at 256, no warm-up
    rates = [row["lr-SGD/params"] for row in rows if "lr-SGD/params" in row]
    assert rates == pytest.approx([0.03 * 16 / 256, 0.03 * 16 / 256 / 2])
    assert list(run.glob("events.out.tfevents*"))


def test_export_is_the_query_encoders_backbone(run: Path, tmp_path: Path) -> None:
    exported = torch.load(run / "exported_models" / "exported_last.pt", weights_only=True)
    model = timm.create_model("resnet18", channels=CHANNELS)
    model.load_state_dict(exported)
    prefix = "encoder_q.backbone.embedding_model.wrapped_model._model."
    torch.testing.assert_close(
        exported, {k.removeprefix(prefix): v for k, v in weights(run).items() if k.startswith(prefix)}
    )
    lightly_train.export(out=tmp_path / "model.pt", checkpoint=run / "checkpoints" / "last.ckpt", format="torch_model")
    whole = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(whole.state_dict(), exported)
    assert not any(isinstance(layer, SplitBatchNorm) for layer in whole.modules())


def test_export_and_checkpoint_convert_to_detectron2(run: Path, tmp_path: Path, tool: Tool) -> None:
    shown = tool("convert_to_d2", run / "exported_models" / "exported_last.pt", tmp_path / "out.pkl").stdout
    assert "resnet18" in shown and (tmp_path / "out.pkl").exists()
    state = weights(run)
    for encoder in ("query", "key"):
        read = read_checkpoint(run / "checkpoints" / "last.ckpt", encoder).backbone.state_dict()
        prefix = f"encoder_{encoder[0]}.backbone.embedding_model.wrapped_model._model."
        for name, value in read.items():
            torch.testing.assert_close(value, state[prefix + name], rtol=0, atol=0)


def test_checkpoint_opens_without_moco_plugin(run: Path) -> None:
    with zipfile.ZipFile(run / "checkpoints" / "last.ckpt") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        texts = [str(argument) for _, argument, _ in pickletools.genops(archive.read(name)) if argument is not None]
    assert any("lightly_train._models" in text for text in texts)
    assert not [text for text in texts if text.startswith("moco_plugin")]


def test_command_says_what_is_wrong(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str, code: int) -> str:
        tiny = {
            **TINY,
            "out": tmp_path / str(len(list(tmp_path.iterdir()))),
            "data": photos / "train",
            "method": "moco",
        }
        given = dict(argument.split("=", 1) for argument in arguments)
        top = {key: value for key, value in given.items() if "." not in key}
        rest = [f"{key}={value}" for key, value in given.items() if "." in key]
        try:
            result = integration.run(["pretrain", *as_arguments({**tiny, **top}), *rest])
        except UserError as error:
            return str(error)
        assert result == code
        return capsys.readouterr().err

    assert "unknown key method_args.queue_sise; moco takes" in said("method_args.queue_sise=48", code=2)
    assert "momentum is 2" in said("method_args.momentum=2.0", code=2)
    assert "queue_size" in (shown := said("method_args.queue_size=many", code=2)) and "Traceback" not in shown
    assert "queue_size is 8, below the 16 keys of a batch" in said("method_args.queue_size=8", code=2)
    assert "batch_size is 20, which cannot be split evenly over 1 process" in said("batch_size=20", code=2)
    assert "choose a batch of 16 or 24" in said("batch_size=20", code=2)
    assert "is not empty" in said(f"out={run}", code=2)
    assert "Method 'mocco' is unknown" in said("method=mocco", code=2)


def test_methods_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = helpers.method_helpers._method_name_to_cls
    integration.register()
    assert helpers.method_helpers._method_name_to_cls is before
    assert integration.run(["list_methods"]) == 0
    shown = capsys.readouterr().err.split()
    shown = [name.removesuffix("\x1b[0m") for name in shown]  # LightlyTrain colours what it says
    assert [name for name in shown if name.startswith("moco")] == ["moco", "moco_v1", "moco_v2", "moco_v3"]
    assert "dino" in lightly_train.list_methods() and "simclr" in lightly_train.list_methods()


def test_other_versions_of_lightly_train_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightly_train, "list_methods", lambda: ["dino"])
    monkeypatch.delattr(helpers.method_helpers, "_method_name_to_cls")
    with pytest.raises(UserError, match=r"tested with 0\.15 to 0\.18"):
        integration.register()


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("lightly_train", r"pip install 'moco-plugin\[lightly-train\]'"),
        ("lightly_train._methods.method", r"tested with 0\.15 to 0\.18"),
    ],
)
def test_import_without_what_it_needs(module: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "moco_plugin.integrations.lightly_train")
    with pytest.raises(UserError, match=sentence):
        importlib.import_module("moco_plugin.integrations.lightly_train")


@pytest.mark.parametrize(("name", "keys"), [("moco", 64), ("moco_v1", 64), ("moco_v3", 0)])
def test_first_step_is_our_methods(name: str, keys: int) -> None:
    own = {"queue_size": keys} if keys else {"hidden_dim": 32}
    method = make(name, **own)
    backbone = timm.create_model("resnet18", channels=CHANNELS, num_classes=0)
    ours = build_method(name, backbone, backbone.num_features, **own)
    prefix = "backbone.embedding_model.wrapped_model._model."
    state = {key.replace(prefix, "backbone."): value for key, value in method.method.state_dict().items()}
    ours.load_state_dict({key: value for key, value in state.items() if ".fc." not in key})
    views = list(torch.randn(2, 16, 3, 32, 32))
    torch.manual_seed(0)
    expected, _ = ours(*views)
    torch.manual_seed(0)
    result = method.training_step_impl({"views": views}, 0)
    torch.testing.assert_close(result.loss, expected)


def test_key_encoder_moves_once_a_step() -> None:
    method = make("moco", queue_size=64, momentum=0.5)
    method.trainer.accumulate_grad_batches = 2
    with torch.no_grad():
        method.method.encoder_q.head[0].bias.add_(1.0)
    bias = method.method.encoder_k.head[0].bias
    before = bias.clone()
    views = list(torch.randn(2, 16, 3, 32, 32))
    method.training_step_impl({"views": views}, 1)
    torch.testing.assert_close(bias, before)
    method.training_step_impl({"views": views}, 2)
    torch.testing.assert_close(bias, before + 0.5)


def test_arguments_are_the_papers_at_imagenets_size() -> None:
    v1, v2, v3 = (make(name).method for name in ("moco_v1", "moco", "moco_v3"))
    assert (len(v1.queue), v1.momentum, v1.temperature) == (65536, 0.999, 0.07)
    assert (len(v2.queue), v2.momentum, v2.temperature) == (65536, 0.999, 0.2)
    assert isinstance(v1.encoder_q.head, nn.Linear) and isinstance(v2.encoder_q.head, nn.Sequential)
    assert (v3.momentum, v3.momentum_schedule, v3.temperature) == (0.99, "cosine", 1.0)
    small = make("moco", images=50_000).method  # the authors' CIFAR-10 recipe
    assert (len(small.queue), small.momentum) == (4096, 0.99)
    given = make("moco", images=50_000, queue_size=512, momentum=0.9, symmetric=True).method
    assert (len(given.queue), given.momentum, given.symmetric) == (512, 0.9, True)
    vit = network("vit_tiny_patch16_224", depth=1, img_size=32)
    assert make("moco_v3", vit, hidden_dim=32).method.temperature == 0.2
    convnext = make("moco_v3", network("test_convnext"), hidden_dim=32)
    assert convnext.method.temperature == 0.2 and convnext.method_args.schedule.warmup_epochs == pytest.approx(
        40 * 200 / 300
    )
    defaults = {name: helpers.get_epochs(name, "auto", 1, 1) for name in ("moco", "moco_v1", "moco_v3")}
    assert defaults == {"moco": 200, "moco_v1": 200, "moco_v3": 100}


def test_optimizers_are_the_papers() -> None:
    (optimizer,), _ = make("moco", batch=512, queue_size=64).configure_optimizers()
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.06, 0.9, 1e-4)
    method = make("moco_v3", batch=4096, hidden_dim=32)
    (optimizer,), _ = method.configure_optimizers()
    (group,) = optimizer.param_groups
    assert type(optimizer) is integration.LARS and method.optimizer_args.type().value == "lars"
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (pytest.approx(9.6), 0.9, 1e-6)
    trained = [p for p in method.method.parameters() if p.requires_grad]
    assert {id(p) for p in group["params"]} == {id(p) for p in trained}
    vit = network("vit_tiny_patch16_224", depth=1, img_size=32)
    method = make("moco_v3", vit, batch=1024, optim_args={"weight_decay": 0.05}, hidden_dim=32)
    (optimizer,), _ = method.configure_optimizers()
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW and method.optimizer_args.type().value == "adamw"
    assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(6e-4), 0.05)
    (optimizer,), _ = make("moco", optim="adamw", optim_args={"lr": 1e-3}, queue_size=64).configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["initial_lr"] == 1e-3


def rates(method: Any, steps: int) -> list[float]:
    """The learning rate at each step of its schedule, as a share of the highest."""
    (optimizer,), (schedule,) = method.configure_optimizers()
    shares = []
    for _ in range(steps):
        shares.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["initial_lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return shares


def test_schedules_are_the_papers() -> None:
    v1 = rates(make("moco_v1", epochs=200, queue_size=64), 200)
    assert [v1[0], v1[119], v1[120], v1[159], v1[160]] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    v2 = rates(make("moco", epochs=4, queue_size=64), 4)
    assert v2 == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    v3 = rates(make("moco_v3", epochs=20, hidden_dim=32), 200)  # 10 steps an epoch, a tenth of them warm-up
    assert [v3[0], v3[10], v3[20]] == pytest.approx([0, 0.5, 1])
    constant = rates(make("moco", epochs=4, queue_size=64, schedule={"name": "constant"}), 4)
    assert constant == [1, 1, 1, 1]


def test_untrained_networks_start_as_the_papers() -> None:
    def last_gamma(name: str, **arguments: Any) -> torch.Tensor:
        method = make(name, **arguments)
        return method.embedding_model[0].wrapped_model.get_model().layer1[0].bn2.weight

    assert last_gamma("moco", queue_size=64).eq(1).all()
    assert last_gamma("moco_v3", hidden_dim=32).eq(0).all()
    assert last_gamma("moco", queue_size=64, paper_start=False).eq(0).all()
    for name, gamma in (("moco", 1), ("moco_v3", 0)):
        for model, norm in (("resnet18", "bn2"), ("resnet50", "bn3")):
            wrapped = packages.get_wrapped_model(f"torchvision/{model}", num_input_channels=3)
            make(name, wrapped, **({"queue_size": 64} if gamma else {"hidden_dim": 32}))
            for block in wrapped.get_model().layer2:
                assert getattr(block, norm).weight.eq(gamma).all() and block.bn1.weight.eq(1).all()
    wrapped = packages.get_wrapped_model("torchvision/resnet18", num_input_channels=3)
    with torch.no_grad():
        wrapped.get_model().bn1.bias.add_(0.1)  # a trained network stays as it is
    make("moco_v3", wrapped, hidden_dim=32)
    assert wrapped.get_model().layer2[0].bn2.weight.eq(1).all()
    fresh, trained = (network("vit_tiny_patch16_224", depth=1, img_size=32) for _ in range(2))
    with torch.no_grad():
        trained.get_model().norm.bias.add_(0.1)
    before = copy.deepcopy(trained.get_model().state_dict())
    for wrapped, frozen in ((fresh, True), (trained, False)):
        make("moco_v3", wrapped, hidden_dim=32)
        model = wrapped.get_model()
        assert model.pos_embed.requires_grad is not frozen
        assert model.patch_embed.proj.weight.requires_grad is not frozen
    torch.testing.assert_close(trained.get_model().state_dict(), before)


def views(name: str, **arguments: Any) -> list[Any]:
    """The steps of each view, as LightlyTrain builds them."""
    resolved = helpers.get_transform_args(name, arguments)
    return [view.transform.transforms for view in helpers.get_transform(name, resolved).transforms]


def find(steps: Any, name: str) -> Any:
    return next((step for step in steps if type(step).__name__ == name), None)


def test_views_are_the_papers() -> None:
    steps = views("moco_v1")[0]
    names = [type(step).__name__ for step in steps]
    assert names.index("ToGray") + 1 == names.index("ColorJitter") and "GaussianBlur" not in names
    assert find(steps, "ColorJitter").p == 1.0 and find(steps, "RandomResizedCrop").scale == (0.2, 1.0)
    steps = views("moco")[1]
    jitter = find(steps, "ColorJitter")
    assert (jitter.p, jitter.brightness, jitter.hue) == (0.8, (0.6, 1.4), (-0.1, 0.1))
    assert find(steps, "GaussianBlur").p == 0.5 and find(steps, "ToGray").p == 0.2
    one, two = views("moco_v3")
    assert [find(view, "GaussianBlur").p for view in (one, two)] == [1.0, 0.1]
    assert find(one, "Solarize") is None and find(two, "Solarize").p == 0.2


def test_views_take_lightly_trains_arguments() -> None:
    given = {"random_resize": {"min_scale": 0.08}, "color_jitter": {"hue": 0.3}, "random_gray_scale": None}
    one, two = views("moco_v3", image_size=[48, 32], view_2={"solarize": None}, **given)
    assert find(one, "RandomResizedCrop").scale == (0.08, 1.0) and find(one, "RandomResizedCrop").size == (48, 32)
    assert find(two, "ColorJitter").hue == (-0.3, 0.3) and find(two, "ColorJitter").p == 0.8
    assert find(two, "ToGray") is None and find(two, "Solarize") is None
    assert find(views("moco_v1", color_jitter=None)[0], "ToGray").p == 0.2


class Broken(Exception):
    """Stands for a run that was cut off."""


def test_resume_gives_the_weights_of_a_run_without_a_break(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # LightlyTrain does not restore random states: whole-set batches and views that are not random leave none
    still = {
        name: None for name in ("random_resize", "random_flip", "color_jitter", "random_gray_scale", "gaussian_blur")
    }
    arguments = {
        **TINY,
        "data": photos / "train",
        "method": "moco",
        "batch_size": 64,
        "transform_args": {"image_size": (32, 32), **still},
        "method_args": {"queue_size": 64, "dim": 16, "batch_norm": "plain"},
    }
    lightly_train.pretrain(out=tmp_path / "whole", **arguments)

    def break_off(method: Any) -> None:
        if method.current_epoch == 1:
            raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(integration.MoCoMethod, "on_train_epoch_start", break_off)
        with pytest.raises(Broken):
            lightly_train.pretrain(out=tmp_path / "broken", **arguments)
    assert torch.load(tmp_path / "broken/checkpoints/last.ckpt", weights_only=False)["global_step"] == 1
    lightly_train.pretrain(out=tmp_path / "broken", resume_interrupted=True, **arguments)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    for state in (whole, resumed):  # the order within a batch is random; a whole-set batch replaces the whole queue
        state["queue.keys"] = state["queue.keys"].sum(dim=0)
    torch.testing.assert_close(resumed, whole, rtol=1e-4, atol=1e-5)
    assert whole["queue.filled"] == 64


TWO = """
import os, sys, torch, moco_plugin.integrations.lightly_train as integration, lightly_train
from pytorch_lightning.utilities import rank_zero_only
rank_zero_only.rank = int(os.environ["RANK"])  # Lightning was imported before the process knew it
out, data, tiny = sys.argv[1], sys.argv[2], eval(sys.argv[3])
def save(method):
    torch.save(method.method.state_dict(), f"{out}.{method.global_rank}.pt")
integration.MoCoMethod.on_train_end = save
# as LightlyTrain asks for on GPUs; SyncBN would not run on CPUs
lightly_train.pretrain(out=out, data=data, method="moco_v1", trainer_args={"sync_batchnorm": True}, **tiny)
"""


def test_two_processes_hold_the_same_queue(photos: Path, tmp_path: Path, tool: Callable[..., Any]) -> None:
    (tmp_path / "two.py").write_text(TWO)
    tool(
        tmp_path / "two.py",
        tmp_path / "out",
        photos / "train",
        repr({**TINY, "devices": 2, "precision": "bf16-mixed"}),
        processes=2,
    )
    one, two = (torch.load(tmp_path / f"out.{rank}.pt", weights_only=True) for rank in range(2))
    assert one["queue.filled"] == 48
    for name in ("queue.keys", "queue.pointer", "encoder_q.head.weight", "encoder_k.head.weight"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
    statistics = "encoder_q.backbone.embedding_model.wrapped_model._model.bn1.running_mean"
    assert not one[statistics].equal(two[statistics])  # each process normalises its own groups
