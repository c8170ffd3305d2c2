"""Every config of a transfer experiment: its settings, its network, its weights, its gradients."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from moco_plugin.errors import UserError
from moco_plugin.tools.convert_to_d2 import main as convert_to_d2
from moco_plugin.tools.train_net import main as train_net
from moco_plugin.transfer.config import fit_device, load_detector_config
from moco_plugin.transfer.tasks import TASKS
from moco_plugin.transfer.to_detectron2 import save_zoo_pickle
from moco_plugin.transfer.weights import backbone_tensors, load_weights
from moco_plugin.weight_files.load import load_file
from tests.helpers import config_differences as known
from tests.helpers.checkpoints import official
from tests.helpers.config_differences import baseline, differences, name_of
from tests.helpers.detector_inputs import FEW, batch, make_resnet

INPUT = {  # of MSRA's weights, and of ours
    "MODEL.RESNETS.STRIDE_IN_1X1": (True, False),
    "MODEL.PIXEL_MEAN": ([103.53, 116.28, 123.675], [123.675, 116.28, 103.53]),
    "MODEL.PIXEL_STD": ([1.0, 1.0, 1.0], [58.395, 57.12, 57.375]),
    "INPUT.FORMAT": ("BGR", "RGB"),
}


def test_no_config_is_left_out() -> None:
    """What is shipped is what is tested here: every experiment in three initialisations."""
    shipped = {
        path.relative_to(known.FOLDER).with_suffix("").as_posix()
        for path in known.FOLDER.glob("*/*.yaml")
        if path.parent.name not in ("demo", "timm") and not path.stem.startswith("Base")
    }
    assert shipped == {name_of(e, i) for e in (*known.EXPERIMENTS, known.DENSEPOSE) for i in known.INITIALISATIONS}
    assert shipped == {
        name for task in TASKS.values() for name in task.configs.values() if not name.startswith("demo/")
    }


@pytest.mark.parametrize("initialisation", known.INITIALISATIONS)
@pytest.mark.parametrize("experiment", known.BASELINES)
def test_differences_to_detectron2s_baseline(experiment: str, initialisation: str) -> None:
    name, intended = known.BASELINES[experiment]
    cfg = load_detector_config(name_of(experiment, initialisation), [])
    theirs = baseline(name)
    expected = dict(intended)
    if initialisation != "supervised":
        expected |= {"MODEL.WEIGHTS": (theirs.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS), **INPUT}
    assert differences(theirs, cfg) == expected


@pytest.mark.parametrize("experiment", known.FCN)
def test_differences_of_fcn_to_detectron2s_defaults(experiment: str) -> None:
    theirs = get_cfg()
    ours = load_detector_config(f"{experiment}_supervised", [])
    assert differences(theirs, ours) == known.FCN[experiment]


@pytest.mark.parametrize("experiment", known.EXPERIMENTS)
def test_initialisations_differ_in_weights_and_input_alone(experiment: str) -> None:
    random, supervised, moco = (load_detector_config(name_of(experiment, i), []) for i in known.INITIALISATIONS)
    assert supervised.MODEL.WEIGHTS == known.MSRA and random.MODEL.WEIGHTS == ""
    assert differences(random, moco) == {"MODEL.WEIGHTS": ("", moco.MODEL.WEIGHTS)}
    assert "tools/convert_to_d2.py" in moco.MODEL.WEIGHTS  # a sentence, until the user gives the file
    assert differences(supervised, moco).keys() == {"MODEL.WEIGHTS", *INPUT}


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet-50 in the layout of the released MoCo checkpoints, converted by the tool."""
    folder = tmp_path_factory.mktemp("resnet50")
    torch.manual_seed(0)
    torch.save(official("resnet50", mlp=True), folder / "moco.pth.tar")
    assert convert_to_d2([str(folder / "moco.pth.tar"), str(folder / "moco.pkl")]) == 0
    return folder / "moco.pkl"


@pytest.mark.parametrize("experiment", known.NETWORKS)
def test_network_is_filled_and_all_of_it_is_tuned(experiment: str, resnet50: Path) -> None:
    """Build the whole network; then one step on two small images."""
    cfg = load_detector_config(f"{experiment}_moco", [*FEW, "MODEL.WEIGHTS", str(resnet50), "MODEL.DEVICE", "cpu"])
    fit_device(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coverage = load_weights(model, cfg.MODEL.WEIGHTS, cfg=cfg)
    names = backbone_tensors(model)
    assert len(names) == 53 * 5  # 53 convolutions with a norm each: all of a ResNet-50
    assert coverage.missing == ()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    convolutions = {name for name in names if name.endswith(("conv1.weight", "conv2.weight", "conv3.weight"))}
    assert convolutions <= changed <= set(names)  # arrived there, and nowhere else

    assert not [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    with EventStorage():
        losses = model.train()(batch(cfg))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    parameters = dict(model.named_parameters())
    assert all(parameter.requires_grad for parameter in parameters.values())
    first = parameters[names[0]]
    assert names[0].endswith("stem.conv1.weight") and first.grad is not None and first.grad.abs().max() > 0
    tuned = [name for name in names if name in parameters]
    without = [name for name in tuned if parameters[name].grad is None or not parameters[name].grad.any()]
    assert len(tuned) == 53 * 3 and without == []  # convolutions, and weight and bias of norms
    for name in names:
        if name.endswith("running_mean"):  # statistics follow the data: batch norm is in training mode
            assert not torch.equal(model.state_dict()[name], before[name])


def test_networks_of_all_experiments_are_among_these() -> None:
    """Experiments that share a network differ in nothing that ``MODEL`` says."""
    built = [load_detector_config(f"{experiment}_moco", []).MODEL for experiment in known.NETWORKS]
    for experiment in known.EXPERIMENTS:
        assert load_detector_config(f"{experiment}_moco", []).MODEL in built, experiment


def test_dilated_c5_has_one_convolution_more(resnet50: Path) -> None:
    cfg = load_detector_config("voc/pascal_voc_R_50_dilated_C5_24k_random", ["MODEL.DEVICE", "cpu"])
    fit_device(cfg)
    backbone = build_model(cfg).backbone
    assert backbone.output_shape()["c5"].stride == 16 and backbone.output_shape()["c5"].channels == 512
    assert backbone.reduce.weight.shape == (512, 2048, 3, 3)
    assert isinstance(backbone.reduce.norm, torch.nn.BatchNorm2d) and backbone.reduce.activation is None
    assert [block.conv2.dilation for block in backbone.bottom_up.res5] == [(2, 2)] * 3
    assert backbone(torch.zeros(1, 3, 64, 96))["c5"].shape == (1, 512, 4, 6)
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    with pytest.raises(UserError, match="RES5_DILATION 2"):
        build_model(cfg)


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("experiment", ["voc/pascal_voc_R_50_C4_24k", "coco/coco_R_50_C4_2x"])
def test_c4_of_two_layer_blocks(experiment: str, depth: int) -> None:
    """ResNet-18 and 34 have a C4 detector as well, here of a quarter of their width."""
    narrow = f"""MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_any_width_resnet_backbone MODEL.RESNETS.DEPTH {depth}
        MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.WEIGHTS""".split()
    cfg = load_detector_config(f"{experiment}_moco", [*FEW, *narrow, ""])
    fit_device(cfg)
    model = build_model(cfg)
    res5 = model.roi_heads.res5
    blocks, convolutions = {18: (2, 21), 34: (3, 37)}[depth]  # 4 of them shortcuts: stem and res2 differ in width
    assert [name for name, _ in res5.named_children()] == [*map(str, range(blocks)), "norm"]
    assert res5[0].conv1.weight.shape == (128, 64, 3, 3) and res5[0].stride == 2 and res5.norm.weight.shape == (128,)
    assert len(backbone_tensors(model)) == 5 * convolutions
    with EventStorage():
        losses = model.train()(batch(cfg))
    sum(losses.values()).backward()
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    assert all(layer.conv1.weight.grad.abs().max() > 0 for layer in (model.backbone.stem, res5[0]))


def test_res5_of_bottlenecks_is_detectron2s() -> None:
    cfg = load_detector_config("voc/pascal_voc_R_50_C4_24k_random", ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"])
    ours = build_model(cfg).roi_heads
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    theirs = build_model(cfg).roi_heads
    state = theirs.state_dict()
    extra = {name: value for name, value in ours.state_dict().items() if name not in state}
    assert extra and all(name.startswith("res5.norm.") for name in extra)
    ours.load_state_dict({**state, **extra})
    regions = torch.rand(2, 1024, 14, 14)
    expected = ours.res5.norm.eval()(theirs.res5.eval()(regions))
    assert torch.equal(ours.res5.eval()(regions), expected) and expected.shape == (2, 2048, 7, 7)


# an eighth of the width, few iterations and small images
NARROW = """MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.RES2_OUT_CHANNELS 32
        MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16
        MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,)
        MODEL.SEM_SEG_HEAD.CONVS_DIM 16""".split()
SHORT = """
    SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.WARMUP_ITERS 0 SOLVER.IMS_PER_BATCH 2
    TEST.PRECISE_BN.NUM_ITER 2 DATALOADER.NUM_WORKERS 0 SEED 1 MODEL.ROI_HEADS.SCORE_THRESH_TEST
    0.0 MODEL.RETINANET.SCORE_THRESH_TEST 0.0
""".split()  # something to evaluate
SMALL = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"]


@pytest.fixture(scope="session")
def narrow_resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for what ``NARROW`` makes of a ResNet-50, as the converter writes them."""
    torch.manual_seed(0)
    network = make_resnet(RES2_OUT_CHANNELS=32, WIDTH_PER_GROUP=8, STEM_OUT_CHANNELS=16)
    path = tmp_path_factory.mktemp("narrow") / "narrow.pkl"
    save_zoo_pickle(path, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, {})
    return path


@pytest.mark.parametrize("experiment", known.NETWORKS)
def test_trains_and_evaluates_on_tiny_data(
    experiment: str, tiny_catalog: Path, narrow_resnet50: Path, tmp_path: Path
) -> None:
    sizes = ["INPUT.CROP.SIZE", "[65, 65]"] if experiment in known.FCN else SMALL
    out = tmp_path / "run"
    overrides = ["MODEL.WEIGHTS", str(narrow_resnet50), "OUTPUT_DIR", str(out)]
    assert train_net(["--config-file", f"{experiment}_moco", *NARROW, *FEW, *SHORT, *sizes, *overrides]) == 0
    assert "weights: 265 of 265 backbone tensors filled" in (out / "log.txt").read_text()
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert all(math.isfinite(line["total_loss"]) for line in lines if "total_loss" in line)
    (results,) = json.loads((out / "results.json").read_text()).values()
    (task,) = (task for task in TASKS.values() if task.config("moco") == f"{experiment}_moco")
    assert all(metric.key in results[metric.group] for metric in task.metrics)  # what the paper reports
    before = load_file(narrow_resnet50).content["model"]["stem.conv1.weight"]
    trained = torch.load(out / "model_final.pth", weights_only=True)
    (first,) = (t for name, t in trained["model"].items() if name.endswith("stem.conv1.weight"))
    assert trained["iteration"] == 1 and not torch.equal(first, torch.from_numpy(before))
