"""How a detector is trained on own data: the config, and its changes by a stated rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.transfer.own_data.dataset import OwnData
from moco_plugin.transfer.tasks import INITIALISATIONS, Metric, Task

MODELS = {
    "fpn": ("coco/coco_R_50_FPN_1x", 0.02),
    "c4": ("coco/coco_R_50_C4_1x", 0.02),
    "retinanet": ("coco/coco_retinanet_R_50_FPN_1x", 0.01),
    "timm": ("timm/coco_timm_FPN_1x_moco", 0.02),
}
"""Config of each model, without its initialisation, and the learning rate for 16 images."""
EPOCHS = 12  # of COCO's 1x schedule, rounded
LEAST_STEPS, LEAST_STEPS_ON_CPU = 1000, 300
BATCH_ON_CPU = 2
SIDE_ON_CPU = 320  # pixels of the short side
DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}


@dataclass(frozen=True)
class Recipe:
    """A task on own data, the changes of its config as ``KEY VALUE`` pairs, and sentences that say what was chosen."""

    data: OwnData
    task: Task
    overrides: tuple[str, ...]
    sentences: tuple[str, ...]


def choose_recipe(model: str, data: OwnData, weights: str | Path | None, gpus: int) -> Recipe:
    """Return how to train a model on own data.

    Args:
        model: "fpn", "c4", "retinanet" or "timm:NAME".
        data: The data.
        weights: A checkpoint whose network the detector is built on; None, or a detectron2 ``.pkl``, for ResNet-50.
        gpus: Training processes of this machine; without a GPU one.

    Raises:
        UsageError: Unknown model, or one that the weights do not fit.
    """
    kind, _, network = model.partition(":")
    if kind not in MODELS or (kind == "timm") != bool(network):
        known = ("fpn", "c4", "retinanet", "timm:NAME")
        raise UsageError(f"--model is {model!r}; expected {', '.join(known)}{did_you_mean(kind, MODELS)}")
    config, rate = MODELS[kind]
    own = ["MODEL.TIMM.NAME", network] if network else _resnet(kind, weights)
    cpu = not torch.cuda.is_available()
    batch = BATCH_ON_CPU if cpu else max(gpus, min(16, 4 * gpus))
    steps = max(LEAST_STEPS_ON_CPU if cpu else LEAST_STEPS, EPOCHS * data.images // batch)
    masks = data.masks and kind != "retinanet"
    lr = rate * batch / 16
    chosen = {
        "DATASETS.TRAIN": f"({data.names[0]!r},)",
        "DATASETS.TEST": f"({data.names[1]!r},)",
        "MODEL.RETINANET.NUM_CLASSES" if kind == "retinanet" else "MODEL.ROI_HEADS.NUM_CLASSES": len(data.classes),
        "MODEL.MASK_ON": masks,
        "INPUT.MASK_FORMAT": "bitmask",  # reads polygons and run lengths
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": round(lr, 6),
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": (round(steps * 2 / 3), round(steps * 8 / 9)),
        "SOLVER.WARMUP_ITERS": min(1000, steps // 10),
        "SOLVER.CHECKPOINT_PERIOD": max(100, steps // 10),
    }
    if cpu:
        chosen |= {
            "INPUT.MIN_SIZE_TRAIN": (SIDE_ON_CPU,),
            "INPUT.MIN_SIZE_TEST": SIDE_ON_CPU,
            "INPUT.MAX_SIZE_TRAIN": 2 * SIDE_ON_CPU,
            "INPUT.MAX_SIZE_TEST": 2 * SIDE_ON_CPU,
            "DATALOADER.NUM_WORKERS": 1,
            "TEST.PRECISE_BN.NUM_ITER": 50,
        }
    overrides = [*own, *(str(item) for pair in chosen.items() for item in pair)]
    box = tuple(Metric(f"box {name}", "bbox", name) for name in ("AP", "AP50", "AP75"))
    mask = tuple(Metric(f"mask {name}", "segm", name) for name in ("AP", "AP50", "AP75"))
    configs = {init: config if kind == "timm" else f"{config}_{init}" for init in INITIALISATIONS}
    task = Task(f"own_{kind}", f"own data, {model}", configs, data.names, box + mask if masks else box)
    sentences = (
        f"{data.images} training images, {len(data.classes)} classes: {', '.join(data.classes[:10])}"
        + (" ..." if len(data.classes) > 10 else ""),
        *data.notes,
        f"{model}: {'boxes and masks' if masks else 'boxes'}, batch {batch}, learning rate {lr:g} ({rate:g} for 16 images), "
        f"{steps} steps, {steps * batch / data.images:.0f} epochs (12, and {LEAST_STEPS_ON_CPU if cpu else LEAST_STEPS} "
        "steps at least); KEY VALUE pairs at the end of the command change them",
    )
    return Recipe(data, task, tuple(overrides), sentences)


def _resnet(kind: str, weights: str | Path | None) -> list[str]:
    """Return the overrides for the depth of a ResNet."""
    if weights is None or str(weights).endswith(".pkl") or not Path(weights).is_file():
        return []
    try:
        architecture = read_checkpoint(str(weights)).architecture
    except UserError:
        return []  # the conversion says why
    depth = DEPTHS.get(architecture)
    if depth is None or (kind == "c4" and depth < 50):
        fit = "--model fpn" if depth else f"--model timm:{architecture}"
        raise UsageError(f"{weights} holds a {architecture}, which --model {kind} cannot be built on; choose {fit}")
    small = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"] if depth < 50 else []
    return ["MODEL.RESNETS.DEPTH", str(depth), *small]
