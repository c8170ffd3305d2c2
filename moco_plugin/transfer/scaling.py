"""The linear scaling rule for detection: learning rate and schedule for another batch size."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from moco_plugin.errors import UsageError

SCALED = ("IMS_PER_BATCH", "BASE_LR", "WARMUP_ITERS", "STEPS", "MAX_ITER", "CHECKPOINT_PERIOD")


def scale_to_batch(cfg: CfgNode, images_per_batch: int | None, overrides: Sequence[str] = ()) -> tuple[list[str], str]:
    """Scale a config's schedule linearly to another batch, by detectron2's rule.

    The learning rate is multiplied by the ratio of the batches (Goyal et al. 2017, "ImageNet in 1 hour"); warm-up, drops,
    length and the periods of checkpoints and evaluations are divided by it, so that as many images are seen.

    Args:
        cfg: The config as the paper has it; not changed.
        images_per_batch: Images of all processes together; None changes nothing.
        overrides: ``KEY VALUE`` pairs that come after; a warning is returned if they change only the batch.

    Returns:
        ``KEY VALUE`` pairs of what differs from the config, and a sentence that says so.

    Raises:
        UsageError: A batch below 1, or given twice.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    given = dict(zip(overrides[::2], overrides[1::2], strict=False))
    own = given.get("SOLVER.IMS_PER_BATCH")
    if images_per_batch is None:
        if own is None or own == str(batch) or "SOLVER.BASE_LR" in given:
            return [], ""
        return [], (
            f"warning: SOLVER.IMS_PER_BATCH {own} with the learning rate and schedule of {batch} images per batch; "
            f"--images-per-batch {own} scales them"
        )
    if own is not None:
        raise UsageError("--images-per-batch and SOLVER.IMS_PER_BATCH were both given; choose one of them")
    if images_per_batch < 1:
        raise UsageError(f"--images-per-batch is {images_per_batch}; expected 1 or more")
    cfg = cfg.clone()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = batch  # "workers" of one image each
    scaled = DefaultTrainer.auto_scale_workers(cfg, images_per_batch)
    if not scaled.SOLVER.MAX_ITER:
        raise UsageError(
            f"--images-per-batch {images_per_batch} leaves no iteration of the {cfg.SOLVER.MAX_ITER} with {batch}"
        )
    scaled.SOLVER.CHECKPOINT_PERIOD = max(1, scaled.SOLVER.CHECKPOINT_PERIOD)
    if cfg.TEST.EVAL_PERIOD:  # 0 means never
        scaled.TEST.EVAL_PERIOD = max(1, scaled.TEST.EVAL_PERIOD)
    pairs = [part for key in SCALED for part in (f"SOLVER.{key}", str(scaled.SOLVER[key]))]
    pairs += ["TEST.EVAL_PERIOD", str(scaled.TEST.EVAL_PERIOD)]
    values = ", ".join(
        f"{name} {cfg.SOLVER[key]} to {scaled.SOLVER[key]}"
        for name, key in (
            ("learning rate", "BASE_LR"),
            ("warm-up", "WARMUP_ITERS"),
            ("drops", "STEPS"),
            ("length", "MAX_ITER"),
        )
    )
    return pairs, f"images per batch {batch} to {images_per_batch}: {values} (iterations)"
