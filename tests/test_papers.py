"""The papers' numbers, recipes and protocols in code, configs and docs, against the transcription of the papers."""

import re
from pathlib import Path

import pytest

from moco_plugin.papers import FINETUNE, LINEAR, LVIS_2X_FROZEN, OMNIBENCHMARK, TRANSFER
from moco_plugin.pretraining.config import PretrainConfig, load_config
from moco_plugin.schema import configs_folder, read_yaml
from tests.helpers.papers import TEXT, numbers, short, table

DOCS = Path(__file__).parents[1] / "docs"


def recipe(name: str) -> PretrainConfig:
    return load_config(name, ["data.root=x"])


def test_transfer_rows() -> None:
    expected: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in TRANSFER}
    for name, cells in table("init").items():
        row = re.sub(r"^MoCo v1 IN-1M$", r"MoCo v1 IN-1M 200 ep", name)
        row = re.sub(r" (\d+) ep$", r", \1 epochs", row)
        for task, column in (("voc_c4", "R50-C4"), ("voc_dilated_c5", "R50-dilated-C5")):
            if cells[column]:
                expected[task][row] = numbers(cells[column])
    (alone,) = re.findall(r"trainval2007 only, R50-C4: (.*)", TEXT)
    rows = ("supervised IN-1M", "MoCo v1 IN-1M, 200 epochs", "MoCo v1 IG-1B")
    expected["voc07_c4"] = {row: numbers(cell) for row, cell in zip(rows, alone.split(", "), strict=True)}
    tasks = {
        "R50-FPN 1x": "coco_fpn_1x",
        "R50-FPN 2x": "coco_fpn_2x",
        "R50-C4 1x": "coco_c4_1x",
        "R50-C4 2x": "coco_c4_2x",
        "COCO Mask R-CNN R50-FPN 6x": "coco_fpn_6x",
        "COCO keypoint": "coco_keypoint",
        "COCO DensePose": "coco_densepose",
        "LVIS v0.5 1x": "lvis_1x",
        "LVIS v0.5 2x": "lvis_2x",
        "Cityscapes instance": "cityscapes_instance",
        "Cityscapes semantic": "cityscapes_semantic",
        "VOC 2012 semantic": "voc_semantic",
    }
    for name, cells in {**table("model"), **table("task, metrics")}.items():
        task = tasks.pop(name.partition(":")[0])
        for row, cell in zip(("random", *rows), cells.values(), strict=True):
            values = numbers(re.sub(r"\(.*?\)", "", cell.partition(";")[0]))
            if values:
                expected[task][row] = values
    assert not tasks
    assert {task: {row.name: row.values for row in rows} for task, rows in TRANSFER.items()} == expected
    frozen = table("task, metrics")["LVIS v0.5 2x: mask AP, 50, 75"]["supervised"].partition(";")[2]
    assert numbers(frozen) == LVIS_2X_FROZEN


def test_linear_classification() -> None:
    top1 = {row.name: row.values[0] for row in LINEAR}
    r50 = [top1[f"MoCo v3 R50, {epochs} epochs"] for epochs in (100, 300, 1000)]
    (v2,) = (row for row in LINEAR if row.name == "MoCo v2 R50, 200 epochs")
    (rx50,) = (row for row in LINEAR if row.parameters)
    for sentence in (
        f"v1 R50 {top1['MoCo v1 R50, 200 epochs']} (",
        f"RX50 {top1['MoCo v1 RX50, 200 epochs']} (ResNeXt-50 32x8d, {rx50.parameters} M",
        f"R50w2x {top1['MoCo v1 R50w2x, 200 epochs']}, R50w4x {top1['MoCo v1 R50w4x, 200 epochs']};",
        f"v2 R50 {v2.values[0]} +- {v2.std} (200 ep), {top1['MoCo v2 R50, 800 epochs']} (800 ep)",
        f"v3 R50 {' / '.join(map(str, r50))} (100 / 300 / 1000 ep), "
        f"ViT-S {top1['MoCo v3 ViT-S, 300 epochs']}, ViT-B {top1['MoCo v3 ViT-B, 300 epochs']} (300 ep)",
    ):
        assert sentence in TEXT, sentence
    assert len(top1) == 11


def test_fine_tuning_and_omnibenchmark() -> None:
    rows: dict[str, list[float]] = {}
    for row in FINETUNE:
        rows.setdefault(row.recipe, []).append(row.values[0])
    small, base = rows.pop("DeiT's")
    assert f"v3 fine-tuned: ViT-S {small}, ViT-B {base} (with DeiT's recipe and code" in TEXT
    assert "ImageNet fine-tune: random {}, IN-1M {}, IG-1B {}.".format(*rows.pop("imagenet")) in TEXT
    species = rows.pop("inaturalist")
    assert "iNaturalist 2018: random {}, supervised {}, IN-1M {}, IG-1B {}.".format(*species) in TEXT
    assert not rows
    assert f"OmniBenchmark mean: MoCo v2 {OMNIBENCHMARK.values[0]}." in TEXT


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
    def comment(name: str) -> str:
        text = (configs_folder() / "pretrain" / f"{name}.yaml").read_text()
        return " ".join(re.findall(r"^# ?(.*)", text, re.M))

    (cifar,) = re.findall(r"ResNet-18, asymmetric: (.*?)\. iNat", TEXT)
    assert numbers(comment("moco_cifar10_resnet18")) == numbers(cifar) and len(numbers(cifar)) == 6
    assert recipe("moco_cifar10_resnet18").knn.features == "encoder"
    (ablation,) = re.findall(r"Momentum ablation at K 4096: m 0 fails, (.*?)\. CIFAR", TEXT)
    assert numbers(comment("moco_v1_resnet50_momentum")) == numbers(ablation) and len(numbers(ablation)) == 8


def test_recipes() -> None:
    rows = table("")
    names = {
        "v1": "moco_v1_resnet50_200ep",
        "v2": "moco_v2_resnet50_200ep",
        "v2, CIFAR demo": "moco_cifar10_resnet18",
        "v3 ResNet-50": "moco_v3_resnet50_100ep",
        "v3 ViT-S / ViT-B": "moco_v3_vit_small_300ep",
    }

    def cell(row: str, column: str) -> str:
        text = rows[row][column]
        return cell(row, "v1" if column == "v2" else "v2") if text == "same" else text

    for column, name in names.items():
        c = recipe(name)
        m, o, s = c.method_args, c.optimizer, c.schedule
        queue = column in ("v1", "v2", "v2, CIFAR demo")
        first = f"{m['queue_size']} / {m['momentum']}" if queue else f"no queue / {m['momentum']} cosine to 1"
        assert cell("K / m / T", column) == f"{first} / {m['temperature']}"
        rule = {"sgd": f"SGD {o.momentum}", "lars": f"LARS {o.momentum}", "adamw": "AdamW"}[o.name]
        assert cell("optimizer", column).startswith(f"{rule}, wd {short(o.weight_decay)}")
        rate = f"{short(o.lr)} ({o.reference_batch_size})" if queue else f"{short(o.lr)} x batch/256"
        assert cell("lr (batch)", column).startswith(rate)
        assert o.scale_lr and (queue or o.reference_batch_size == 256)
        gpus = m.get("batch_norm_groups", {"lars": 16, "adamw": 32}.get(o.name))
        if column == "v2, CIFAR demo":
            assert cell("batch, GPUs", column) == f"{c.data.batch_size} on 1, BN split in {gpus}"
            assert cell("schedule", column) == f"{s.name}, {s.epochs} ep"
        else:
            assert cell("batch, GPUs", column).startswith(f"{c.data.batch_size} on {gpus}")
        if column == "v1":
            drops = ", ".join(f"{share * s.epochs:.0f}" for share in s.milestones)
            assert cell("schedule", column) == f"x{s.gamma} at {drops} of {s.epochs}"
        if column.startswith("v3"):
            assert cell("schedule", column).startswith(f"{s.name} after {s.warmup_epochs} warm-up ep")
            projection = "proj {projector_layers} layers {hidden_dim}".format(**m)
            assert projection in cell("projection", column) and f"out {m['dim']}" in cell("projection", column)
            assert s.interval == "step"
        else:
            assert s.interval == "epoch"
    base, small, longest = (
        recipe(f"moco_v3_{name}") for name in ("vit_base_300ep", "vit_small_300ep", "resnet50_1000ep")
    )
    vit = rows["batch, GPUs"]["v3 ViT-S / ViT-B"]
    assert f"{small.data.batch_size} on 32 (ViT-S; " in vit and f"/ {base.data.batch_size} on 64 (ViT-B)" in vit
    debugging = recipe("moco_v3_vit_small_batch1024")
    assert f"{debugging.data.batch_size} on 8 is the authors' set-up for debugging" in vit
    assert f"ViT-S has {small.backbone_args['num_heads']} heads" in rows["other"]["v3 ViT-S / ViT-B"]
    resnet = "v3 ResNet-50"
    assert f"({short(longest.optimizer.weight_decay)} at 1000 ep)" in rows["optimizer"][resnet]
    assert (
        f"{longest.optimizer.lr} x batch/256 (300 and 1000 ep; m {longest.method_args['momentum']} at 1000)"
        in (rows["lr (batch)"][resnet])
    )
    assert "200 or 800 ep" in rows["schedule"]["v2"] and recipe("moco_v2_resnet50_800ep").schedule.epochs == 800


def test_evaluation_protocols() -> None:
    folder = configs_folder() / "evaluate"
    linear, v3_resnet, v3_vit = (
        read_yaml(folder / "linear" / f"{name}.yaml") for name in ("moco_v1", "moco_v3_resnet", "moco_v3_vit")
    )
    imagenet, species = (read_yaml(folder / "finetune" / f"{name}.yaml") for name in ("imagenet", "inaturalist"))
    o, s = linear.optimizer, linear.schedule
    assert (
        f"SGD {o.momentum}, wd {short(o.weight_decay)}, lr {short(o.lr)}, batch {linear.data.batch_size}, "
        f"{s.epochs} epochs, x{s.gamma} at {s.milestones[0]} and {s.milestones[1]};"
    ) in TEXT
    assert (
        f"lr {short(v3_resnet.optimizer.lr)} x batch/256 for ResNet-50 and {short(v3_vit.optimizer.lr)} x batch/256 for "
        f"ViT, batch {v3_vit.data.batch_size}, {v3_vit.schedule.epochs} epochs, {v3_vit.schedule.name}."
    ) in TEXT
    start = f"({short(species.untrained_lr)} from scratch)"
    assert f"ImageNet end-to-end fine-tune: lr {short(imagenet.optimizer.lr)} {start}." in TEXT
    drops = " and ".join(f"{100 * share:.0f}%" for share in species.schedule.milestones)
    assert (
        f"iNaturalist 2018 fine-tune: lr {short(species.optimizer.lr)} {start}, {species.schedule.epochs} epochs, "
        f"x{species.schedule.gamma} at {drops}."
    ) in TEXT


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
