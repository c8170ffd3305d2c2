"""The arguments, optimizers, schedules and views of our methods inside LightlyTrain."""

import copy
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from moco_plugin.runs.optimizers import LARS
from tests.helpers.lightly_train import helpers, make, network, packages

lightly_train = pytest.importorskip("lightly_train")
integration = importlib.import_module("moco_plugin.integrations.lightly_train")


@pytest.mark.parametrize(("device", "alone"), [("cpu", True), ("cuda", False)])
def test_batch_norm_of_v3_is_that_of_the_runs_device(device: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has a GPU, whether it is used or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    method = make("moco_v3", hidden_dim=32)
    method.trainer.strategy = SimpleNamespace(root_device=torch.device(device))
    method.setup("fit")
    layers = [layer for layer in method.method.modules() if isinstance(layer, torch.nn.SyncBatchNorm)]
    assert layers and {layer.alone for layer in layers} == {alone}


def test_arguments_are_the_papers_at_imagenets_size() -> None:
    v1, v2, v3 = (make(name).method for name in ("moco_v1", "moco", "moco_v3"))
    assert (len(v1.queue), v1.momentum, v1.temperature) == (65536, 0.999, 0.07)
    assert (len(v2.queue), v2.momentum, v2.temperature) == (65536, 0.999, 0.2)
    assert isinstance(v1.encoder_q.head, nn.Linear) and isinstance(v2.encoder_q.head, nn.Sequential)
    assert (v3.momentum, v3.momentum_schedule, v3.temperature) == (0.99, "cosine", 1.0)
    small = make("moco", images=50_000).method  # the authors' CIFAR-10 recipe
    assert (len(small.queue), small.momentum) == (4096, 0.99)
    tiny = make("moco", images=1_000, batch=64, symmetric=True).method
    assert len(tiny.queue) == 128  # the keys of a batch, more than an eighth of the set
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


@pytest.mark.parametrize(
    ("name", "vit", "arguments", "kind", "values"),
    [
        ("moco", False, {"batch": 512, "queue_size": 64}, torch.optim.SGD, (0.06, 0.9, 1e-4)),
        ("moco_v3", False, {"batch": 4096, "hidden_dim": 32}, LARS, (9.6, 0.9, 1e-6)),
        ("moco_v3", True, {"batch": 1024, "optim_args": {"weight_decay": 0.05}}, torch.optim.AdamW, (6e-4, None, 0.05)),
        (
            "moco",
            False,
            {"optim": "adamw", "optim_args": {"lr": 1e-3}},
            torch.optim.AdamW,
            (1e-3, None, 0.01),
        ),  # LightlyTrain's decay
    ],
)
def test_optimizers_are_the_papers(
    name: str, vit: bool, arguments: dict[str, Any], kind: type, values: tuple[float | None, ...]
) -> None:
    method = make(name, network("vit_tiny_patch16_224", depth=1, img_size=32) if vit else None, **arguments)
    (optimizer,), _ = method.configure_optimizers()
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind and method.optimizer_args.type().value == kind.__name__.lower()
    assert tuple(map(group.get, ("initial_lr", "momentum", "weight_decay"))) == pytest.approx(values)
    trained = [p for p in method.method.parameters() if p.requires_grad]
    assert {id(p) for p in group["params"]} == {id(p) for p in trained}


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
        return method.embedding_model.wrapped_model.get_model().layer1[0].bn2.weight

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
