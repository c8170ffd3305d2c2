#!/usr/bin/env python3
"""Make the runs and the pictures of docs/health.md: a healthy run, a collapsed, a leaking and an input-bound one.

    python docs/examples/health_runs.py /usr/share/datasets/fashion-mnist

takes the folder of Fashion-MNIST's idx files, a quarter of an hour of two cores, and writes docs/pictures/health_*.png.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from moco_plugin import load_config, pretrain
from moco_plugin.sources.idx import load_idx_images

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
TRAIN, TEST = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
HEALTHY = {"schedule.epochs": 5, "optimizer.lr": 0.03, "data.view_args.min_scale": 0.2, "trainer.log_every_n_steps": 5}
# What differs from the healthy run, and what the picture says of it.
RUNS: dict[str, tuple[dict[str, object], str]] = {
    "healthy": ({}, "healthy"),
    "collapsed": (
        {"optimizer.lr": 3.0, "optimizer.weight_decay": 0.01},
        "collapsed: a learning rate 100 times too high",
    ),
    "leaking": (
        {"data.view_args": "{min_scale: 0.9, cj_prob: 0, random_gray_scale: 0, gaussian_blur: 0}"},
        "leaking: views that share nearly all their pixels",
    ),
    "input_bound": (
        {"views.engine": "reference", "data.workers": 0, "schedule.steps": 40},
        "input-bound: JPEG photographs, Pillow, no loader processes",
    ),
}
CURVES = {
    "loss": "loss",
    "top1": "accuracy among K + 1 keys, %",
    "feature_std": "spread of the features",
    "knn_top1": "kNN accuracy, %",
    "images_per_second": "images per second",
}
COLOURS = ("#1d8a4e", "#c8372d", "#c77a12", "#1c63c7")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fashion_mnist", type=Path, help="folder of its idx files")
    parser.add_argument("--images", type=int, default=20000, help="to train on (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/health"), help="folder of the runs (default: %(default)s)"
    )
    args = parser.parse_args()
    train, test = args.fashion_mnist / TRAIN, args.fashion_mnist / TEST
    photographs = write_photographs(args.out / "photographs", f"{train}[0:1000]")
    for name, (changes, _) in RUNS.items():
        root = photographs if name == "input_bound" else f"{train}[0:{args.images}]"
        values = {**HEALTHY, **changes, "data.root": root, "out": args.out / name}
        monitored = {"knn.train": f"{train}[0:2000]", "knn.test": f"{test}[0:1000]"}
        pretrain(load_config("demo_fashion_mnist", [f"{key}={value}" for key, value in (values | monitored).items()]))
    PICTURES.mkdir(exist_ok=True)
    for column, title in CURVES.items():
        draw(args.out, column, title)


def write_photographs(folder: Path, source: str) -> Path:
    """Write idx images as large JPEG files, such as cameras make."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for number, image in enumerate(load_idx_images(source)[0]):
            Image.fromarray(image).resize((1024, 1024)).convert("RGB").save(folder / f"{number:05}.jpg")
    return folder


def draw(out: Path, column: str, title: str) -> None:
    """Draw one signal of all runs, but for the input-bound one's where only its speed differs."""
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for colour, (name, (_, label)) in zip(COLOURS, RUNS.items(), strict=True):
        if (name == "input_bound") != (column == "images_per_second") and name != "healthy":
            continue
        with open(out / name / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(column)]
        steps, values = (np.array([float(row[key]) for row in rows]) for key in ("step", column))
        axis.plot(steps, values, color=colour, label=label, marker="o" if column == "knn_top1" else None)
    axis.set(xlabel="step", ylabel=title, ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURES / f"health_{column}.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
