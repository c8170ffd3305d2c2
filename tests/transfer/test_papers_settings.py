"""Transfer configs against the fine-tuning settings that the transcription of the papers gives."""

import re
from pathlib import Path

from detectron2.config import CfgNode
from yaml import safe_load

from moco_plugin.pretraining.config import load_config as load_pretrain_config
from moco_plugin.schema import configs_folder
from moco_plugin.transfer.config import load_detector_config
from tests.helpers.papers import TEXT, short, thousands

SETTINGS = TEXT[TEXT.index("## Fine-tuning settings") :]


def config(name: str) -> CfgNode:
    return load_detector_config(f"{name}_moco", [])


def drops(cfg: CfgNode) -> str:
    return ", ".join(map(thousands, cfg.SOLVER.STEPS))


def test_detection() -> None:
    voc, alone = config("voc/pascal_voc_R_50_C4_24k"), config("voc/pascal_voc_2007_R_50_C4_9k")
    one, two, six = (config(f"coco/coco_R_50_FPN_{times}") for times in ("1x", "2x", "6x"))
    for cfg in (voc, alone, one, two, six):
        assert f"batch {cfg.SOLVER.IMS_PER_BATCH}, lr {cfg.SOLVER.BASE_LR}, schedules" in SETTINGS
        assert f"`BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT}`" in SETTINGS
        assert f"(`{cfg.MODEL.RESNETS.NORM}`), precise BN" in SETTINGS and cfg.TEST.PRECISE_BN.ENABLED
    length, warm_up = thousands(voc.SOLVER.MAX_ITER), voc.SOLVER.WARMUP_ITERS
    assert f"VOC {length} (drops at {drops(voc)}; warm-up {warm_up})" in SETTINGS
    assert f"VOC 2007 alone {thousands(alone.SOLVER.MAX_ITER)} iterations" in SETTINGS
    schedules = (
        f"{times} {thousands(cfg.SOLVER.MAX_ITER)} ({drops(cfg)}"
        for times, cfg in (("1x", one), ("2x", two), ("6x", six))
    )
    assert f"COCO {'), '.join(schedules)}: the schedule of arXiv 1811.08883" in SETTINGS
    scales = [f"{cfg.INPUT.MIN_SIZE_TRAIN[0]}-{cfg.INPUT.MIN_SIZE_TRAIN[-1]}" for cfg in (voc, one)]
    assert (
        f"image scale {scales[0]} short side on VOC and {scales[1]} on COCO, {one.INPUT.MIN_SIZE_TEST} at test"
        in SETTINGS
    )
    rpn = voc.MODEL.RPN
    assert f"`RPN.PRE_NMS_TOPK_TEST {rpn.PRE_NMS_TOPK_TEST}`, `POST_NMS_TOPK_TEST {rpn.POST_NMS_TOPK_TEST}`" in SETTINGS
    assert f"(the official code registers it as `{voc.MODEL.ROI_HEADS.NAME}`)" in SETTINGS
    assert voc.MODEL.PIXEL_STD == [58.395, 57.12, 57.375] and "`PIXEL_STD [58.395, 57.120, 57.375]`" in SETTINGS


def test_lvis_keypoint_and_cityscapes() -> None:
    lvis, keypoint = config("lvis/lvis_v0.5_R_50_FPN_2x"), config("coco/coco_keypoint_R_50_FPN_2x")
    heads = lvis.MODEL.ROI_HEADS
    assert (
        f"repeat-factor sampling {lvis.DATALOADER.REPEAT_THRESHOLD}, {heads.NUM_CLASSES} classes, score threshold "
        f"{heads.SCORE_THRESH_TEST:.4f}, {lvis.TEST.DETECTIONS_PER_IMAGE} detections"
    ) in SETTINGS
    assert keypoint.SOLVER.MAX_ITER == config("coco/coco_R_50_FPN_2x").SOLVER.MAX_ITER and "Keypoint: 2x." in SETTINGS
    city = config("cityscapes/cityscapes_R_50_FPN_24k")
    solver, sizes = city.SOLVER, city.INPUT
    assert (
        f"{city.MODEL.ROI_HEADS.NUM_CLASSES} classes, batch {solver.IMS_PER_BATCH}, lr {solver.BASE_LR}, "
        f"{thousands(solver.MAX_ITER)} ({drops(city)}), short side {sizes.MIN_SIZE_TRAIN[0]}-{sizes.MIN_SIZE_TRAIN[-1]}, "
        f"{sizes.MIN_SIZE_TEST}x{sizes.MAX_SIZE_TEST} at test"
    ) in SETTINGS


def test_densepose_is_the_legacy_baseline() -> None:
    """Read without its project, whose keys detectron2 does not know."""
    path = configs_folder() / "detectron2" / "coco" / "coco_densepose_R_50_FPN_s1x_supervised.yaml"
    content = safe_load(path.read_text())
    (legacy,) = re.findall(r"keeps as `_legacy` \(lr ([\d.]+), (.*?);", SETTINGS)
    expected = {key: safe_load(value) for key, value in re.findall(r"`(\w+)` ([\w.]+)", legacy[1])}
    assert content["SOLVER"]["BASE_LR"] == float(legacy[0])
    head = content["MODEL"]["ROI_DENSEPOSE_HEAD"]
    assert len(expected) == 7 and {key: head[key] for key in expected} == expected


def test_semantic_segmentation() -> None:
    voc, city = config("voc/pascal_voc_2012_fcn_R_50_30k"), config("cityscapes/cityscapes_fcn_R_50_90k")
    low, high = voc.INPUT.SCALE_RANGE
    assert (
        f"Random scale {low:g}-{high:g}, crop {voc.INPUT.CROP.SIZE[0]} (VOC) / {city.INPUT.CROP.SIZE[0]} (Cityscapes), flip"
    ) in SETTINGS
    solver = voc.SOLVER
    assert f"batch {solver.IMS_PER_BATCH}, wd {short(solver.WEIGHT_DECAY)}, lr {solver.BASE_LR} (VOC, " in SETTINGS
    assert f"(VOC, {thousands(solver.MAX_ITER)} iterations, " in SETTINGS
    assert f"/ {city.SOLVER.BASE_LR} (Cityscapes, {thousands(city.SOLVER.MAX_ITER)}, " in SETTINGS
    for cfg in (voc, city):
        shares = " and ".join(f"{100 * step / cfg.SOLVER.MAX_ITER:.0f}%" for step in cfg.SOLVER.STEPS)
        assert f"x{cfg.SOLVER.GAMMA} at {shares}" in SETTINGS


def test_table_of_runs_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text()
    shown = dict(re.findall(r"^\| ([^|]+) \| - \| (\d+ \| [\d.;kM ]+)", text, re.M))

    def run(*names: str) -> str:
        solvers = [config(name).SOLVER for name in names]
        return f"{solvers[0].IMS_PER_BATCH} | {'; '.join(thousands(s.MAX_ITER) for s in solvers)} "

    assert shown == {
        "VOC detection": run("voc/pascal_voc_R_50_C4_24k"),
        "COCO 1x; 2x; 6x": run(*(f"coco/coco_R_50_FPN_{times}" for times in ("1x", "2x", "6x"))),
        "Cityscapes instances": run("cityscapes/cityscapes_R_50_FPN_24k"),
        "VOC; Cityscapes semantic segmentation": run(
            "voc/pascal_voc_2012_fcn_R_50_30k", "cityscapes/cityscapes_fcn_R_50_90k"
        ),
    }
    for name, length in (("moco_v1_resnet50_200ep", "8 | 256"), ("moco_v3_vit_small_300ep", "32; 64 | 4096")):
        batch = load_pretrain_config(name, ["data.root=x"]).data.batch_size
        assert f"| {length} | " in text and length.endswith(f" {batch}")
