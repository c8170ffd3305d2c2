"""A method of another package: named by an entry point, it works in every tool as ours do."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.conftest import TEST, TRAIN

METHOD = """
from pathlib import Path

from torch import nn

from moco_plugin import Method
from moco_plugin.methods.encoder import Encoder


class Toy(Method):
    title = "The toy"
    views = "moco_v1"
    recipe = str(Path(__file__).with_name("toy.yaml"))

    def __init__(self, backbone, feature_dim, *, dim: int = 8):
        super().__init__()
        self.encoder_q = Encoder(backbone, nn.Linear(feature_dim, dim), normalized=True)
        self.predictor_of_my_own = nn.Linear(dim, dim)

    def forward(self, view_1, view_2, progress=0.0, update_key_encoder=True):
        predicted = self.predictor_of_my_own(self.encoder_q(view_1))
        similarity = (predicted * self.encoder_q(view_2)).sum(dim=1).mean()
        return -similarity, {"similarity": similarity.detach()}
"""
RECIPE = "{method: toy, method_args: {dim: 8}, backbone: resnet18, data: {batch_size: 16}, schedule: {epochs: 2}}\n"
SCRIPT = """
import sys
from moco_plugin.tools import convert, evaluate, lightly_train_cli, pretrain, report

train, test, photos = sys.argv[1:]
checkpoint, tiny = "runs/toy/checkpoints/last.ckpt", ["data.image_size=32", "data.workers=0", "trainer.accelerator=cpu"]
run = ["method=toy", "backbone_args.channels=[8,16,24,32]", f"data.root={train}[0:64]", *tiny, "out=runs/toy"]
assert pretrain.main([*run, "schedule.epochs=2", "trainer.max_steps=2"]) == 0
assert pretrain.main([*run, "schedule.epochs=2"]) == 0
assert convert.main([checkpoint, "toy.pkl", "--to", "detectron2"]) == 0
sets = ["--train", f"{train}[0:64]", "--test", f"{test}[0:32]"]
assert evaluate.main(["linear", "--fast", "--weights", checkpoint, *sets, "--out", "runs/linear.json"]) == 0
assert report.main(["runs"]) == 0
assert pretrain.main(["method=toi", f"data.root={train}"]) == 2
if photos:
    lightly = ["model=timm/resnet18", "epochs=1", "batch_size=16", "num_workers=0", "accelerator=cpu", "devices=1"]
    size = ["transform_args={image_size: [32, 32]}", f"data={photos}", "out=lightly", "method=toy"]
    assert lightly_train_cli.main(["pretrain", *lightly, *size]) == 0
"""


def test_method_of_another_package_works_in_every_tool(tmp_path: Path) -> None:
    site, information = tmp_path / "site", tmp_path / "site" / "toy_methods-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-methods\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[moco_plugin.methods]\ntoy = toy_methods:Toy\n")
    (site / "toy_methods.py").write_text(METHOD)
    (site / "toy.yaml").write_text(RECIPE)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(32):
        Image.new("RGB", (40, 40), (7 * index, 99, 50)).save(photos / f"{index}.png")
    data = [TRAIN, TEST, str(photos) if importlib.util.find_spec("lightly_train") else ""]
    environment = os.environ | {"PYTHONPATH": str(site), "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *data],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"recipe {site}/toy.yaml: sgd, learning rate 0.03 for 256 images, 2 epochs" in done.stdout
    assert "resuming from runs/toy/checkpoints/last.ckpt, step 2" in done.stdout
    assert "The toy resnet18, 2 epochs" in done.stdout  # a row of the report
    assert "unknown method 'toi'; known are moco, " in done.stderr and "did you mean 'toy'" in done.stderr
    assert (tmp_path / "toy.pkl").exists()
