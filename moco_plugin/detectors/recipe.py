"""Training recipe for own data: a config of detectron2, and its changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.detectors.dataset import OwnData
from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.transfer.components.datasets import SEMANTIC_PREFIX
from moco_plugin.transfer.tasks import INITIALISATIONS, Metric, Task

MODELS = {
    "fpn": ("coco/coco_R_50_FPN_1x", 0.02),
    "c4": ("coco/coco_R_50_C4_1x", 0.02),
    "retinanet": ("coco/coco_retinanet_R_50_FPN_1x", 0.01),
    "timm": ("timm/coco_timm_FPN_1x_moco", 0.02),
    "fcn": ("voc/pascal_voc_2012_fcn_R_50_30k", 0.003),
}
"""Config of each model, without its initialisation, and the learning rate for 16 images."""
KEYPOINT_CONFIG = "coco/coco_keypoint_R_50_FPN_2x"  # config of "fpn" for data with keypoints
OKS_SIGMA = 0.05  # of a keypoint: how far off it may be, as a share of the object's size; the mean of COCO's is 0.06
EPOCHS = 12  # of COCO's 1x schedule, rounded
EPOCHS_OF_FCN = 45  # of VOC's schedule, rounded
LEAST_STEPS, LEAST_STEPS_ON_CPU = 1000, 300
BATCH_ON_CPU = 2
SIDE_ON_CPU = 320  # pixels of the short side
REGIONS_ON_CPU = 128  # of an image that the heads are trained on; 512 on a GPU
PROPOSALS_ON_CPU = 300  # of a test image, as in the paper of Faster R-CNN; 1000 on a GPU or for many objects
CROP, CROP_ON_CPU = 513, 257  # pixels of the sides of FCN's crops
USUAL_DETECTIONS = 100  # of an image, in detectron2 and in COCO's evaluation
SPARE = 1.25  # detections for each object of the fullest image, where there are more
DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}
METRIC_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


@dataclass(frozen=True)
class Recipe:
    """A task on own data, the changes of its config by key, and sentences that describe them."""

    data: OwnData
    task: Task
    settings: dict[str, Any]
    sentences: tuple[str, ...]


def choose_recipe(
    model: str, data: OwnData, checkpoint: Checkpoint | None, gpus: int, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a model for own data.

    Args:
        model: "fpn", "c4", "retinanet" or "timm:NAME"; "fcn" for semantic segmentation.
        data: The data.
        checkpoint: Its network is the detector's backbone; None for a ResNet-50.
        gpus: Training processes of this machine; 1 without a GPU.
        overrides: ``KEY VALUE`` pairs that are applied later; the sentences mention them.

    Raises:
        UsageError: Unknown model, or one that the weights do not fit.
    """
    kind, _, network = model.partition(":")
    semantic = data.prefix == SEMANTIC_PREFIX
    if kind not in MODELS or (kind == "timm") != bool(network) or (kind == "fcn") != semantic:
        known = ("fcn",) if semantic else ("fpn", "c4", "retinanet", "timm:NAME")
        raise UsageError(f"--model is {model!r}; expected {', '.join(known)}{did_you_mean(kind, MODELS)}")
    typed = dict(zip(overrides[::2], overrides[1::2], strict=False))
    config, rate = MODELS[kind]
    own: dict[str, Any] = {"MODEL.TIMM.NAME": network} if network else _resnet(kind, checkpoint)
    cpu = not torch.cuda.is_available()
    batch = BATCH_ON_CPU if cpu else max(gpus, min(16, 4 * gpus))
    epochs, least = EPOCHS_OF_FCN if semantic else EPOCHS, LEAST_STEPS_ON_CPU if cpu else LEAST_STEPS
    steps = max(least, epochs * data.images // batch)
    settings = own | {
        "DATASETS.TRAIN": data.names[:1],
        "DATASETS.TEST": data.names[1:],
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": round(rate * batch / 16, 6),
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": (round(steps * 2 / 3), round(steps * 8 / 9)),
        "SOLVER.WARMUP_ITERS": min(1000, steps // 10),
        "SOLVER.CHECKPOINT_PERIOD": max(100, steps // 10),
    }
    if cpu:
        settings |= {"DATALOADER.NUM_WORKERS": 1, "TEST.PRECISE_BN.NUM_ITER": 50}
    if data.value_range:
        settings["INPUT.VALUE_RANGE"] = list(data.value_range)
    notes = list(data.notes)
    if semantic:
        shallow = "MODEL.RESNETS.RES2_OUT_CHANNELS" in own
        settings |= _for_labels(data, steps, shallow, cpu)
        metrics = [Metric("mIoU", "sem_seg", "mIoU"), Metric("pixel accuracy", "sem_seg", "pACC")]
        trained = "labels"
        if shallow:
            notes.append("res5 has stride 32: a ResNet-18 or 34 of detectron2's has no dilation")
    else:
        masks = data.masks and kind != "retinanet" and typed.get("MODEL.MASK_ON") != "False"
        keypoints = data.keypoints if kind == "fpn" else 0
        config = KEYPOINT_CONFIG if keypoints else config
        settings |= _for_objects(kind, data, masks, keypoints, cpu)
        groups = ["bbox", *["segm"] * masks, *["keypoints"] * bool(keypoints)]
        metrics = [
            Metric(f"{METRIC_TITLES[group]} {name}", group, name) for group in groups for name in ("AP", "AP50", "AP75")
        ]
        trained = " and ".join(["boxes", *["masks"] * masks, *[f"{keypoints} keypoints"] * bool(keypoints)])
        if found := settings.get("TEST.DETECTIONS_PER_IMAGE"):
            notes.append(
                f"up to {data.most_objects} objects in an image: up to {found} are looked for, and AP counts as many"
            )
        if data.keypoints and not keypoints:
            notes.append("only --model fpn trains keypoints")
    configs = {init: config if kind == "timm" else f"{config}_{init}" for init in INITIALISATIONS}
    sentences = (
        f"{data.images} training images, {len(data.classes)} classes: {', '.join(data.classes[:10])}"
        + (" ..." if len(data.classes) > 10 else ""),
        *notes,
        _training(f"{model}: {trained}", settings, f"{epochs} epochs, and {least} steps at least", typed, data.images),
    )
    task = Task(f"own_{kind}", f"own data, {model}", configs, data.names, tuple(metrics))
    return Recipe(data, task, settings, sentences)


def _training(what: str, settings: dict[str, Any], length: str, typed: dict[str, str], images: int) -> str:
    """Describe the training with its final settings."""
    batch, rate, steps = (f"{(settings | typed)[f'SOLVER.{k}']}" for k in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER"))
    sentence = f"{what}, batch {batch}, learning rate {rate}, {steps} steps"
    if batch.isdecimal() and steps.isdecimal():  # the runner refuses others
        sentence += f", {int(steps) * int(batch) / images:.3g} epochs"
    if typed:
        return f"{sentence}; as typed: {', '.join(f'{key} {value}' for key, value in typed.items())}"
    return f"{sentence} ({length}); KEY VALUE pairs at the end of the command change them"


def _for_labels(data: OwnData, steps: int, shallow: bool, cpu: bool) -> dict[str, Any]:
    """Return the settings for semantic segmentation."""
    side = CROP_ON_CPU if cpu else CROP
    return {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(data.classes),
        "MODEL.RESNETS.RES5_DILATION": 1 if shallow else 2,
        "INPUT.CROP.SIZE": (side, side),
        "SOLVER.STEPS": (round(steps * 0.7), round(steps * 0.9)),
        "SOLVER.WARMUP_ITERS": 0,
    }


def _for_objects(kind: str, data: OwnData, masks: bool, keypoints: int, cpu: bool) -> dict[str, Any]:
    """Return the settings for detection."""
    head = "RETINANET" if kind == "retinanet" else "ROI_HEADS"
    chosen: dict[str, Any] = {f"MODEL.{head}.NUM_CLASSES": len(data.classes), "MODEL.MASK_ON": masks}
    chosen["INPUT.MASK_FORMAT"] = "bitmask"  # reads polygons and run lengths
    if masks and data.unmasked:
        chosen["MODEL.ROI_MASK_HEAD.NAME"] = "PartialMaskHead"
    if data.most_objects > USUAL_DETECTIONS / SPARE:
        most = 100 * math.ceil(SPARE * data.most_objects / 100)
        chosen |= {"TEST.DETECTIONS_PER_IMAGE": most, "MODEL.RPN.POST_NMS_TOPK_TEST": max(1000, most)}
    if keypoints:
        sigmas = [OKS_SIGMA] * keypoints
        chosen |= {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": keypoints, "TEST.KEYPOINT_OKS_SIGMAS": sigmas}
    if cpu:
        chosen |= {"INPUT.MIN_SIZE_TRAIN": (SIDE_ON_CPU,), "INPUT.MIN_SIZE_TEST": SIDE_ON_CPU}
        chosen |= {"INPUT.MAX_SIZE_TRAIN": 2 * SIDE_ON_CPU, "INPUT.MAX_SIZE_TEST": 2 * SIDE_ON_CPU}
        chosen["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] = REGIONS_ON_CPU
        chosen.setdefault("MODEL.RPN.POST_NMS_TOPK_TEST", PROPOSALS_ON_CPU)
    return chosen


def _resnet(kind: str, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return the settings for the depth of a ResNet."""
    if checkpoint is None:
        return {}
    architecture = checkpoint.architecture
    depth = DEPTHS.get(architecture)
    if depth is None or (kind == "c4" and depth < 50):
        fit = "--model fpn" if depth else f"--model timm:{architecture}"
        raise UsageError(
            f"{checkpoint.path} contains a {architecture}, which does not fit --model {kind}; choose {fit}"
        )
    return {"MODEL.RESNETS.DEPTH": depth, **({"MODEL.RESNETS.RES2_OUT_CHANNELS": 64} if depth < 50 else {})}
