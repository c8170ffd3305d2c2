"""method=moco inside LightlyTrain: real runs of LightlyTrain at toy size."""

import importlib
import json
import pickletools
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.methods.batch_norm import SplitBatchNorm
from tests.helpers.lightly_train import CHANNELS, helpers
from tests.helpers.processes import Tool

lightly_train = pytest.importorskip("lightly_train")
integration = importlib.import_module("moco_plugin.integrations.lightly_train")

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


@pytest.fixture(scope="module")
def run(photos: Path, tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps, made with the tool."""
    out = tmp_path_factory.mktemp("lightly_train") / "run"
    tool("lightly_train_cli", "pretrain", f"out={out}", f"data={photos}/train", "method=moco", *as_arguments(TINY))
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
        ("lightly_train", r"run `pip install lightly-train`"),
        ("lightly_train._methods.method", r"tested with 0\.15 to 0\.18"),
    ],
)
def test_import_without_what_it_needs(module: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("moco_plugin.integrations.lightly_train")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=sentence):
        importlib.import_module("moco_plugin.integrations.lightly_train")


class Broken(Exception):
    """Ends a run in the middle."""


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


def test_original_layers_are_put_back_where_the_network_is() -> None:
    """A network trained on a GPU is saved whole on it; the meta device stands for one."""
    method = importlib.import_module("moco_plugin.integrations.lightly_train.method")
    network = timm.create_model("resnet18", num_classes=0)
    layers = method.batch_norms(network)
    moved = timm.create_model("resnet18", num_classes=0).to("meta")
    method.with_layers(moved, layers)
    assert {value.device.type for value in moved.state_dict().values()} == {"meta"}
