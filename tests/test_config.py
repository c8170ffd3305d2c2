"""Configs: the shipped recipes, inheritance, and what a mistake is answered with."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from moco_plugin.backbones import create_backbone
from moco_plugin.errors import UsageError
from moco_plugin.methods import METHODS, build_method
from moco_plugin.pretraining.config import config_dict, load_config
from moco_plugin.pretraining.module import starting_lr
from moco_plugin.pretraining.prepare import queue_for, queue_warning, recipe_named_by
from moco_plugin.runs.schedules import lr_schedule
from moco_plugin.schema import configs_folder, parse_overrides
from moco_plugin.tools.pretrain import main as pretrain

SHIPPED = sorted(p.stem for p in (configs_folder() / "pretrain").glob("[!_]*.yaml"))

LAYER_NORM = (
    "convnext_atto swin_tiny_patch4_window7_224 beit_base_patch16_224 eva02_tiny_patch14_224 vit_small_r26_s32_224"
).split()


def test_ig_1b_schedule_is_the_papers() -> None:
    config = load_config("moco_v1_resnet50_ig1b", ["data.root=x"])
    at = lr_schedule(config.schedule)
    for step, drops in ((0, 0), (62_499, 0), (62_500, 1), (124_999, 1), (125_000, 2), (1_249_999, 19)):
        assert starting_lr(config) * at(step / 1_250_000) == pytest.approx(0.12 * 0.9**drops), step


def test_resnext_is_32x8d() -> None:
    config = load_config("moco_v1_resnext50_200ep", ["data.root=x"])
    with torch.device("meta"):
        network = create_backbone(config.backbone, **config.backbone_args)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 46.0  # 32x4d has 23.0


@pytest.mark.parametrize(
    ("backbone", "recipe"),
    [
        ("resnet50", "moco_v3_resnet"),
        ("efficientnet_b0", "moco_v3_resnet"),
        ("vit_base_patch16_224", "moco_v3_vit"),
        ("deit_tiny_patch16_224", "moco_v3_vit"),
        ("vit_small_patch16_224", "moco_v3_vit_small"),
        *((name, "moco_v3_layer_norm") for name in LAYER_NORM),
    ],
)
def test_recipe_of_v3_follows_the_network(backbone: str, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(["--print-config", "method=moco_v3", f"backbone={backbone}", "data.root=x"]) == 0
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert first.startswith(f"# recipe {recipe}: ")
    config = OmegaConf.create(rest)
    resnet, plain = recipe == "moco_v3_resnet", recipe.startswith("moco_v3_vit")
    assert (config.optimizer.name, config.optimizer.lr) == (("lars", 0.6) if resnet else ("adamw", 1.5e-4))
    assert config.method_args.temperature == (1.0 if resnet else 0.2)
    assert config.backbone_args.get("sincos_position", False) is plain
    assert config.backbone_args.get("frozen_patch_projection", False) is plain
    with torch.device("meta"):  # the network takes the recipe's arguments
        network = create_backbone(backbone, image_size=224, **config.backbone_args)
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == (
        ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"] if plain else []
    )
    if recipe == "moco_v3_vit_small":
        assert "num_heads=12" in first and network.blocks[0].attn.num_heads == 12


def test_pretrained_vit_keeps_its_positions_and_heads() -> None:
    overrides = ["method=moco_v3", "backbone=vit_small_patch16_224", "backbone_args.pretrained=true"]
    assert recipe_named_by(parse_overrides(overrides)) == "moco_v3_layer_norm"
    assert recipe_named_by({}) == "moco_v2"
    assert recipe_named_by({"method": "moco_v3", "backbone": "unknown"}) == "moco_v3_resnet"


def test_small_sets_have_one_rule() -> None:
    rows = ((1_300_000, 65536, 0.999), (100_000, 12_500, 0.999), (99_999, 4096, 0.99), (50_000, 4096, 0.99))
    for images, queue_size, momentum in (*rows, (1_000, 125, 0.99), (100, 12, 0.99)):
        assert queue_for(images) == {"queue_size": queue_size, "momentum": momentum}
    assert queue_for(1_000, keys=256)["queue_size"] == 256
    one_gpu = load_config("one_gpu", ["data.root=x"]).method_args
    assert one_gpu["queue_size"] == 4096 and one_gpu["momentum"] == 0.99


def test_queue_with_keys_of_the_same_images_is_warned_of() -> None:
    def warning(queue_size: int, images: int) -> str:
        return queue_warning(build_method("moco", nn.Flatten(), 4, queue_size=queue_size), images)

    assert warning(64, 256) == "" and queue_warning(build_method("moco_v3", nn.Flatten(), 4), 1) == ""
    said = warning(65536, 20_000)
    assert said.startswith("warning: the queue contains 65536 keys and there are 20000 images")
    assert "method_args.queue_size=2500, or the keys of a batch, avoids it" in said


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("moco_v1_resnet50_200ep", {119: 0.03, 120: 0.003, 160: 0.0003}),
        ("moco_v2_resnet50_200ep", {0: 0.03, 100: 0.015}),
        ("moco_v2_resnet50_800ep", {400: 0.015}),
        ("moco_v3_resnet50_100ep", {0: 0, 5: 0.6 * 8, 10: 0.6 * 16, 55: 0.6 * 8}),
        *((f"moco_v3_resnet50_{n}ep", {0: 0, 5: 0.3 * 8, 10: 0.3 * 16, (n + 10) / 2: 0.3 * 8}) for n in (300, 1000)),
        *((f"moco_v3_vit_{n}_300ep", {0: 0, 20: 1.2e-3, 40: 2.4e-3, 170: 1.2e-3}) for n in ("small", "base")),
    ],
)
def test_learning_rate_by_epoch(name: str, rates: dict[float, float]) -> None:
    config = load_config(name, ["data.root=x"])
    schedule = lr_schedule(config.schedule)
    found = {epoch: starting_lr(config) * schedule(epoch / config.schedule.epochs) for epoch in rates}
    assert found == pytest.approx(rates, abs=1e-9)


def test_learning_rate_scales_with_the_batch_unless_scale_lr_is_off() -> None:
    assert starting_lr(load_config("moco_v2", ["data.root=x", "data.batch_size=512"])) == pytest.approx(0.06)
    fixed = load_config("moco_v2", ["data.root=x", "data.batch_size=512", "optimizer.scale_lr=false"])
    assert starting_lr(fixed) == pytest.approx(0.03)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_load_and_survive_a_round_trip(name: str) -> None:
    config = load_config(name, ["data.root=x"])
    assert config.method in METHODS
    assert config_dict(config)["data"]["root"] == "x"
    small = {key: value for key, value in (("queue_size", 16), ("hidden_dim", 8)) if key in config.method_args}
    build_method(config.method, nn.Flatten(), 4, **{**config.method_args, **small})


def test_own_file_inherits(tmp_path: Path) -> None:
    shipped = configs_folder() / "pretrain" / "moco_v2_resnet50_200ep.yaml"
    (tmp_path / "mine.yaml").write_text(f"_base_: {shipped}\ndata: {{root: [a, 'b-{{1..2}}.tar'], batch_size: 64}}\n")
    config = load_config(tmp_path / "mine.yaml", ["data.batch_size=32"])
    assert (config.data.root, config.data.batch_size) == ("[a, b-{1..2}.tar]", 32)
    assert config.method_args["temperature"] == 0.2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.rot=x"], "unknown config key 'data.rot'; valid under data are root, .*did you mean 'root'"),
        (["metod=moco"], "unknown config key 'metod'; valid at the top are method, .*did you mean 'method'"),
        (["data.batch_size=many"], "config key 'data.batch_size'"),
        (["data.root=x", "data.batch_size=0"], "data.batch_size is 0; expected a number above 0"),
        (["data.root=x", "knn.k=-1"], "knn.k is -1; expected a number above 0"),
        ([], "data.root is not set"),
        (["--overwrit"], "expected key=value"),
        (["[a=1"], "expected key=value"),
        (["data.root=x", "batch_size=64"], r"unknown config key .*did you mean data\.batch_size=64\?"),
        (["data.root=x", "epochs=10"], r"did you mean schedule\.epochs=10\?"),
        (["data.root=x", "lr=0.1"], r"did you mean .*optimizer\.lr=0\.1\?"),
        (["data.root=x", "temperature=0.1"], r"did you mean .*method_args\.temperature=0\.1"),
        (["data.root=x", "devices=2"], r"did you mean trainer\.devices=2\?"),
    ],
)
def test_mistakes_name_their_path(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config("moco_v2", overrides)


def test_configs_that_do_not_exist_or_inherit_from_themselves(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"moco_v1_resnet50_200ep, .*did you mean .*'moco_v2_resnet50_200ep'"):
        load_config("moco_v2_resnet50", [])
    (tmp_path / "a.yaml").write_text("_base_: a.yaml\n")
    with pytest.raises(UsageError, match="inherits from itself"):
        load_config(tmp_path / "a.yaml", [])


def test_unknown_method_and_argument() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'moco_v4'; known are moco, .*did you mean"):
        build_method("moco_v4", nn.Flatten(), 4)
    with pytest.raises(UsageError, match=r"method_args.temprature; .*did you mean 'temperature'"):
        build_method("moco_v1", nn.Flatten(), 4, temprature=0.1)
    with pytest.raises(UsageError, match="momentum is 2"):
        build_method("moco", nn.Flatten(), 4, momentum=2)


@pytest.mark.parametrize("text", ["007", "1e3", "yes", "run #3", "null", "a: b", "epoch=9-step=100", "[a, b{1..2}]"])
def test_text_stays_text(text: str) -> None:
    assert load_config("moco_v2_resnet50_200ep", [f"data.root={text}"]).data.root == text
    assert load_config("moco_v2_resnet50_200ep", [f"data.root='{text}'"]).data.root == text
    assert load_config("moco_v2_resnet50_200ep", ["data.root=x", "weights=null"]).weights is None


def test_a_number_of_steps_sets_the_interval() -> None:
    assert load_config("moco_v2", ["data.root=x", "schedule.steps=60"]).schedule.interval == "step"
    assert load_config("moco_v2", ["data.root=x"]).schedule.interval == "epoch"


def test_options_in_the_style_of_other_tools_are_answered_with_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--data", "photos"], ["--data=photos"]):
        assert pretrain(arguments) == 2
        assert "did you mean data.root=photos?" in capsys.readouterr().err
