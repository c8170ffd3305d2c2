"""The kNN monitor: whose features it compares, and the first lines of a run."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.evaluation.features import View, extract_feature_set
from moco_plugin.evaluation.knn import knn_accuracy
from moco_plugin.pretraining.module import PretrainModule
from moco_plugin.pretraining.prepare import prepare_run
from tests.conftest import TEST, TINY, TRAIN
from tests.helpers.processes import Tool


@pytest.mark.parametrize("method", ["moco", "moco_v3"])
def test_features_of_the_encoder(method: str, tool: Tool, tmp_path: Path) -> None:
    own = [] if method == "moco" else ["method=moco_v3", "method_args.hidden_dim=32", "schedule.warmup_epochs=1"]
    tiny = [option for option in TINY if method == "moco" or "queue_size" not in option]
    overrides = [*tiny, *own, "method_args.dim=2", "knn.features=encoder", "knn.k=5", f"out={tmp_path / 'run'}"]
    said = tool("pretrain", *overrides).stdout
    assert said.startswith("recipe moco_v2: sgd" if method == "moco" else "recipe moco_v3_resnet: lars")
    module = PretrainModule(prepare_run(overrides).config)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    view = View(32, 1.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def top1(network: torch.nn.Module) -> float:
        sets = [extract_feature_set(network, ImageSet(spec), view) for spec in (f"{TRAIN}[0:100]", f"{TEST}[0:50]")]
        return knn_accuracy(*sets, [5], 0.1)[5]

    measured = json.loads((tmp_path / "run" / "result.json").read_text())["knn_top1"]
    assert measured == pytest.approx(top1(module.method.encoder_q))
    assert measured != pytest.approx(top1(module.method.backbone))


def test_queue_larger_than_the_set_is_said(tool: Tool, tmp_path: Path) -> None:
    short = [*TINY, "schedule.epochs=1", "knn.train=null", f"out={tmp_path / 'run'}"]
    assert "warning" not in tool("pretrain", *short, "method_args.queue_size=16").stdout
    said = tool("pretrain", *short, "method_args.queue_size=80", "--overwrite").stdout
    assert "warning: the queue contains 80 keys and there are 64 images" in said
    assert "a step takes about" in said and "to go, " in said


@pytest.mark.parametrize("where", ["idx", "folder"])
def test_all_processes_measure(where: str, tool: Tool, tmp_path: Path) -> None:
    """Each its share of both sets, with loader processes; the first line has raw pixels beside the features."""
    sets = [f"knn.train={TRAIN}[0:61]", f"knn.test={TEST}[0:33]"]  # that do not divide
    if where == "folder":
        images = ImageSet(f"{TRAIN}[0:40]")
        assert images.labels is not None
        for index, label in enumerate(images.labels.tolist()):
            path = tmp_path / "photos" / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = images.load(index)
            assert isinstance(image, Image.Image)
            image.save(path)
        sets = [f"knn.{name}={tmp_path / 'photos'}" for name in ("train", "test")]
    short = [*TINY, *sets, "knn.k=7", "trainer.max_steps=1", "data.workers=2", "trainer.accelerator=cpu"]
    said = [tool("pretrain", *short, f"out={tmp_path}/{n}", f"trainer.devices={n}", processes=n).stdout for n in (1, 2)]
    one, two = (re.findall(r"kNN top-1 after 0 steps: .+", text) for text in said)
    assert one == two and len(one) == 1, (one, two)
    assert re.search(r"\(k 7; raw pixels [\d.]+%, chance [\d.]+%, largest class [\d.]+%\)", one[0])
