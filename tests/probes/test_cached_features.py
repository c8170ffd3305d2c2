"""Linear probes on cached features: agreement with scikit-learn, the sweep, few labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch.nn import functional as F

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.metrics import count_correct, scores
from moco_plugin.evaluation.subject import draw_labels
from moco_plugin.probes.linear_classifiers import fit_l2_weights, fit_learning_rates, hold_out
from moco_plugin.tools.evaluate import main
from tests.conftest import TEST, TRAIN

LRS = (0.003, 0.01, 0.03, 0.1, 0.3)
Sets = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def sets() -> Sets:
    """Features and labels to fit and to test on: Fashion-MNIST in 7 x 7 pixels, 400 and 400 images."""
    pixels, labels = [], []
    for spec in (TRAIN, TEST):
        images = ImageSet(spec)
        assert images.array is not None
        small = F.avg_pool2d(torch.from_numpy(images.array.copy())[:, None].float(), 4)
        pixels.append(small.flatten(1) / 255)
        labels.append(torch.as_tensor(images.labels))
    features, truth = torch.cat(pixels), torch.cat(labels)
    return features[:400], truth[:400], features[400:], truth[400:]


def standard(fitted: torch.Tensor, features: torch.Tensor) -> np.ndarray:
    deviation, mean = torch.std_mean(fitted, dim=0, correction=0)
    return ((features - mean) / deviation.clamp_min(1e-12)).double().numpy()


def test_l2_weights_reach_scikit_learns_minima(sets: Sets) -> None:
    train, labels, test, truth = sets
    l2_weights = (1e-3, 1.0, 0.1)  # in no order
    probes = fit_l2_weights(train, labels, 10, l2_weights)
    for l2, weight, bias, found in zip(l2_weights, probes.weight, probes.bias, probes.score(test, truth), strict=True):
        model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=5000, tol=1e-8)
        model.fit(standard(train, train), labels)
        weights = torch.from_numpy(model.coef_.T).float()
        torch.testing.assert_close(weight, weights, atol=0.01 * float(weight.std()) + 1e-3, rtol=0.01)
        biases = torch.from_numpy(model.intercept_ - model.intercept_.mean()).float()
        torch.testing.assert_close(bias - bias.mean(), biases, atol=2e-2, rtol=0.01)  # their sum is free
        predicted = model.predict(standard(train, test))
        assert found.top1 == pytest.approx(100 * float((predicted == truth.numpy()).mean()), abs=0.26)
        assert found.mean_per_class == pytest.approx(100 * balanced_accuracy_score(truth, predicted), abs=0.3)


def test_a_sweep_is_as_many_plain_fits(sets: Sets) -> None:
    """Each classifier of the batched layer takes the steps that torch's SGD takes with its learning rate alone."""
    train, labels, *_ = sets
    swept = fit_learning_rates(train, labels, 10, LRS, epochs=2, batch_size=64, seed=3)
    generator = torch.Generator().manual_seed(3)
    start = 0.01 * torch.randn(49, 10, generator=generator)
    orders = [torch.randperm(400, generator=generator) for _ in range(2)]
    x = torch.from_numpy(standard(train, train)).float()
    for lr, weight, bias in zip(LRS, swept.weight, swept.bias, strict=True):
        layer = torch.nn.Linear(49, 10)
        with torch.no_grad():
            layer.weight.copy_(start.T)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)
        for order in orders:
            for rows in order.split(64):
                optimizer.zero_grad()
                F.cross_entropy(layer(x[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(weight, layer.weight.detach().T, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(bias, layer.bias.detach(), atol=1e-4, rtol=1e-3)


def test_scores() -> None:
    logits = torch.eye(7)[torch.tensor([0, 0, 0, 1])]
    found = scores(count_correct(logits, torch.tensor([0, 0, 1, 1])) + count_correct(logits[:1], torch.tensor([0])))
    assert (found.top1, found.mean_per_class) == (80.0, 75.0)  # 3 of 3 and 1 of 2; the other classes have no image
    assert found.top5 is not None and found.top5 >= 80
    assert scores(count_correct(torch.eye(5), torch.arange(5))).top5 is None
    # a class without images does not count, also where it is predicted: 1 of 2 and 1 of 1 (torchmetrics' macro is 50)
    predicted = torch.eye(3)[torch.tensor([0, 2, 1])]
    assert scores(count_correct(predicted, torch.tensor([0, 0, 1]))).mean_per_class == 75.0


def test_labels_are_drawn_class_by_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)
    few, more = (draw_labels(labels, share, 1) for share in (0.1, 0.2))
    assert torch.bincount(labels[few]).tolist() == [10, 5, 1]
    assert torch.bincount(labels[more]).tolist() == [20, 10, 1]
    assert set(few.tolist()) < set(more.tolist())
    assert torch.equal(few, draw_labels(labels, 0.1, 1))
    assert not torch.equal(few, draw_labels(labels, 0.1, 2))
    labels = torch.tensor([0] * 30 + [1] * 2 + [2])
    assert labels[hold_out(labels, 0)].tolist() == [0, 0, 0, 1]
    with pytest.raises(UsageError, match="none is left to choose a learning rate by"):
        hold_out(torch.arange(5), 0)


def arguments(command: str, run: Path, *more: str) -> list[str]:
    sets = ["--train", TRAIN, "--test", f"{TEST}[0:100]"]
    return [command, "--weights", f"{run}/checkpoints/last.ckpt", *sets, *more, "data.workers=0"]


def test_tool_fits_on_cached_features(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fast.json"
    fast = arguments("linear-fast", tiny_run, "--out", str(out), "--lrs", "0.03", "0.3")
    assert main(fast) == 0
    result = json.loads(out.read_text())
    assert result["protocol"] == "linear_fast" and result["train_images"] == 600
    assert set(result["held_out_top1"]) == {"0.03", "0.3"}
    assert result["lr"] == float(max(result["held_out_top1"], key=result["held_out_top1"].__getitem__))
    assert result["top1"] > 30 and f"top-1 {result['top1']:.2f}%" in capsys.readouterr().out
    assert main(fast) == 2
    assert "exists already and was kept" in capsys.readouterr().err
    assert main([*fast, "--overwrite", "optimizer.lr=3"]) == 2
    assert "optimizer.lr=3: on cached features only data.image_size" in capsys.readouterr().err


def test_tool_measures_with_few_labels(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lowshot.json"
    assert main(arguments("lowshot", tiny_run, "--shares", "0.05", "1", "--out", str(out), "--lrs", "0.1")) == 0
    few, all_labels = json.loads(out.read_text())["shares"]
    assert (few["share"], all_labels["train_images"]) == (0.05, 600) and 20 <= few["train_images"] <= 40
    assert 10 < few["top1"] < all_labels["top1"]
    again = tmp_path / "linear.json"
    assert main(arguments("linear", tiny_run, "--fast", "--out", str(again), "--lrs", "0.1")) == 0
    assert json.loads(again.read_text())["top1"] == all_labels["top1"]
    capsys.readouterr()
    assert main(arguments("lowshot", tiny_run, "--shares", "0.001")) == 2
    assert "are one per class, and none is left to choose a learning rate by" in capsys.readouterr().err
    assert main(arguments("lowshot", tiny_run, "--shares", "10")) == 2
    assert "a share of 10 of the labels was asked for" in capsys.readouterr().err
