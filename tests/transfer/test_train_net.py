"""Training and evaluation at toy size, through the tool and through detectron2's own trainer."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer

from moco_plugin.checkpoints.convert import convert
from moco_plugin.demo.scenes import make_scenes
from moco_plugin.errors import UserError
from moco_plugin.files import sha256
from moco_plugin.schema import find_config
from moco_plugin.sources.idx import load_idx_images
from moco_plugin.tools.train_net import main
from moco_plugin.transfer import initial_weights
from moco_plugin.transfer.components.datasets import register_scenes
from moco_plugin.transfer.components.resnet import settings_of_weights
from moco_plugin.transfer.to_detectron2 import save_zoo_pickle
from moco_plugin.transfer.weights import CheckWeights, backbone_tensors
from moco_plugin.weight_files.load import load_file
from tests.conftest import TEST, TRAIN
from tests.helpers.checkpoints import checkpoint, official
from tests.helpers.detector_inputs import make_resnet
from tests.helpers.processes import Tool

TINY = """SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.WARMUP_ITERS 1 SOLVER.IMS_PER_BATCH 2
        TEST.PRECISE_BN.NUM_ITER 2 INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96
        DATALOADER.NUM_WORKERS 0 SEED 1""".split()
TOY = ["DATASETS.TRAIN", "('toy_train',)", "DATASETS.TEST", "('toy_test',)"]
FPN = "demo/scenes_R_18_FPN_quarter"


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DETECTRON2_DATASETS; its scenes are also registered as ``toy_*`` in this process."""
    root = tmp_path_factory.mktemp("datasets")
    train, train_labels, names = load_idx_images(f"{TRAIN}[0:50]")
    test, test_labels, _ = load_idx_images(f"{TEST}[0:50]")
    looks = (train, train_labels), (test, test_labels)
    make_scenes(root / "scenes", *looks, names, num_train=6, num_test=3, size=96, progress=False)
    register_scenes(root / "scenes", "toy")
    return root


def test_mask_rcnn_through_the_tool_and_resumed(datasets: Path, tmp_path: Path, tool: Tool) -> None:
    out = tmp_path / "run"
    shown = tool("train_net", "--config-file", FPN, *TINY, "OUTPUT_DIR", out, DETECTRON2_DATASETS=str(datasets)).stdout
    assert "weights: none, random initialisation" in shown
    assert "MODEL.FPN.NORM, " in shown and "SyncBN does not train on a CPU, so BN is used" in shown
    assert "Computing precise BN statistics" in shown
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["scenes_test"] and set(results["scenes_test"]) == {"bbox", "segm"}

    again = ["--config-file", FPN, *TINY, *TOY, "OUTPUT_DIR", str(out)]
    assert main(again) == 2  # a run is there, and is kept
    assert main(["--resume", *again, "SOLVER.MAX_ITER", "3"]) == 0
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    final = torch.load(out / "model_final.pth", weights_only=True)
    assert final["iteration"] == 2
    assert "Starting training from iteration 2" in (out / "log.txt").read_text()
    assert list(json.loads((out / "results.json").read_text())) == ["toy_test"]

    evaluated = tmp_path / "evaluated"
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(evaluated)]
    assert main(["--eval-only", "--config-file", FPN, *TINY, *TOY, *weights]) == 0
    assert "105 of 105 backbone tensors" in (evaluated / "log.txt").read_text()
    assert (evaluated / "results.json").read_text() == (out / "results.json").read_text()

    assert main(["--overwrite", *again]) == 0
    lines = [json.loads(line)["iteration"] for line in (out / "metrics.json").read_text().splitlines()]
    assert max(lines) <= 2  # nothing of the longer run is left


def test_seed_decides_the_run(datasets: Path, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = [*TINY, *TOY, "OUTPUT_DIR", str(tmp_path / name), "SEED", seed, "DATASETS.TEST", "()"]
        assert main(["--config-file", FPN, *arguments]) == 0
        states.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"])
    key = "backbone.bottom_up.res5.1.conv2.weight"
    assert torch.equal(states[0][key], states[1][key]) and not torch.equal(states[0][key], states[2][key])


def test_c4_with_extra_norm_on_voc_format(datasets: Path, tmp_path: Path) -> None:
    narrow = {"STEM_OUT_CHANNELS": 16, "RES2_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 8}
    backbone = make_resnet(NUM_BLOCKS=[1, 1, 1, 1], **narrow)
    arrays = {k: v.numpy() for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_zoo_pickle(tmp_path / "tiny.pkl", arrays, {})
    network = """DATASETS.TRAIN ('toy_voc_train',) DATASETS.TEST ('toy_voc_test',)
        MODEL.BACKBONE.NAME build_any_width_resnet_backbone MODEL.RESNETS.STEM_OUT_CHANNELS 16
        MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.NUM_BLOCKS
        [1,1,1,1] MODEL.ROI_HEADS.NUM_CLASSES 10 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
        MODEL.ANCHOR_GENERATOR.SIZES [[32]] MODEL.RPN.POST_NMS_TOPK_TEST 20""".split()
    paths = ["MODEL.WEIGHTS", str(tmp_path / "tiny.pkl"), "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["--config-file", "voc/pascal_voc_R_50_C4_24k_moco", *TINY, *network, *paths]) == 0
    # stem, 3 blocks and 1 block in the heads, 3 convolutions each, and 4 shortcuts: 17, each with a norm
    assert "weights: 85 of 85 backbone tensors" in (tmp_path / "run" / "log.txt").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["toy_voc_test"]["bbox"]) == {"AP", "AP50", "AP75"}
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert state["roi_heads.res5.norm.running_mean"].shape == (256,)
    assert state["roi_heads.res5.norm.running_mean"].abs().max() > 0  # it was used


def test_released_checkpoint_by_name_is_converted(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "moco_v2_200ep_pretrain.pth.tar"
    torch.save(official("resnet18", channels=[16, 32, 64, 128]), fetched)
    monkeypatch.setattr(initial_weights, "resolve", lambda name: fetched)
    out = tmp_path / "run"
    overrides = [*TINY, *TOY, "DATASETS.TEST", "()", "MODEL.WEIGHTS", "moco_v2_200ep", "OUTPUT_DIR", str(out)]
    assert main(["--config-file", f"{FPN}_moco", *overrides]) == 0
    assert f"105 of 105 backbone tensors filled from {out}/weights.pkl" in (out / "log.txt").read_text()
    assert load_file(out / "weights.pkl").metadata["source_sha256"] == sha256(fetched)


def own_trainer(out: Path, *overrides: str) -> DefaultTrainer:
    """detectron2's, as a script of its own makes it."""
    cfg = get_cfg()
    cfg.merge_from_file(str(find_config(FPN, "detectron2")))
    cfg.merge_from_list([*TINY, *TOY, *"MODEL.DEVICE cpu SOLVER.STEPS () TEST.PRECISE_BN.ENABLED False".split()])
    cfg.merge_from_list(["OUTPUT_DIR", str(out), *overrides])
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # detectron2's to mend
def test_detectron2s_own_trainer_takes_the_config(datasets: Path, tmp_path: Path) -> None:
    own_trainer(tmp_path / "run").train()


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "build_resnet_fpn_backbone": ("resnet18", {}),
    "build_resnet_fpn_backbone ": ("resnet50", {"layers": [3, 4, 6, 3], "channels": [16, 32, 64, 128]}),
    "build_any_width_resnet_fpn_backbone": ("resnet18", {"channels": [32, 64, 128, 256]}),
    "build_any_width_resnet_fpn_backbone ": ("resnext50_32x4d", {"layers": [1, 1, 2, 1]}),
    "build_timm_fpn_backbone": ("regnety_002", {}),
}


@pytest.mark.parametrize("builder", NETWORKS)
def test_what_is_printed_opens_the_file(
    builder: str, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Followed literally in detectron2's own trainer, from the config of another network."""
    architecture, arguments = NETWORKS[builder]
    source = checkpoint(architecture, **arguments)
    convert(source, tmp_path / "weights.pkl")
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("opens with: ")]
    overrides = shlex.split(printed.removeprefix("opens with: "))
    named = [] if "MODEL.BACKBONE.NAME" in overrides else ["MODEL.BACKBONE.NAME", builder.strip()]
    trainer = own_trainer(tmp_path / "run", *overrides, *named)
    weights = load_file(tmp_path / "weights.pkl").content["model"]
    state = {name.removeprefix("backbone.bottom_up."): value for name, value in trainer.model.state_dict().items()}
    backbone = [name for name in backbone_tensors(trainer.model) if "fc" not in name]
    assert len(backbone) > 50
    for name in backbone:
        name = name.removeprefix("backbone.bottom_up.")
        assert np.array_equal(state[name].numpy(), weights[name]), name
    trainer.register_hooks([CheckWeights()])
    trainer.before_train()  # all fits


def test_weights_of_another_network_are_refused_in_detectron2s_own_trainer(datasets: Path, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in make_resnet(DEPTH=18, RES2_OUT_CHANNELS=64).state_dict().items()}
    for metadata, message in (
        ({}, "weights: 5 of 105 backbone tensors filled"),
        ({"settings": settings_of_weights(arrays)}, "pass MODEL.RESNETS.RES2_OUT_CHANNELS 64$"),
    ):
        save_zoo_pickle(tmp_path / "w.pkl", arrays, metadata)
        trainer = own_trainer(tmp_path / "run", "MODEL.WEIGHTS", str(tmp_path / "w.pkl"))
        trainer.register_hooks([CheckWeights()])
        with pytest.raises(UserError, match=message):
            trainer.train()
    assert not list((tmp_path / "run").glob("model_*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.BASELR", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "many"], "config override is wrong"),
        (["SOLVER.MAX_ITER"], "pairs of KEY VALUE"),
        (["--config-file", "demo/nothing"], "no config"),
        (["DATASETS.TRAIN", "('scenes_trian',)"], "scenes_train"),
        (["DATASETS.TRAIN", "('voc_2007_trainval',)"], "DETECTRON2_DATASETS"),
        (["DATASETS.TRAIN", "('scenes_train',)"], "tools/make_scenes.py"),
        (["--num-gpus", "64"], "--num-gpus"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "toy_train has 10 classes; pass MODEL.ROI_HEADS.NUM_CLASSES 10"),
        (["MODEL.WEIGHTS", "/no/such/file.pkl"], "does not exist"),
    ],
)
def test_mistakes_end_in_one_sentence(
    datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    options = arguments if arguments[0].startswith("--") else []
    overrides = [] if options else arguments
    code = main(["--config-file", FPN, *options, *TINY, *TOY, "OUTPUT_DIR", str(tmp_path / "o"), *overrides])
    captured = capsys.readouterr()
    assert code in (1, 2)
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in captured.err


def test_parts_that_do_not_fit_end_in_one_sentence(
    datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["MODEL.RPN.IN_FEATURES", "['res9']", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["--config-file", FPN, *TINY, *TOY, *parts]) == 1
    assert "network cannot be built (KeyError: 'res9'); check the keys of MODEL" in capsys.readouterr().err


def test_wrong_key_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  RESNETS:\n    DEPT: 50\nVERSION: 2\n")
    assert main(["--config-file", str(path)]) == 2
    assert "MODEL.RESNETS.DEPTH" in capsys.readouterr().err
    path.write_text("_BASE_: absent.yaml\n")
    assert main(["--config-file", str(path)]) == 2
    assert "absent.yaml" in capsys.readouterr().err
