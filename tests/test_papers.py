"""The papers' numbers, recipes and protocols in configs and docs, against what the papers fix."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from moco_plugin.papers import FINETUNE, LINEAR, REPORTED, TRANSFER
from moco_plugin.pretraining.config import PretrainConfig, config_dict, load_config
from moco_plugin.schema import configs_folder, read_yaml
from moco_plugin.transfer.tasks import TASKS
from tests.helpers.papers import PAPERS, departures

DOCS = Path(__file__).parents[1] / "docs"


def recipe(name: str) -> PretrainConfig:
    return load_config(name, ["data.root=x"])


def test_every_task_has_its_rows() -> None:
    assert TRANSFER.keys() == {name for name, task in TASKS.items() if task.published}
    for name, rows in TRANSFER.items():
        assert {len(row.values) for row in rows} == {len(TASKS[name].metrics)}, name


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("moco_v1_resnet50_200ep", "MoCo v1 R50, 200 epochs"),
        ("moco_v1_resnext50_200ep", "MoCo v1 RX50, 200 epochs"),
        ("moco_v1_resnet50w2x_200ep", "MoCo v1 R50w2x, 200 epochs"),
        ("moco_v1_resnet50w4x_200ep", "MoCo v1 R50w4x, 200 epochs"),
        ("moco_v2_resnet50_200ep", "MoCo v2 R50, 200 epochs"),
        ("moco_v2_resnet50_800ep", "MoCo v2 R50, 800 epochs"),
        ("moco_v3_resnet50_100ep", "MoCo v3 R50, 100 epochs"),
        ("moco_v3_resnet50_300ep", "MoCo v3 R50, 300 epochs"),
        ("moco_v3_resnet50_1000ep", "MoCo v3 R50, 1000 epochs"),
        ("moco_v3_vit_small_300ep", "MoCo v3 ViT-S, 300 epochs"),
        ("moco_v3_vit_base_300ep", "MoCo v3 ViT-B, 300 epochs"),
    ],
)
def test_config_that_bears_a_number(name: str, row: str) -> None:
    (published,) = (r for r in LINEAR if r.name == row)
    text = (configs_folder() / "pretrain" / f"{name}.yaml").read_text()
    assert f"ImageNet linear top-1 {published.values[0]}" in text.splitlines()[0]
    config = recipe(name)
    assert (config.method, config.schedule.epochs) == (published.method, published.epochs)
    assert config.backbone.startswith(published.architecture)
    for tuned in FINETUNE:
        if tuned.name == row.partition(",")[0]:
            assert f"fine-tuned with {tuned.recipe} recipe {tuned.values[0]}" in text.splitlines()[0]


def test_numbers_in_comments() -> None:
    def numbers(name: str) -> list[float]:
        text = (configs_folder() / "pretrain" / f"{name}.yaml").read_text()
        comment = " ".join(re.findall(r"^# ?(.*)", text, re.M))
        return [float(number) for number in re.findall(r"\d+\.\d+", comment)]

    knn, ablation = REPORTED["cifar10_knn"], REPORTED["momentum_ablation"]
    assert numbers("moco_cifar10_resnet18") == [*knn["asymmetric"].values(), *knn["symmetric"].values()]
    assert numbers("moco_v1_resnet50_momentum") == [number for pair in ablation.items() for number in pair]


@pytest.mark.parametrize("name", PAPERS["recipes"])
def test_recipe(name: str) -> None:
    assert departures(config_dict(recipe(name)), PAPERS["recipes"][name]) == {}


@pytest.mark.parametrize("name", PAPERS["evaluations"])
def test_evaluation(name: str) -> None:
    protocol = read_yaml(configs_folder() / "evaluate" / f"{name}.yaml")
    assert departures(OmegaConf.to_container(protocol), PAPERS["evaluations"][name]) == {}


def test_table_of_arguments_in_the_docs() -> None:
    text = (DOCS / "methods.md").read_text()
    found = dict(re.findall(r"^\| (`[^|]*`) \|((?:[^|]*\|){4})", text, re.M))
    names = ("moco_v1", "moco_v2", "moco_v3_resnet", "moco_v3_vit")
    recipes = [recipe(name).method_args for name in names]
    shown = {name: value for arguments in recipes for name, value in arguments.items()}
    for row, cells in found.items():
        keys = re.findall(r"`(\w+)`", row)
        for arguments, cell in zip(recipes, cells.strip("|").split("|"), strict=True):
            values = [arguments[key] for key in keys if key in arguments]
            if values:
                assert cell.strip() == ", ".join(str(v).lower() for v in values), row
        for key in keys:
            shown.pop(key, None)
    assert not shown  # every argument of a recipe is in the table
