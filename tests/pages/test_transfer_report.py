"""The report of transfer runs: the papers' tables with ours below, curves, pictures, and evaluations beside them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco_plugin.pages.tables import Table
from moco_plugin.pages.transfer_page import write_report
from moco_plugin.pages.transfer_table import list_tasks, match, transfer_table
from moco_plugin.tools.report import main
from moco_plugin.transfer.tasks import TASKS
from tests.helpers.browser import Reader, load
from tests.pages.conftest import evaluation

V2 = {"method": "moco_v2", "epoch": 200, "architecture": "resnet50"}
BATCH_4 = {"images_per_batch": 4, "overrides": ["SOLVER.MOMENTUM", "0.8"]}


def write_run(
    folder: Path, task: str, init: str, values: Sequence[tuple[float | None, ...]], wanted: int = 3, **more: Any
) -> dict[str, Any]:
    """Write the ``results.json`` of a run from the metrics of its trials, in the order of the task's."""
    paths = [metric.path for metric in TASKS[task].metrics]
    columns = {path: [trial[i] for trial in values] for i, path in enumerate(paths)}
    known = {path: [v for v in column if v is not None] for path, column in columns.items()}
    result = {
        "task": task,
        "init": init,
        "config": TASKS[task].configs[init],
        "overrides": [],
        "images_per_batch": None,
        "settings": {"SOLVER": {"IMS_PER_BATCH": 16, "BASE_LR": 0.02, "MAX_ITER": 24000}},
        "versions": {"torch": "2.4", "detectron2": "0.6"},
        "requested_trials": wanted,
        "weights": "" if init == "random" else "moco.pth.tar",
        "weights_sha256": "" if init == "random" else "ab" * 32,
        "pretraining": {},
        "trials": [
            {"trial": n, "seed": n, "folder": f"trial_{n}", "metrics": dict(zip(paths, trial, strict=True))}
            for n, trial in enumerate(values, start=1)
        ],
        "mean": {p: float(np.mean(v)) if v and len(v) == len(values) else None for p, v in known.items()},
        "std": {p: float(np.std(v, ddof=1)) if len(v) > 1 else None for p, v in known.items()},
        **more,
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(result))
    return result


def write_pictures(folder: Path, *names: str) -> None:
    (folder / "predictions").mkdir()
    for name in names:
        for end in ("", "_truth"):
            Image.new("RGB", (40, 30), "green").save(folder / "predictions" / f"{name}{end}.png")


def write_losses(folder: Path, losses: dict[int, float]) -> None:
    folder.mkdir()
    rows = [json.dumps({"iteration": step, "total_loss": loss, "lr": 0.1}) for step, loss in losses.items()]
    (folder / "metrics.json").write_text("\n".join([*rows, json.dumps({"bbox/AP": 1.0})]) + "\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs on VOC, one on COCO, one without a finished trial, an evaluation, and files of others."""
    voc = tmp_path / "runs" / "voc"
    write_run(voc / "random", "voc_c4", "random", [(60.0, 33.0, 32.0), (61.0, 34.0, 33.0), (62.0, 35.0, 34.0)])
    write_run(voc / "v2", "voc_c4", "moco", [(82.0, 57.0, 63.0), (83.0, 57.0, 64.0)], 5, pretraining=V2)
    write_run(voc / "mine", "voc_c4", "moco", [(70.0, 40.0, None)], 1, pretraining={**V2, "epoch": 7}, **BATCH_4)
    write_run(tmp_path / "runs" / "coco", "coco_keypoint", "supervised", [(65.0, 86.0, 70.0)], 1)
    write_run(tmp_path / "runs" / "begun", "voc_semantic", "random", [])
    write_losses(voc / "random" / "trial_1", {0: 4.0, 20: 2.0, 40: 1.5})
    write_losses(voc / "random" / "trial_2", {0: 2.0, 20: 1.0})
    write_losses(voc / "v2" / "trial_1", {0: 2.0, 20: 0.5})
    for name in ("random", "v2"):
        write_pictures(voc / name, "000001", "000002")
    linear = evaluation("linear", recipe="moco_v1", top1=67.25, top5=88.0)
    (tmp_path / "runs" / "linear.json").write_text(json.dumps(linear))
    (voc / "random" / "trial_1" / "results.json").write_text('{"voc_2007_test": {"bbox": {"AP": 33.0}}}')
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "results.json").write_text("[1")
    return tmp_path / "runs"


def rows_of(table: Table) -> list[str]:
    return [" | ".join(row) for row in table.rows]


def test_ours_below_theirs_by_hand(tmp_path: Path) -> None:
    task = TASKS["voc_c4"]
    results = [
        write_run(tmp_path / "a", "voc_c4", "moco", [(82.0, 57.0, 63.0), (83.0, 57.0, 64.0)], 5, pretraining=V2),
        write_run(tmp_path / "b", "voc_c4", "random", [(60.0, 33.0, 32.0)], 1),
        write_run(tmp_path / "c", "voc_c4", "moco", [(70.0, 40.0, None)], 1, pretraining={}, **BATCH_4),
    ]
    table = transfer_table(task, results)
    assert table.columns == ("initialisation", "from", "AP50", "AP", "AP75", "trials", "changed")
    rows = rows_of(table)
    assert rows[:2] == ["random | paper | 60.2 | 33.8 | 33.1 |  | ", "random | here | 60.0 | 33.0 | 32.0 | 1 | "]
    position = rows.index("MoCo v2 IN-1M, 200 epochs | paper | 82.4 | 57.0 | 63.6 |  | ")
    # std of 82 and 83: sqrt(2 * 0.5^2 / 1) = 0.71
    assert rows[position + 1] == "MoCo v2 IN-1M, 200 epochs | here | 82.5 ± 0.7 | 57.0 ± 0.0 | 63.5 ± 0.7 | 2 of 5 | "
    assert rows[-1] == f"MoCo: moco.pth.tar | here | 70.0 | 40.0 | {rows[-1].split(' | ')[4]} | 1 | [1]"
    assert "[1] 4 images per batch, SOLVER.MOMENTUM 0.8" in table.caption
    assert len(rows) == 6 + 3


@pytest.mark.parametrize(
    ("init", "pretraining", "expected"),
    [
        ("moco", V2, "MoCo v2 IN-1M, 200 epochs"),
        ("moco", {**V2, "method": "moco"}, "MoCo v2 IN-1M, 200 epochs"),
        ("moco", {**V2, "method": "moco_v1"}, "MoCo v1 IN-1M, 200 epochs"),
        ("moco", {**V2, "epoch": -1}, None),
        ("moco", {"method": "moco_v1", "epoch": None}, None),  # unknown, and not IG-1B
        ("moco", {}, None),
        ("moco", {**V2, "method": "moco_v3"}, None),
        ("random", {}, "random"),
        ("supervised", {}, "supervised IN-1M"),
    ],
)
def test_which_row_is_repeated(init: str, pretraining: dict[str, Any], expected: str | None) -> None:
    row = match(TASKS["voc_c4"], {"init": init, "pretraining": pretraining})
    assert (row and row.name) == expected


def test_list_of_tasks() -> None:
    text = list_tasks()
    assert re.search(r"^ +random +voc/pascal_voc_R_50_C4_24k_random +60\.2 / 33\.8 / 33\.1$", text, re.M)
    assert "v2 IN-1M, 800 epochs 82.5 / 57.4 / 64.0" in text
    assert "with frozen batch norm the paper gives supervised weights 24.4 / 37.8 / 25.8." in text
    assert all(f"{name}: " in text for name in TASKS)


def test_text_and_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out" / "results.html"
    assert main([str(runs), "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^random +here +61\.0 ± 1\.0 +34\.0 ± 1\.0 +33\.0 ± 1\.0 +3", shown, re.M)
    assert re.search(r"^MoCo v2 resnet50, 7 epochs +here +70\.0", shown, re.M)
    assert re.search(r"^supervised IN-1M +paper +65\.8", shown, re.M) and "keypoint AP" in shown
    assert "67.5 ± 0.1" in shown and "Linear classification" in shown  # and not the run that only began
    assert "VOC 2012" not in shown and str(page) in shown

    html = page.read_text()
    reader = Reader(html)
    assert "4 transfer runs of 2 tasks and 1 evaluation in" in reader.text
    assert "learning rate 0.02, 24000 iterations" in reader.text and "detectron2 0.6" in reader.text
    pictures = [attributes for tag, attributes in reader.elements if tag == "img"]
    alts = [attributes["alt"] for attributes in pictures]
    # one chart, 2 images with a truth and two runs' predictions
    assert len(pictures) == 1 + 2 * 3
    # means of the trials at the steps that both have: (4 + 2) / 2 and (2 + 1) / 2
    assert "random goes from 3.00 to 1.50, MoCo v2 resnet50, 200 epochs goes from 2.00 to 0.50" in alts[0]
    assert all(attributes["src"].startswith("data:") for attributes in pictures)
    assert "http:" not in html and "https:" not in html
    document, complaints = load(page, tmp_path / "profile")
    assert complaints == [] and document.count("<table>") == 3

    assert main([str(runs), "--out", str(page)]) == 2
    assert "--overwrite" in capsys.readouterr().err and page.read_text() == html
    assert main([str(runs), "--out", str(page), "--overwrite"]) == 0


def test_two_runs_from_like_weights_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, "voc_c4", "random", [(60.0, 33.0, 32.0)], 1)
        write_losses(tmp_path / name / "trial_1", {0: 4.0, 20: 2.0})
    write_report(tmp_path, tmp_path / "report.html")
    assert "random (a) goes from 4.00" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda folder: folder / "absent", "is not a folder"), (lambda folder: folder, "contains no results")],
)
def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str) -> None:
    (tmp_path / "results.json").write_text('{"AP": 1}')
    assert main([str(spoil(tmp_path)), "--out", str(tmp_path / "page.html")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "page.html").exists()
    assert main([str(tmp_path), "--out", str(tmp_path / "page.txt")]) == 2


def test_broken_picture_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "voc" / "v2" / "predictions" / "000001.png"
    path.write_bytes(b"no picture")
    assert main([str(runs), "--out", str(tmp_path / "page.html")]) == 1
    assert str(path) in capsys.readouterr().err and not (tmp_path / "page.html").exists()
