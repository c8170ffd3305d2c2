"""The parts of the method against their definitions."""

import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from moco_plugin.backbones import check_features, create_backbone
from moco_plugin.errors import UsageError
from moco_plugin.methods import METHODS, Method, MoCo, MoCoV1, MoCoV3, batch_norm, build_method, contrast
from moco_plugin.methods.batch_norm import SplitBatchNorm, SyncBatchNorm, replace_batch_norm, set_groups
from moco_plugin.methods.contrast import queue_contrast
from moco_plugin.methods.key_queue import KeyQueue


def unit(rows: int, dim: int) -> Tensor:
    return F.normalize(torch.randn(rows, dim), dim=1)


def convnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2])
@pytest.mark.parametrize("block", [1, 3, 50, 1000])
def test_queue_contrast_is_cross_entropy(monkeypatch: pytest.MonkeyPatch, block: int, temperature: float) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(contrast, "QUEUE_BLOCK", block)
    q, k, queue = unit(6, 8).requires_grad_(), unit(6, 8), unit(50, 8)
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.T], dim=1) / temperature
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64), reduction="none")
    weight = torch.rand(6)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), q)

    loss, rank = queue_contrast(q, k, queue, temperature)
    (grad,) = torch.autograd.grad((loss * weight).sum(), q)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad * temperature, expected_grad * temperature, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rank, (logits[:, 1:] > logits[:, :1]).sum(dim=1))


def test_long_queues_need_an_eighth_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At K 65536 the loss agrees to 1e-5, and no tensor is larger than an eighth of the N x K logits."""
    torch.manual_seed(0)
    q, k, queue = unit(16, 32).requires_grad_(), unit(16, 32), unit(65536, 32)
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.T], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(16, dtype=torch.int64))
    (expected_grad,) = torch.autograd.grad(expected, q)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss, _ = queue_contrast(q, k, queue, 0.2)
        (grad,) = torch.autograd.grad(loss.mean(), q)
    assert float((loss.mean() - expected).detach().abs() / expected.detach()) < 1e-5
    assert float((grad - expected_grad).norm() / expected_grad.norm()) < 1e-5
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    assert largest <= 16 * 65536 * 4 / 8


@pytest.mark.parametrize("block", [5, 1000])
def test_queue_contrast_of_a_long_queue_keeps_no_logits_and_any_may_change(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(contrast, "QUEUE_BLOCK", block)
    q, k, queue = unit(4, 8).requires_grad_(), unit(4, 8), unit(20, 8)
    loss, _ = queue_contrast(q, k, queue, 0.2)
    if block < 20:
        assert sum(t.numel() for t in loss.grad_fn.saved_tensors) == 4 * 8
    (before,) = torch.autograd.grad(loss.sum(), q, retain_graph=True)
    queue.zero_()
    (after,) = torch.autograd.grad(loss.sum(), q)
    torch.testing.assert_close(before, after)


def test_queue_is_first_in_first_out_for_any_batch() -> None:
    queue, seen = KeyQueue(10, 4), []
    for size in (3, 4, 1, 10, 7):
        keys = unit(size, 4)
        queue.enqueue(keys)
        seen += list(keys)
    kept = {tuple(key.tolist()) for key in queue.keys}
    assert kept == {tuple(key.tolist()) for key in seen[-10:]}
    assert int(queue.pointer) == 25 % 10
    assert int(queue.filled) == 10


def test_queue_smaller_than_the_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="a batch of 5 keys does not fit a queue of 4"):
        KeyQueue(4, 2).enqueue(unit(5, 2))


def test_split_batch_norm_has_the_state_of_the_layer_and_is_it_in_eval_mode() -> None:
    layer = nn.BatchNorm2d(3)
    split = replace_batch_norm(nn.Sequential(layer), SplitBatchNorm)[0]
    set_groups(split, 4)
    assert isinstance(split, SplitBatchNorm)
    x = torch.randn(8, 3, 5, 5)
    split(x)
    layer.load_state_dict(split.state_dict())
    torch.testing.assert_close(split.eval()(x), layer.eval()(x))


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_kernels_in_tritons_interpreter() -> None:
    """Triton reads the variable as it is imported, hence in a process of its own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__, "-k", "its_parts"]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0 and "12 passed" in ran.stdout, ran.stdout


@pytest.mark.parametrize("how", ["ours"] if INTERPRETED else ["torch's kernels", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "layout", "affine"),
    [
        ((26, 6), torch.contiguous_format, True),
        ((10, 5, 4, 3), torch.contiguous_format, False),
        ((10, 70, 4, 3), torch.channels_last, True),
        ((8, 2, 3, 3), torch.channels_last, False),
    ],
)
def test_split_batch_norm_is_its_parts(
    shape: tuple[int, ...], layout: torch.memory_format, affine: bool, dtype: torch.dtype, how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Output, gradients and running statistics, computed in float32 or more."""
    if how == "ours":
        monkeypatch.setattr(batch_norm, "kernels", lambda device: import_module("moco_plugin.methods.kernels"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: how == "compiled")
    torch.manual_seed(0)
    precise = torch.promote_types(dtype, torch.float32)
    split = SplitBatchNorm(nn.BatchNorm2d(shape[1], affine=affine)).to(precise)
    split.groups = 4
    x = (torch.randn(shape) + 3).to(dtype).contiguous(memory_format=layout).requires_grad_()
    towards = torch.randn(shape).to(dtype)
    output = split(x)
    assert output.dtype == dtype
    found = [output, *torch.autograd.grad(output, [x, *split.parameters()], towards)]

    reference = nn.BatchNorm2d(shape[1], momentum=1.0, affine=affine, dtype=torch.float64)
    monkeypatch.setattr(reference, "_check_input_dim", lambda input: None)
    x, outputs, statistics = x.detach().double().requires_grad_(), [], []
    for part in x.tensor_split(4):
        outputs.append(reference(part))
        statistics.append(torch.stack([reference.get_buffer("running_mean"), reference.get_buffer("running_var")]))
    gradients = torch.autograd.grad(torch.cat(outputs), [x, *reference.parameters()], towards.double())
    expected = [torch.cat(outputs), *gradients]
    close = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close([one.double() for one in found], expected, rtol=close, atol=close)
    mean, variance = torch.stack(statistics).mean(dim=0).to(precise)
    close = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(split.running_mean, 0.1 * mean, rtol=close, atol=close)
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * variance, rtol=close, atol=close)
    assert split.num_batches_tracked == 1


@pytest.mark.parametrize("kind", [SplitBatchNorm, SyncBatchNorm])
def test_converted_batch_norm_keeps_timm_activation(kind: Any) -> None:
    from timm.layers import BatchNormAct2d

    layer, converted = BatchNormAct2d(3), replace_batch_norm(nn.Sequential(BatchNormAct2d(3)), kind)
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(converted(x), layer(x))
    assert (converted(x) >= 0).all()


@pytest.mark.parametrize(("images", "sizes"), [(10, [3, 3, 2, 2]), (5, [3, 2]), (3, [3]), (8, [2, 2, 2, 2])])
def test_any_batch_splits_into_groups_of_two_images_at_least(images: int, sizes: list[int]) -> None:
    split = SplitBatchNorm(nn.BatchNorm2d(3))
    split.groups = 4
    x = torch.randn(images, 3, 5, 5)
    expected = torch.cat([nn.BatchNorm2d(3)(part) for part in x.split(sizes)])
    torch.testing.assert_close(split(x), expected)


@pytest.mark.parametrize(
    ("mode", "processes", "groups"),
    [("auto", 1, 8), ("auto", 2, 4), ("auto", 8, 1), ("auto", 64, 1), ("split", 2, 8), ("shuffle", 2, 1)],
)
def test_groups_on_each_process(mode: str, processes: int, groups: int) -> None:
    assert MoCo(convnet(), 4, queue_size=16, batch_norm=mode).groups(processes) == groups


def test_metrics() -> None:
    torch.manual_seed(0)
    model = MoCo(nn.Flatten(), 12, dim=12, queue_size=64, momentum=1.0, mlp=False)
    assert not model.key_shuffle.shuffles  # nothing normalises over the batch
    for head in (model.encoder_q.head, model.encoder_k.head):
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    images = torch.randn(8, 3, 2, 2)
    loss, metrics = model(images, images)  # key equals query: nothing can beat it
    assert metrics["top1"] == metrics["top5"] == 100
    assert 0.5 < metrics["feature_std"] < 1.1
    assert metrics["queue_filled"] == 8 / 64
    _, collapsed = model(images[:1].expand(8, -1, -1, -1), images)
    assert collapsed["feature_std"] < 1e-5
    assert loss < 1


@pytest.mark.parametrize("block", [3, 1000])
def test_a_collapsed_network_tells_no_key(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(contrast, "QUEUE_BLOCK", block)
    same = F.one_hot(torch.zeros(8, dtype=torch.int64), 4).float()  # all vectors are one
    assert (queue_contrast(same[:2], same[:2], same, 0.2)[1] == 8).all()  # behind all 8 negatives
    assert (contrast.batch_contrast(same[:2], same, 2, 0.2)[1] == 7).all()


def test_recipes_have_their_papers_heads_and_temperatures() -> None:
    v1, v2 = MoCoV1(nn.Flatten(), 12), MoCo(nn.Flatten(), 12)
    assert isinstance(v1.encoder_q.head, nn.Linear) and v1.temperature == 0.07
    assert [type(layer) for layer in v2.encoder_q.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert v2.temperature == 0.2
    for model in (v1, v2):
        assert (len(model.queue), model.momentum, model.queue.keys.shape[1]) == (65536, 0.999, 128)
    assert MoCoV1(nn.Flatten(), 12, temperature=0.5).temperature == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"momentum": 1.5}, "momentum is 1.5"), ({"temperature": 0}, "temperature is 0"), ({"batch_norm": "x"}, "'x'")],
)
def test_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoCo(nn.Flatten(), 12, **arguments)


def convolution(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def contrast_accuracy(batch_norm: str) -> float:
    """Train 400 steps on images that are one of 16 patterns and noise; returns the last 50 steps' mean top-1."""
    torch.manual_seed(0)
    patterns = F.interpolate(torch.randn(16, 3, 4, 4), size=(12, 12), mode="bilinear")
    layers = [*convolution(3, 16), *convolution(16, 16, stride=2), *convolution(16, 32)]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = MoCo(
        backbone, 32, dim=32, queue_size=512, momentum=0.99, temperature=0.1, batch_norm=batch_norm, batch_norm_groups=2
    )
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.02, momentum=0.9)
    top1 = []
    for _ in range(400):
        shown = patterns[torch.randint(16, (8,))]
        views = [shown + 0.5 * torch.randn_like(shown) for _ in range(2)]
        loss, metrics = model(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        top1.append(float(metrics["top1"]))
    return sum(top1[-50:]) / 50


def test_batch_norm_leaks_which_key_is_the_right_one() -> None:
    """Some 32 of the 512 keys show the same pattern, so that content alone tells the right one in 1 of 33 cases."""
    plain, split = contrast_accuracy("plain"), contrast_accuracy("split")
    assert plain > 60  # what betrays it: the one key that was normalised with the same images
    assert split < plain - 15


@pytest.mark.parametrize("method", [MoCo, MoCoV3])
@pytest.mark.parametrize(
    ("output", "found"),
    [
        (torch.zeros(16, 8, 4, 4), r"\(16, 8, 4, 4\)"),
        (torch.zeros(16, 5, 8), r"\(16, 5, 8\)"),
        (torch.zeros(16, 7), r"\(16, 7\)"),
        ({"features": torch.zeros(16, 8)}, "a dict"),
    ],
)
def test_backbones_that_return_no_vectors_are_refused(method: Any, output: Any, found: str) -> None:
    model = method(nn.Identity(), feature_dim=8)
    model.encoder_q.backbone.forward = lambda images: output
    with pytest.raises(ValueError, match=f"returned {found}; expected N x feature_dim features, N x 8"):
        model(*torch.zeros(2, 16, 3, 8, 8))


def test_channels_are_named() -> None:
    with pytest.raises(UsageError, match=r"takes images of 4 channels.*backbone_args\.in_chans"):
        check_features(create_backbone("resnet18", in_chans=4), "resnet18", 32)


@pytest.mark.parametrize("method", [MoCo, MoCoV1, MoCoV3])
def test_eval_mode_changes_no_state(method: type[Method]) -> None:
    model = method(convnet(), 4, dim=8)
    model(*torch.randn(2, 8, 3, 6, 6))
    before = {name: value.clone() for name, value in model.eval().state_dict().items()}
    loss, metrics = model(*torch.randn(2, 8, 3, 6, 6), progress=0.5)
    assert loss.isfinite() and "top1" in metrics
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []


def test_adding_a_method_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))

    @METHODS.register("toy", "toy_alias")
    class Toy(MoCo):
        title = "Toy"

        def __init__(self, backbone: nn.Module, feature_dim: int, *, weight: float = 1.0, **arguments: Any) -> None:
            super().__init__(backbone, feature_dim, **arguments)
            self.weight = weight

    with pytest.raises(ValueError, match="a method 'moco' is registered already"):
        METHODS.register("moco")(Toy)
    built = build_method("toy_alias", convnet(), 4, weight=2.0, queue_size=16)
    assert isinstance(built, Toy) and (built.weight, built.queue_size, built.views) == (2.0, 16, "moco_v2")
    with pytest.raises(UsageError, match=r"unknown key method_args\.wieght; toy takes weight, dim, queue_size"):
        build_method("toy", convnet(), 4, wieght=2.0)
