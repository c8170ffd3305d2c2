"""The example for lightly's users, end to end on a tiny folder of images."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import seed_everything

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "lightly_moco.py"


def test_example_trains_and_classifies(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    tiny = "--backbone test_resnet --image-size 32 --batch-size 16 --queue-size 48 --workers 0".split()
    main = runpy.run_path(str(EXAMPLE))["main"]
    metrics = main([str(photos / "train"), str(photos / "val"), *tiny, "--epochs", "10", "--linear-epochs", "2"])
    assert metrics["val_knn_top1/dataloader_idx_1"] > 0.15  # ten classes
    assert 0 <= metrics["val_top1"] <= 1 and metrics["val_loss"] < 100
    (checkpoint,) = (tmp_path / "runs" / "lightly").rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["method.queue.filled"] == 48
    q, k = (state[f"method.encoder_{e}.backbone.conv1.0.weight"] for e in "qk")
    assert not q.equal(k)


def test_learning_rate_counts_the_devices() -> None:
    module = runpy.run_path(str(EXAMPLE))["MoCoModule"]("test_resnet", 128, queue_size=128)
    module.trainer = SimpleNamespace(world_size=4, max_epochs=2)
    (optimizer,), _ = module.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * 4 * 128 / 256)
