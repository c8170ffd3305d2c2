"""The page of one pre-training run: its settings, its curves with their expected course, and pairs of views."""

import math
from pathlib import Path
from random import Random

import torch
from typing_extensions import TypedDict

from moco_plugin.data.images import as_picture
from moco_plugin.errors import UserError
from moco_plugin.files import read_json, read_text
from moco_plugin.pages.curves import line_chart, read_curve
from moco_plugin.pages.page import Page, Picture, tile
from moco_plugin.pretraining.config import PretrainConfig, load_config
from moco_plugin.pretraining.run import build_views, open_images
from moco_plugin.typed import convert

CURVES = {
    "loss": ("contrastive loss", "rises while the queue fills with keys of images, then falls slowly"),
    "top1": ("top-1 among the K + 1 keys, %", "near 100 within a few hundred steps: pairs leak through batch norm"),
    "feature_std": ("spread of the features", "1 on the whole sphere, towards 0 in a collapse"),
    "queue_filled": ("share of the queue from images", "reaches 1 after K / batch steps"),
    "knn_top1": ("kNN accuracy, %", "measured with labels that training never sees"),
    "images_per_second": ("images per second", "tools/benchmark.py load names what limits it"),
}


class Finished(TypedDict, total=False):
    """What is read of a run's ``result.json``."""

    steps: int


FEW_STEPS = 200  # below which a run says nothing about what a network can learn
COLLAPSED = 0.05


def is_pretraining(folder: Path) -> bool:
    """Return whether a folder contains a pre-training run."""
    return (folder / "config.yaml").is_file() and (folder / "metrics.csv").is_file()


def write_pretraining_page(folder: Path, html: Path) -> str:
    """Write the page of a run; return its summary in plain text.

    Args:
        folder: With ``config.yaml`` and ``metrics.csv``.
        html: The page.

    Raises:
        UserError: The log has no rows, or the run's images are missing.
    """
    config = load_config(folder / "config.yaml")
    curves = {}
    for column in CURVES:
        try:
            curves[column] = read_curve(folder / "metrics.csv", column)
        except UserError:
            continue  # this run does not measure it
    if "loss" not in curves:
        raise UserError(f"{folder / 'metrics.csv'} has no loss yet; wait for the first logged step")
    steps = curves["loss"][0][-1] + 1
    finished = (folder / "result.json").is_file()
    if finished:
        steps = convert(read_json(folder / "result.json"), Finished, str(folder / "result.json")).get("steps", steps)
    summary = (
        f"{config.method}, {config.backbone}, {config.data.image_size} pixels, batch {config.data.batch_size}: "
        f"{steps} steps{'' if finished else ' so far'}"
    )
    warnings = []
    if steps < FEW_STEPS:
        warnings.append(f"A run of {steps} steps: its numbers mean nothing, and no conclusion can be drawn from them.")
    if "feature_std" in curves and curves["feature_std"][1][-1] < COLLAPSED:
        warnings.append("The spread of the features is near 0: the network has collapsed.")
    page = Page(f"Pre-training in {folder.name}", " ".join([*warnings, f"{summary}."]))
    page.section("Curves")
    queue = config.method_args.get("queue_size")
    charts: list[Picture] = []
    for column, (title, _) in CURVES.items():
        if column not in curves:
            continue
        values = curves[column][1]
        alt = f"Line chart: {title} goes from {values[0]:.3g} to {values[-1]:.3g} in {steps} steps"
        reference = {
            "loss": (math.log(1 + queue), "guessing") if queue else None,
            "feature_std": (1.0, "whole sphere"),
        }.get(column)
        charts.append(line_chart({"": curves[column]}, title, alt, noisy=len(values) > 20, reference=reference))
    healthy = "; ".join(f"{CURVES[column][0]}: {CURVES[column][1]}" for column in curves)
    page.add("charts", charts, f"Over training steps. {healthy}.")
    page.section("Pairs of views")
    page.add("cards", view_pairs(config), "Images and the two views that training matches with each other.")
    page.section("Settings")
    page.add("code", read_text(folder / "config.yaml"))
    page.save(html)
    last = ", ".join(f"{CURVES[column][0]} {curve[1][-1]:.3g}" for column, curve in curves.items())
    return "\n".join([*warnings, summary, last])


def view_pairs(config: PretrainConfig, count: int = 12) -> list[list[Picture]]:
    """Return images evenly spread over a run's set, each with a pair of views made as the run made them.

    Args:
        config: The run's.
        count: Images, at most; one that cannot be decoded is left out.
    """
    images = open_images(config)
    views = build_views(config, images)
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
    cards = []
    for position, index in enumerate(chosen, start=1):
        array, _ = images.try_load_array(index)
        if array is None:
            continue
        arrays, plans, _ = views.collate([(*views(array, Random(f"{config.seed} {index}")), "")])
        first, second = (view[0].numpy() for view in views.finish(arrays, plans))
        parts = (("image", array), ("view 1", first), ("view 2", second))
        cards.append([tile(as_picture(part), f"Image {position}: {name}", name) for name, part in parts])
    return cards
