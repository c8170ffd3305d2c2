"""A demo run's folder with made-up numbers, as small as it can be."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from moco_plugin.demo.objects import write_idx
from moco_plugin.pretraining.config import config_dict, load_config

BOX_AP = {"random": [10.0, 12.0, 14.0], "moco": [20.0, 21.0, 25.0]}  # of both detectors
COMMAND = "moco-pretrain 'data.root=<photos>' & more"


def write_transfer(folder: Path, values: dict[str, list[float]]) -> None:
    """Write the results and two drawn images of both detectors, from both initialisations, from box APs, one per seed."""
    for detector in ("c4", "fpn"):
        for init in ("random", "moco"):
            run = folder / "transfer" / detector / init
            (run / "predictions").mkdir(parents=True, exist_ok=True)
            for number, end in product((1, 2), ("", "_truth")):
                Image.new("RGB", (80, 60), "green").save(run / "predictions" / f"test_{number}{end}.png")
            trials = []
            for seed, value in enumerate(values[init], start=1):
                box = {"bbox/AP": value, "bbox/AP50": 2 * value, "bbox/APl": None}
                trials.append({"seed": seed, "metrics": {**box, "segm/AP": value / 2, "segm/AP50": value}})
            (run / "results.json").write_text(json.dumps({"trials": trials, "drawn_above": 0.3}))


def write_accuracies(folder: Path, untrained: float, moco: float, pixels: float = 50.0) -> None:
    """Write results of the evaluations: the same accuracy for two k and a linear classifier."""
    by_k = {
        "knn_random": {"top1_by_k": {"1": untrained, "20": untrained}},
        "knn_moco": {"top1_by_k": {"1": moco, "20": moco}, "pixels": {"1": pixels, "20": pixels}},
    }
    linear = {"linear_random": untrained, "linear_moco": moco, "linear_pixels": pixels}
    for name, result in (by_k | {name: {"top1": value} for name, value in linear.items()}).items():
        (folder / f"{name}.json").write_text(json.dumps(result))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copied, not changed, by tests that need other numbers."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        images = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        write_idx(folder / "data" / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / "data" / f"{part}-labels-idx1-ubyte", labels)

    pretrain = folder / "pretrain"
    pretrain.mkdir()
    overrides = (
        "method=moco backbone=resnet18 backbone_args.channels=[8,8,16,16] data.image_size=32 method_args.queue_size=64 "
        f"method_args.temperature=0.1 views.engine=device data.root={folder}/data/train-images-idx3-ubyte"
    )
    config = load_config("moco_v2", overrides.split())
    (pretrain / "config.yaml").write_text(yaml.safe_dump(config_dict(config)))
    rows = ["step,knn_top1,loss,feature_std,images_per_second", "0,60.0,,,"]
    rows += [f"{step},,{5 - step / 20},0.{step},300" for step in range(1, 30)] + ["30,70.0,,,"]
    (pretrain / "metrics.csv").write_text("\n".join(rows) + "\n")

    (folder / "commands.txt").write_text(COMMAND + "\n")
    write_accuracies(folder, 60.0, 70.25)
    found = [{"test": label, "train": list(range(8))} for label in range(3)]
    sets = {part: f"{folder}/data/{part}-images-idx3-ubyte" for part in ("train", "test")}
    (folder / "neighbours.json").write_text(json.dumps({**sets, "neighbours": found}))
    write_transfer(folder, BOX_AP)
    return folder
