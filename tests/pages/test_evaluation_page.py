"""The linear-classification table with the papers' rows, and the page of a folder of evaluations."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moco_plugin.pages.evaluation_results import linear_table, read_evaluations
from moco_plugin.pages.transfer_page import write_report
from moco_plugin.papers import LINEAR
from tests.pages.conftest import evaluation


def write(folder: Path, *results: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for index, one in enumerate(results):
        (folder / f"{index}.json").write_text(json.dumps(one))
    return folder


def test_papers_rows_with_ours_beside_them(tmp_path: Path) -> None:
    vit = {"method": "moco_v3", "epoch": 300, "architecture": "vit_small_patch16_224", "feature_dim": 384}
    folder = write(
        tmp_path / "results",
        evaluation("linear", recipe="moco_v1", top1=67.0, top5=88.0),
        evaluation("linear", recipe="moco_v1", top1=68.0, top5=88.5),
        evaluation("linear", recipe="moco_v1", top1=70.0, top5=90.0, feature_dim=4096),  # R50w2x has no row in v2
        evaluation("linear_fast", top1=60.0, top5=None, epoch=7),
        evaluation("linear", recipe="moco_v3_vit", top1=73.0, top5=91.0, **vit),
        evaluation("linear", recipe="moco_v1", top1=9.0, top5=20.0, untrained=True),
    )
    (folder / "other.json").write_text('{"anything": 1}')
    (folder / "broken.json").write_text("{")
    table = linear_table(read_evaluations(folder))
    cells = {tuple(row[:2]): row[2:] for row in table.rows}
    assert len(table.rows) == len(LINEAR) + 3
    assert cells["MoCo v2 R50, 200 epochs", "67.5 ± 0.1"] == ("67.5 ± 0.7", "88.2 ± 0.4", "moco_v1", "imagenet/val")
    assert cells["MoCo v3 ViT-S, 300 epochs", "73.2"][:3] == ("73.0", "91.0", "moco_v3_vit")
    assert cells["MoCo v1 R50w2x, 200 epochs", "65.4"][0] == "-"
    assert cells["MoCo v2 resnet50, 7 epochs", "-"] == ("60.0", "-", "cached features", "imagenet/val")
    assert cells["random weights, resnet50", "-"][0] == "9.0"


@pytest.mark.parametrize(
    ("architecture", "parameters", "beside"),
    [
        ("resnext50_32x4d", 45_972_800, True),  # with base_width 8
        ("resnext50_32x8d", 45_972_800, True),  # as a file's shapes are called
        ("resnext50_32x4d", 22_979_904, False),
    ],
)
def test_resnext_of_the_paper_is_32x8d(architecture: str, parameters: int, beside: bool, tmp_path: Path) -> None:
    mine = evaluation("linear", recipe="moco_v1", top1=60.0, top5=80.0, method="moco_v1", architecture=architecture)
    table = linear_table([{**mine, "parameters": parameters}])
    (row,) = (row for row in table.rows if row[0] == "MoCo v1 RX50, 200 epochs")
    assert row[1:3] == ("63.9", "60.0" if beside else "-")
    assert len(table.rows) == len(LINEAR) + (not beside)


def test_page_shows_every_kind(tmp_path: Path) -> None:
    realm = {"mean_per_class": 30.0, "top1": 31.0, "l2": 0.001, "classes": 5}
    folder = write(
        tmp_path / "results",
        evaluation("linear", recipe="moco_v1", top1=67.0, top5=88.0),
        evaluation("finetune", recipe="imagenet", top1=77.25),
        evaluation("lowshot", shares=[{"share": 0.01, "train_images": 12811, "top1": 43.21}]),
        evaluation("knn", k=10, top1=50.0, top1_by_k={"10": 50.0, "200": 48.76}),
        evaluation("retrieve", recall={"1": 40.12}),
        evaluation(
            "omnibenchmark", mean_per_class=30.0, top1=31.0, partial=True, missing=["car"], realms={"bird": realm}
        ),
        evaluation("omnibenchmark_realm_val", realm="bird", top1=31.0),
        evaluation("multilabel", knn_map=51.23, linear_map=61.34),
        evaluation("width", width=2048),
    )
    page = tmp_path / "page.html"
    text, html = write_report(folder, page), page.read_text()
    for shown in (text, html):
        for value in ("67.5 ± 0.1", "67.0", "77.2", "43.2", "48.8", "40.1", "51.2", "34.8"):
            assert value in shown, value
        assert "mean (partial, 1 realms missing)" in shown and "Results without a table: width." in shown
    assert "Missing: car." in html and "0" * 64 in html and "http" not in html.split("</style>")[1]
    assert html.count("<h2>") == 8
    assert re.search(r"^MoCo v3 ViT-S \(paper\) +DeiT's +81\.4", text, re.M) and "rows with DeiT&#39;s recipe" in html
