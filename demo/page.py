"""Report of a demo run: a page, a results.json and tables for the terminal."""

import math
import statistics
from pathlib import Path
from typing import Any

from moco_plugin.data.images import ImageSet
from moco_plugin.demo.comparison import Comparison, comparison_table, headline, seed_table
from moco_plugin.demo.results import DETECTORS, DemoResults, read_results, run_folder
from moco_plugin.errors import UserError
from moco_plugin.evaluation.neighbours import Neighbours
from moco_plugin.files import check_file, read_json, write_json
from moco_plugin.pages.curves import line_chart, read_curve
from moco_plugin.pages.neighbours_picture import caption, neighbour_rows
from moco_plugin.pages.page import Page, Picture
from moco_plugin.pages.pretraining_page import view_pairs
from moco_plugin.pages.transfer_page import add_predictions
from moco_plugin.pretraining.config import PretrainConfig, load_config

SCENES = 3
TOY = "Toy size: every stage works, and the numbers below mean nothing."


def write_demo_report(folder: Path, output: Path, quick: bool = False) -> str:
    """Write the page of a demo run, with a ``results.json`` next to it.

    Args:
        folder: Output of ``tools/demo.py``: ``pretrain``, ``knn_*.json``, ``neighbours.json`` and ``transfer``.
        output: The HTML file.
        quick: The run is of toy size, and page and text say that its numbers mean nothing.

    Returns:
        The results in plain text.

    Raises:
        UserError: A file of the run is missing or broken.
    """
    results = read_results(folder)
    check_file(folder / "pretrain" / "config.yaml", "the config of the pre-training stage")
    config = load_config(folder / "pretrain" / "config.yaml")
    all_results = [*results.features, *results.transfer]
    sentence = TOY if quick else headline([*results.features, *_box_ap(results)], _main(results))
    page = Page("Momentum contrast, from pixels to detections", sentence)
    _add_results(page, results)
    _add_curves(page, folder, config)
    _add_views(page, config)
    _add_neighbours(page, folder / "neighbours.json")
    _add_detections(page, folder)
    _add_making(page, folder, config)
    page.save(output)
    measured = {one.name: {"compared_with": one.baseline_name, **one.summary()} for one in all_results}
    summary = {"headline": sentence, "quick": quick, "seeds": results.seeds, "results": measured}
    write_json(output.with_name("results.json"), summary)
    tables = (comparison_table(all_results), seed_table(results.transfer, _seed_names(results)))
    return "\n\n".join((sentence, *(table.text() for table in tables)))


def _seed_names(results: DemoResults) -> list[str]:
    return [f"seed {seed}" for seed in results.seeds]


def _main(results: DemoResults) -> list[Comparison]:
    """Return the main results: kNN at k 20 (or the first k), the linear classifier, box AP."""
    nearest = [comparison for comparison in results.features if comparison.name.endswith("(k 20)")]
    return [(nearest or results.features)[0], results.features[-1], *_box_ap(results)]


def _box_ap(results: DemoResults) -> list[Comparison]:
    return [comparison for comparison in results.transfer if comparison.name.endswith("box AP")]


def _add_results(page: Page, results: DemoResults) -> None:
    page.section("Results")
    page.add(
        "facts",
        [
            (
                c.name,
                f"{statistics.fmean(c.moco):.1f}{c.unit}",
                f"with MoCo; {statistics.fmean(c.baseline):.1f}{c.unit} {c.baseline_name}"
                + ("" if c.pixels is None else f", {c.pixels:.1f}{c.unit} raw pixels"),
            )
            for c in _main(results)
        ],
    )
    page.add(
        "text",
        "Features are measured on pictures of one object each, at a random place and size, as detectors meet them: on "
        "Fashion-MNIST's own pictures, all aligned, raw pixels are hard to beat. kNN accuracy says how often the k nearest "
        "training images vote for the right class of a test image, with images compared only by features; the linear "
        "accuracy is that of a linear classifier of them. Raw pixels and the untrained network are measured in the same "
        "way, and the gain is over the better of the two. AP and AP50 are COCO's average precision of the boxes and masks "
        "of two Mask R-CNNs trained on few labelled scenes, once from random weights and once from MoCo's, with everything "
        "else the same: C4 has res5 of the backbone as its head, as in the papers, FPN a feature pyramid.",
    )
    several = "mean ± sample standard deviation over seeds" if len(results.seeds) > 1 else "a single seed"
    rows = [*results.features, *results.transfer]
    page.add("table", comparison_table(rows, f"Raw pixels, untrained or random weights, and MoCo, {several}."))
    page.add("table", seed_table(results.transfer, _seed_names(results), "Detection with each seed."))


def _add_curves(page: Page, folder: Path, config: PretrainConfig) -> None:
    page.section("Pre-training")

    def chart(column: str, title: str, what: str, unit: str = "", **options: Any) -> Picture:
        steps, values = read_curve(folder / "pretrain" / "metrics.csv", column)
        text = f"Line chart: the {what} goes from {values[0]:.2f}{unit} to {values[-1]:.2f}{unit} by step {steps[-1]}"
        if column == "knn_top1":
            options["reference"] = (values[0], "untrained")
        return line_chart({"": (steps, values)}, title, text, **options)

    queue = config.method_args.get("queue_size")
    chance = (math.log(1 + queue), f"guessing: ln({queue:,} + 1)") if queue else None
    sphere = (1, "whole sphere")
    charts = [
        chart("loss", "contrastive loss", "loss", noisy=True, reference=chance),
        chart("knn_top1", "kNN accuracy in %", "kNN accuracy", "%"),
        chart("feature_std", "feature spread", "feature spread", noisy=True, limits=(0, 1.1), reference=sphere),
    ]
    page.add(
        "charts",
        charts,
        "Contrastive loss: how hard it is to find the other view of an image from the keys in the queue, as "
        "logged (pale) and averaged (bold). kNN accuracy: measured with labels that training never sees. "
        "Feature spread: the standard deviation of the queries, 1 where they use the whole sphere and 0 "
        "where all images look the same to the network.",
    )


def _add_views(page: Page, config: PretrainConfig) -> None:
    page.section("What MoCo learns from")
    page.add(
        "text",
        "No labels: two random views of one image should have similar features, and views of different "
        "images should not. Each card shows an unlabelled image and two views, drawn as in training.",
    )
    page.add(
        "cards",
        view_pairs(config),
        "Random crops, jitter, blur and flips change how an image looks, but not what it shows. The images "
        "are spread evenly over the training set.",
    )


def _add_neighbours(page: Page, path: Path) -> None:
    retrieval = read_json(path)
    try:
        train, test = str(retrieval["train"]), str(retrieval["test"])
        found = [Neighbours(int(one["test"]), list(map(int, one["train"]))) for one in retrieval["neighbours"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no neighbours; expected the output of tools/evaluate.py retrieve") from error
    rows, sentence = neighbour_rows(ImageSet(train), ImageSet(test), found)
    page.section("What it finds similar")
    page.add("rows", rows, f"{caption(train, test)} {sentence}")


def _add_detections(page: Page, folder: Path) -> None:
    page.section("What detectors make of it")
    for detector, name in DETECTORS.items():
        runs = {}
        for init, start in (("random", "random init"), ("moco", "MoCo")):
            run = run_folder(folder, detector, init)
            runs[f"{name}, {start}"] = (run, read_json(run / "results.json"))
        if not add_predictions(page, runs, f"{name}, the first test scenes", SCENES):
            page.add("text", f"{name}: no predictions were drawn.")


def _add_making(page: Page, folder: Path, config: PretrainConfig) -> None:
    log = folder / "pretrain" / "metrics.csv"
    steps, _ = read_curve(log, "loss")
    _, rate = read_curve(log, "images_per_second")
    names = {"queue_size": "keys in the queue, K", "momentum": "momentum, m", "temperature": "temperature, T"}
    backbone = [config.backbone, *(f"{key} {value}" for key, value in config.backbone_args.items())]
    page.section("How this was made")
    page.add(
        "settings",
        {
            "method": config.method,
            **{names.get(key, key): str(value) for key, value in config.method_args.items()},
            "backbone": ", ".join(backbone),
            "images": f"{config.data.root}, without labels",
            "view size": f"{config.data.image_size} pixels",
            "images per step": str(config.data.batch_size),
            "training": f"{config.schedule.epochs} epochs, {steps[-1] + 1} steps, "
            f"{statistics.median(rate):.0f} images per second",
            "learning rate": f"{config.optimizer.lr}, {config.schedule.name}",
        },
    )
    commands = folder / "commands.txt"
    if commands.is_file():
        page.add("text", "The commands, as typed:")
        page.add("code", commands.read_text())
