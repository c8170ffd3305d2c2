"""Scaling of a schedule to another batch."""

from typing import Any

import pytest

from moco_plugin.transfer.config import load_detector_config, scale_to_batch
from moco_plugin.transfer.tasks import TASKS


@pytest.mark.parametrize(
    ("task", "init", "batch", "expected"),
    [
        # divided by 4: rate; times 4: warm-up, drops, length, checkpoints
        ("voc_c4", "moco", 4, (4, 0.005, 400, (72000, 88000), 96000, 20000)),
        ("coco_fpn_1x", "random", 8, (8, 0.01, 2000, (120000, 160000), 180000, 10000)),
        ("coco_c4_2x", "supervised", 64, (64, 0.08, 250, (30000, 40000), 45000, 1250)),
        ("cityscapes_instance", "moco", 2, (2, 0.0025, 4000, (72000,), 96000, 20000)),  # 8 images
        ("voc_semantic", "moco", 3, (3, 0.0005625, 0, (112000, 144000), 160000, 26667)),  # times 16 / 3
    ],
)
def test_linear_scaling_by_hand(task: str, init: str, batch: int, expected: tuple[Any, ...]) -> None:
    config = TASKS[task].config(init)
    cfg = load_detector_config(config, [])
    sentence = scale_to_batch(cfg, batch)
    solver = cfg.SOLVER
    keys = ("IMS_PER_BATCH", "BASE_LR", "WARMUP_ITERS", "STEPS", "MAX_ITER", "CHECKPOINT_PERIOD")
    for key, value in zip(keys, expected, strict=True):
        assert solver[key] == (pytest.approx(value) if key == "BASE_LR" else value), key
    assert solver.REFERENCE_WORLD_SIZE == 0  # detectron2 does not scale once more
    assert f"to {batch}: " in sentence and f"to {expected[4]} (iterations)" in sentence


def test_evaluations_on_the_way_scale_along() -> None:
    for batch, period in ((4, 8000), (16 * 3000, 1)):  # and not 0, which is never
        cfg = load_detector_config("voc/pascal_voc_R_50_C4_24k_moco", ["TEST.EVAL_PERIOD", "2000"])
        scale_to_batch(cfg, batch)
        assert period == cfg.TEST.EVAL_PERIOD


def test_a_batch_without_its_rate_is_spoken_of() -> None:
    cfg = load_detector_config("voc/pascal_voc_R_50_C4_24k_moco", [])
    before = cfg.dump()
    assert scale_to_batch(cfg, None) == ""
    assert "--images-per-batch 4" in scale_to_batch(cfg, None, ["SOLVER.IMS_PER_BATCH", "4"])
    assert scale_to_batch(cfg, None, "SOLVER.IMS_PER_BATCH 4 SOLVER.BASE_LR 0.005".split()) == ""
    assert cfg.dump() == before
