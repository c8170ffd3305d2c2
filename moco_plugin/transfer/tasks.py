"""The transfer experiments: their configs, data sets and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.papers import LVIS_2X_FROZEN, TRANSFER, Published

INITIALISATIONS = ("random", "supervised", "moco")


@dataclass(frozen=True)
class Metric:
    """A number that a paper reports: its name there, and where detectron2's evaluators put it, in percent."""

    name: str
    group: str
    key: str

    @property
    def path(self) -> str:
        """Its name in a run's ``results.json``, such as ``bbox/AP50``."""
        return f"{self.group}/{self.key}"


@dataclass(frozen=True)
class Task:
    """A transfer experiment.

    Attributes:
        name: As ``tools/transfer.py --task`` takes it.
        title: What it is.
        configs: Name of the config under ``configs/detectron2`` for each initialisation.
        datasets: Registered names of the data sets to train and to test on.
        metrics: The paper's, in its order.
        note: What the papers say of their numbers.
    """

    name: str
    title: str
    configs: Mapping[str, str]
    datasets: tuple[str, ...]
    metrics: tuple[Metric, ...]
    note: str = ""

    @property
    def published(self) -> tuple[Published, ...]:
        """The papers' rows."""
        return TRANSFER.get(self.name, ())

    def config(self, init: str) -> str:
        """Return the name of the config for an initialisation.

        Raises:
            UsageError: The task has none.
        """
        if init not in self.configs:
            raise UsageError(f"task {self.name} starts from {' or '.join(self.configs)} weights, not {init}")
        return self.configs[init]


def find_task(name: str) -> Task:
    """Return the task with a name.

    Raises:
        UsageError: There is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}{did_you_mean(name, TASKS)}; known are {', '.join(TASKS)}")
    return TASKS[name]


def _configs(stem: str, official: bool = False) -> dict[str, str]:
    """Return the configs of an experiment; ``official`` ones have a name in the released code: the supervised one's."""
    configs = {init: f"{stem}_{init}" for init in INITIALISATIONS}
    return {**configs, "supervised": stem} if official else configs


_VOC_BOX = tuple(Metric(name, "bbox", name) for name in ("AP50", "AP", "AP75"))  # the paper's order
_BOX = tuple(Metric(f"box {name}", "bbox", name) for name in ("AP", "AP50", "AP75"))
_MASK = tuple(Metric(f"mask {name}", "segm", name) for name in ("AP", "AP50", "AP75"))
_KEYPOINT = tuple(Metric(f"keypoint {name}", "keypoints", name) for name in ("AP", "AP50", "AP75"))
_DENSEPOSE = tuple(Metric(f"DensePose {name}", "densepose_gps", name) for name in ("AP", "AP50", "AP75"))
_VOC = ("voc_2007_trainval", "voc_2012_trainval", "voc_2007_test")
_VOC_2007 = ("voc_2007_trainval", "voc_2007_test")
_COCO = ("coco_2017_train", "coco_2017_val")
_FIVE_TRIALS = "The paper's numbers are means of 5 trials."
_VOC_TRIALS = "The papers' numbers are means of 5 trials; their standard deviation is about 0.2, 0.2 and 0.4."

_TASKS = (
    Task(
        "voc_c4",
        "VOC detection, trainval07+12, Faster R-CNN R50-C4",
        _configs("voc/pascal_voc_R_50_C4_24k", official=True),
        _VOC,
        _VOC_BOX,
        _VOC_TRIALS,
    ),
    Task(
        "voc_dilated_c5",
        "VOC detection, trainval07+12, Faster R-CNN R50-dilated-C5",
        _configs("voc/pascal_voc_R_50_dilated_C5_24k"),
        _VOC,
        _VOC_BOX,
        _VOC_TRIALS,
    ),
    Task(
        "voc07_c4",
        "VOC detection, trainval2007 only, Faster R-CNN R50-C4",
        _configs("voc/pascal_voc_2007_R_50_C4_9k"),
        _VOC_2007,
        _VOC_BOX,
        _FIVE_TRIALS,
    ),
    Task(
        "voc07_dilated_c5",
        "VOC detection, trainval2007 only, Faster R-CNN R50-dilated-C5",
        _configs("voc/pascal_voc_2007_R_50_dilated_C5_9k"),
        _VOC_2007,
        _VOC_BOX,
    ),
    Task("coco_c4_1x", "COCO, Mask R-CNN R50-C4, 1x", _configs("coco/coco_R_50_C4_1x"), _COCO, _BOX + _MASK),
    Task(
        "coco_c4_2x",
        "COCO, Mask R-CNN R50-C4, 2x",
        _configs("coco/coco_R_50_C4_2x", official=True),
        _COCO,
        _BOX + _MASK,
    ),
    Task("coco_fpn_1x", "COCO, Mask R-CNN R50-FPN, 1x", _configs("coco/coco_R_50_FPN_1x"), _COCO, _BOX + _MASK),
    Task("coco_fpn_2x", "COCO, Mask R-CNN R50-FPN, 2x", _configs("coco/coco_R_50_FPN_2x"), _COCO, _BOX + _MASK),
    Task("coco_fpn_6x", "COCO, Mask R-CNN R50-FPN, 6x", _configs("coco/coco_R_50_FPN_6x"), _COCO, _BOX + _MASK),
    Task("coco_retinanet_1x", "COCO, RetinaNet R50-FPN, 1x", _configs("coco/coco_retinanet_R_50_FPN_1x"), _COCO, _BOX),
    Task("coco_retinanet_2x", "COCO, RetinaNet R50-FPN, 2x", _configs("coco/coco_retinanet_R_50_FPN_2x"), _COCO, _BOX),
    Task(
        "coco_keypoint",
        "COCO keypoints, R50-FPN, 2x",
        _configs("coco/coco_keypoint_R_50_FPN_2x"),
        ("keypoints_coco_2017_train", "keypoints_coco_2017_val"),
        _KEYPOINT,
    ),
    Task(
        "coco_densepose",
        "COCO DensePose, R50-FPN, s1x",
        _configs("coco/coco_densepose_R_50_FPN_s1x"),
        ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival", "densepose_coco_2014_minival"),
        _DENSEPOSE,
    ),
    Task(
        "lvis_1x",
        "LVIS v0.5, Mask R-CNN R50-FPN, 1x",
        _configs("lvis/lvis_v0.5_R_50_FPN_1x"),
        ("lvis_v0.5_train", "lvis_v0.5_val"),
        _MASK,
        _FIVE_TRIALS,
    ),
    Task(
        "lvis_2x",
        "LVIS v0.5, Mask R-CNN R50-FPN, 2x",
        _configs("lvis/lvis_v0.5_R_50_FPN_2x"),
        ("lvis_v0.5_train", "lvis_v0.5_val"),
        _MASK,
        f"{_FIVE_TRIALS} Batch norm is trained in all rows; with frozen batch norm the paper gives supervised weights "
        f"{' / '.join(map(str, LVIS_2X_FROZEN))}.",
    ),
    Task(
        "cityscapes_instance",
        "Cityscapes instance segmentation, Mask R-CNN R50-FPN",
        _configs("cityscapes/cityscapes_R_50_FPN_24k"),
        ("cityscapes_fine_instance_seg_train", "cityscapes_fine_instance_seg_val"),
        (Metric("mask AP50", "segm", "AP50"), Metric("mask AP", "segm", "AP")),
    ),
    Task(
        "cityscapes_semantic",
        "Cityscapes semantic segmentation, FCN R50",
        _configs("cityscapes/cityscapes_fcn_R_50_90k"),
        ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val"),
        (Metric("mIoU", "sem_seg", "IoU"),),
        _FIVE_TRIALS,
    ),
    Task(
        "voc_semantic",
        "VOC 2012 semantic segmentation, FCN R50",
        _configs("voc/pascal_voc_2012_fcn_R_50_30k"),
        ("voc_2012_sem_seg_train_aug", "voc_2012_sem_seg_val"),
        (Metric("mIoU", "sem_seg", "mIoU"),),
        _FIVE_TRIALS,
    ),
    *(
        Task(
            f"scenes_{name.lower()}",
            f"the demo's scenes, Mask R-CNN R18-{name} of a quarter of the width",
            {"random": f"demo/scenes_R_18_{name}_quarter", "moco": f"demo/scenes_R_18_{name}_quarter_moco"},
            ("scenes_train", "scenes_test"),
            _BOX + _MASK,
        )
        for name in ("C4", "FPN")
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
