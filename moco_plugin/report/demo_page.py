"""The report of a demo run: a page, a results.json and a table for the terminal."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.config import PretrainConfig, load_config
from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path, read_json, write_json
from moco_plugin.report.curves import line_chart, read_curve
from moco_plugin.report.demo_results import DETECTORS, DemoResults, read_results, run_folder
from moco_plugin.report.detections import MIN_SCORE, Scene, detections_figure, read_scenes
from moco_plugin.report.neighbours import nearest_neighbours
from moco_plugin.report.page import Fact, Page
from moco_plugin.report.pairs import view_pairs
from moco_plugin.report.pictures import grid
from moco_plugin.report.tables import Comparison, comparison_table, headline, seed_table

SCENES = 3


def write_demo_report(folder: Path, output: Path) -> str:
    """Writes the page of a demo run, with a ``results.json`` beside it.

    Args:
        folder: What ``tools/demo.py`` fills: ``pretrain``, ``knn_*.json``, ``transfer`` and ``data/scenes``.
        output: The HTML file.

    Returns:
        The results in plain text.

    Raises:
        UserError: A file of the run is missing or broken.
    """
    results = read_results(folder)
    config = _read_config(folder)
    checkpoint = read_checkpoint(folder / "pretrain" / "checkpoints" / "last.ckpt")
    scenes = read_scenes(folder / "data" / "scenes", SCENES)
    trial = f"trial_{results.seeds[0]}"
    detections = {
        name: {
            f"{name}, {start}": _read_detections(run_folder(folder, detector, init) / trial)
            for init, start in (("random", "random init"), ("moco", "MoCo"))
        }
        for detector, name in DETECTORS.items()
    }
    main = [results.knn, *_box_ap(results)]
    all_results = [results.knn, *results.transfer]
    page = Page("Momentum contrast, from pixels to detections", headline(main))
    _add_results(page, results)
    _add_curves(page, folder, config)
    _add_views(page, config)
    _add_neighbours(page, folder, results, checkpoint)
    _add_detections(page, scenes, detections, results.seeds[0])
    _add_making(page, folder, config)
    with atomic_path(output) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    summary: dict[str, Any] = {"headline": headline(main), "seeds": results.seeds}
    summary["results"] = {
        comparison.name: {"compared_with": comparison.baseline_name, **comparison.summary()}
        for comparison in all_results
    }
    write_json(output.with_name("results.json"), summary)
    tables = (comparison_table(all_results), seed_table(results.transfer, _seed_names(results)))
    return "\n\n".join((headline(main), *(table.text() for table in tables)))


def _read_config(folder: Path) -> PretrainConfig:
    path = folder / "pretrain" / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing; run the pre-training stage")
    return load_config(path)


def _seed_names(results: DemoResults) -> list[str]:
    return [f"seed {seed}" for seed in results.seeds]


def _box_ap(results: DemoResults) -> list[Comparison]:
    return [comparison for comparison in results.transfer if comparison.name.endswith("box AP")]


def _add_results(page: Page, results: DemoResults) -> None:
    page.section("Results")
    shown = [results.knn, *_box_ap(results)]
    page.facts(
        Fact(
            c.name,
            f"{statistics.fmean(c.moco):.1f}{c.unit}",
            f"with MoCo; {statistics.fmean(c.baseline):.1f}{c.unit} {c.baseline_name}",
        )
        for c in shown
    )
    protocol = results.knn_protocol
    page.text(
        f"kNN accuracy says how often the {protocol.get('k', 'k')} nearest training images vote for the "
        "right class of a test image, with images compared by the network's features alone. AP and AP50 "
        "are COCO's average precision of the boxes and masks of two Mask R-CNNs trained on few labelled scenes, "
        "once from random weights and once from MoCo's, with everything else the same: C4 has res5 of the backbone "
        "as its head, as in the papers, FPN a feature pyramid."
    )
    several = "mean ± sample standard deviation over seeds" if len(results.seeds) > 1 else "a single seed"
    page.table(
        comparison_table(
            [results.knn, *results.transfer], f"Untrained or random weights and MoCo, {several}."
        )
    )
    page.table(seed_table(results.transfer, _seed_names(results), "Detection with each seed."))


def _add_curves(page: Page, folder: Path, config: PretrainConfig) -> None:
    log = folder / "pretrain" / "metrics.csv"
    page.section("Pre-training")
    charts = []
    queue = config.method_args.get("queue_size")
    chance = (math.log(1 + queue), f"guessing: ln({queue:,} + 1)") if queue else None
    steps, loss = read_curve(log, "loss")
    alt = f"Line chart: the loss goes from {loss[0]:.2f} to {loss[-1]:.2f} in {steps[-1] + 1} steps"
    charts.append(line_chart(steps, loss, "contrastive loss", alt, noisy=True, reference=chance))
    steps, knn = read_curve(log, "knn_top1")
    alt = f"Line chart: the kNN accuracy goes from {knn[0]:.1f}% to {knn[-1]:.1f}% in {steps[-1]} steps"
    charts.append(line_chart(steps, knn, "kNN accuracy in %", alt, reference=(knn[0], "untrained")))
    steps, spread = read_curve(log, "feature_std")
    alt = f"Line chart: the feature spread goes from {spread[0]:.2f} to {spread[-1]:.2f}"
    charts.append(
        line_chart(
            steps, spread, "feature spread", alt, noisy=True, limits=(0, 1.1), reference=(1, "whole sphere")
        )
    )
    page.figure(
        grid(charts, "medium"),
        "Contrastive loss: how hard it is to tell the other view of an image from the keys in the queue, as "
        "logged (pale) and averaged (bold). kNN accuracy: measured with labels that training never sees. "
        "Feature spread: the standard deviation of the queries, 1 where they use the whole sphere and 0 "
        "where all images look the same to the network.",
    )  # fmt: skip


def _add_views(page: Page, config: PretrainConfig) -> None:
    page.section("What MoCo learns from")
    page.text(
        "No labels: two random views of one image should have similar features, and views of different "
        "images should not. Each card holds an unlabelled image and two views, drawn as in training."
    )
    page.figure(
        view_pairs(config),
        "Random crops, jitter, blur and flips change how an image looks, but not what it shows. The images "
        "are spread evenly over the training set.",
    )


def _add_neighbours(page: Page, folder: Path, results: DemoResults, checkpoint: Checkpoint) -> None:
    train, test = (ImageSet(_spec(folder, results, name)) for name in ("train", "test"))
    pictures, right, total = nearest_neighbours(checkpoint, train, test)
    page.section("What it finds similar")
    page.figure(
        pictures,
        "Left: the first test image of each class. Right of it: the training images with the most similar "
        "MoCo features, most similar first. A solid green frame marks the same class, a dashed red one "
        f"another: {right} of {total} neighbours have the class of their test image.",
    )


def _spec(folder: Path, results: DemoResults, name: str) -> str:
    if name not in results.knn_protocol:
        raise UserError(f"{folder / 'knn_moco.json'} does not say which {name} images it used")
    return str(results.knn_protocol[name])


def _add_detections(
    page: Page, scenes: list[Scene], detections: dict[str, dict[str, list[dict[str, Any]]]], seed: int
) -> None:
    page.section("What detectors make of it")
    for detector, found in detections.items():
        page.figure(
            detections_figure(scenes, found),
            f"{detector}: the first test scenes with the objects in them, and what the detectors of seed {seed} "
            f"find: class, score, box and mask of each detection of score {MIN_SCORE} or more. An object counts as "
            "found where a detection of its class overlaps its box by half or more (intersection over union).",
        )


def _read_detections(folder: Path) -> list[dict[str, Any]]:
    name = "coco_instances_results.json"
    found = sorted((folder / "inference").rglob(name))
    detections = read_json(found[0] if found else folder / "inference" / name)
    keys = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(detections, list) or not all(keys <= set(detection) for detection in detections):
        raise UserError(f"{found[0]} is no list of COCO results; run the detection stage again")
    return detections


def _add_making(page: Page, folder: Path, config: PretrainConfig) -> None:
    log = folder / "pretrain" / "metrics.csv"
    steps, _ = read_curve(log, "loss")
    _, rate = read_curve(log, "images_per_second")
    names = {"queue_size": "keys in the queue, K", "momentum": "momentum, m", "temperature": "temperature, T"}
    backbone = [config.backbone, *(f"{key} {value}" for key, value in config.backbone_args.items())]
    page.section("How this was made")
    page.settings(
        {
            "method": config.method,
            **{names.get(key, key): str(value) for key, value in config.method_args.items()},
            "backbone": ", ".join(backbone),
            "images": f"{config.data.root}, without labels",
            "view size": f"{config.data.image_size} pixels",
            "images a step": str(config.data.batch_size),
            "training": f"{config.schedule.epochs} epochs, {steps[-1] + 1} steps, "
            f"{statistics.median(rate):.0f} images a second",
            "learning rate": f"{config.optimizer.lr}, {config.schedule.name}",
        }
    )
    commands = folder / "commands.txt"
    if commands.is_file():
        page.text("The commands, as typed:")
        page.code(commands.read_text())
