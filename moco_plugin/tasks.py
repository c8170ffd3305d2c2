"""The transfer experiments: their configs, data sets and metrics, and what the papers report for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moco_plugin.errors import UsageError, nearest

INITIALISATIONS = ("random", "supervised", "moco")
V1, V2 = "MoCo v1 (arXiv 1911.05722)", "MoCo v2 (arXiv 2003.04297)"


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
class Published:
    """A row of a paper's table.

    Attributes:
        name: The initialisation, as tables show it.
        init: Which config it was run with: "random", "supervised" or "moco".
        values: One for each of the task's metrics; None where the paper gives none.
        source: The paper.
        method: How the weights were pre-trained: "moco_v1" or "moco_v2".
        epochs: For how long, on ImageNet; None for other images.
    """

    name: str
    init: str
    values: tuple[float | None, ...]
    source: str = V1
    method: str = ""
    epochs: int | None = None


@dataclass(frozen=True)
class Task:
    """A transfer experiment.

    Attributes:
        name: As ``tools/transfer.py --task`` takes it.
        title: What it is.
        configs: Name of the config under ``configs/detectron2`` for each initialisation.
        datasets: Registered names of the data sets to train and to test on.
        metrics: The paper's, in its order.
        published: The papers' rows.
        note: What the papers say of their numbers.
    """

    name: str
    title: str
    configs: Mapping[str, str]
    datasets: tuple[str, ...]
    metrics: tuple[Metric, ...]
    published: tuple[Published, ...] = ()
    note: str = ""

    def config(self, init: str) -> str:
        """Returns the name of the config for an initialisation.

        Raises:
            UsageError: The task has none.
        """
        if init not in self.configs:
            raise UsageError(f"task {self.name} starts from {' or '.join(self.configs)} weights, not {init}")
        return self.configs[init]


def find_task(name: str) -> Task:
    """Returns the task of a name.

    Raises:
        UsageError: There is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}{nearest(name, TASKS)}; known are {', '.join(TASKS)}")
    return TASKS[name]


def _configs(stem: str, official: bool = False) -> dict[str, str]:
    """Returns the configs of an experiment; ``official`` ones have a name in the released code: the supervised one's."""
    configs = {init: f"{stem}_{init}" for init in INITIALISATIONS}
    return {**configs, "supervised": stem} if official else configs


def _rows(
    random: tuple[float, ...] | None = None,
    supervised: tuple[float, ...] | None = None,
    v1: tuple[float, ...] | None = None,
    ig_1b: tuple[float, ...] | None = None,
    v2_200: tuple[float, ...] | None = None,
    v2_800: tuple[float, ...] | None = None,
    count: int = 0,
) -> tuple[Published, ...]:
    """Returns the rows that there are numbers for, each filled up to ``count`` with None."""
    rows = (
        Published("random", "random", random or ()),
        Published("supervised IN-1M", "supervised", supervised or ()),
        Published("MoCo v1 IN-1M, 200 epochs", "moco", v1 or (), V1, "moco_v1", 200),
        Published("MoCo v1 IG-1B", "moco", ig_1b or (), V1, "moco_v1"),
        Published("MoCo v2 IN-1M, 200 epochs", "moco", v2_200 or (), V2, "moco_v2", 200),
        Published("MoCo v2 IN-1M, 800 epochs", "moco", v2_800 or (), V2, "moco_v2", 800),
    )
    return tuple(
        Published(r.name, r.init, r.values + (None,) * (count - len(r.values)), r.source, r.method, r.epochs)
        for r in rows
        if r.values
    )


_VOC_BOX = tuple(Metric(name, "bbox", name) for name in ("AP50", "AP", "AP75"))  # the paper's order
_BOX = tuple(Metric(f"box {name}", "bbox", name) for name in ("AP", "AP50", "AP75"))
_MASK = tuple(Metric(f"mask {name}", "segm", name) for name in ("AP", "AP50", "AP75"))
_KEYPOINT = tuple(Metric(f"keypoint {name}", "keypoints", name) for name in ("AP", "AP50", "AP75"))
_DENSEPOSE = (Metric("DensePose AP75", "densepose_gps", "AP75"),)
_VOC = ("voc_2007_trainval", "voc_2012_trainval", "voc_2007_test")
_VOC_2007 = ("voc_2007_trainval", "voc_2007_test")
_COCO = ("coco_2017_train", "coco_2017_val")
_FIVE_TRIALS = (
    "The papers' numbers are means of 5 trials, with standard deviations of about 0.2, 0.2 and 0.4."
)

# The numbers of all tasks: MoCo v1, section 4.2 and appendix; those of v2: its table of results on VOC.
_TASKS = (
    Task(
        "voc_c4", "VOC detection, trainval07+12, Faster R-CNN R50-C4",
        _configs("voc/pascal_voc_R_50_C4_24k", official=True), _VOC, _VOC_BOX,
        _rows((60.2, 33.8, 33.1), (81.3, 53.5, 58.8), (81.5, 55.9, 62.6), (82.2, 57.2, 63.7), (82.4, 57.0, 63.6),
              (82.5, 57.4, 64.0)),
        _FIVE_TRIALS,
    ),
    Task(
        "voc_dilated_c5", "VOC detection, trainval07+12, Faster R-CNN R50-dilated-C5",
        _configs("voc/pascal_voc_R_50_dilated_C5_24k"), _VOC, _VOC_BOX,
        _rows((64.4, 37.9, 38.6), (81.4, 54.0, 59.1), (81.1, 54.6, 59.9), (81.6, 55.5, 61.2)),
        _FIVE_TRIALS,
    ),
    Task(
        "voc07_c4", "VOC detection, trainval2007 alone, Faster R-CNN R50-C4",
        _configs("voc/pascal_voc_2007_R_50_C4_9k"), _VOC_2007, _VOC_BOX,
        _rows(None, (74.4, 42.4, 42.7), (74.9, 46.6, 50.1), (75.6, 47.6, 51.7)),
    ),
    Task(
        "voc07_dilated_c5", "VOC detection, trainval2007 alone, Faster R-CNN R50-dilated-C5",
        _configs("voc/pascal_voc_2007_R_50_dilated_C5_9k"), _VOC_2007, _VOC_BOX,
    ),
    Task(
        "coco_c4_1x", "COCO, Mask R-CNN R50-C4, 1x",
        _configs("coco/coco_R_50_C4_1x"), _COCO, _BOX + _MASK,
        _rows((26.4, 44.0, 27.8, 29.3, 46.9, 30.8), (38.2, 58.2, 41.2, 33.3, 54.7, 35.2),
              (38.5, 58.3, 41.6, 33.6, 54.8, 35.6), (39.1, 58.7, 42.2, 34.1, 55.4, 36.4)),
    ),
    Task(
        "coco_c4_2x", "COCO, Mask R-CNN R50-C4, 2x",
        _configs("coco/coco_R_50_C4_2x", official=True), _COCO, _BOX + _MASK,
        _rows((35.6, 54.6, 38.2, 31.4, 51.5, 33.5), (40.0, 59.9, 43.1, 34.7, 56.5, 36.9),
              (40.7, 60.5, 44.1, 35.4, 57.3, 37.6), (41.1, 60.7, 44.8, 35.6, 57.4, 38.1)),
    ),
    Task(
        "coco_fpn_1x", "COCO, Mask R-CNN R50-FPN, 1x",
        _configs("coco/coco_R_50_FPN_1x"), _COCO, _BOX + _MASK,
        _rows((31.0, 49.5, 33.2, 28.5, 46.8, 30.4), (38.9, 59.6, 42.7, 35.4, 56.5, 38.1),
              (38.5, 58.9, 42.0, 35.1, 55.9, 37.7), (38.9, 59.4, 42.3, 35.4, 56.5, 37.9)),
    ),
    Task(
        "coco_fpn_2x", "COCO, Mask R-CNN R50-FPN, 2x",
        _configs("coco/coco_R_50_FPN_2x"), _COCO, _BOX + _MASK,
        _rows((36.7, 56.7, 40.0, 33.7, 53.8, 35.9), (40.6, 61.3, 44.4, 36.8, 58.1, 39.5),
              (40.8, 61.6, 44.7, 36.9, 58.4, 39.7), (41.1, 61.8, 45.1, 37.4, 59.1, 40.2)),
    ),
    Task(
        "coco_fpn_6x", "COCO, Mask R-CNN R50-FPN, 6x",
        _configs("coco/coco_R_50_FPN_6x"), _COCO, _BOX + _MASK,
    ),
    Task(
        "coco_retinanet_1x", "COCO, RetinaNet R50-FPN, 1x",
        _configs("coco/coco_retinanet_R_50_FPN_1x"), _COCO, _BOX,
    ),
    Task(
        "coco_retinanet_2x", "COCO, RetinaNet R50-FPN, 2x",
        _configs("coco/coco_retinanet_R_50_FPN_2x"), _COCO, _BOX,
    ),
    Task(
        "coco_keypoint", "COCO keypoints, R50-FPN, 2x",
        _configs("coco/coco_keypoint_R_50_FPN_2x"), ("keypoints_coco_2017_train", "keypoints_coco_2017_val"),
        _KEYPOINT,
        _rows(None, (65.8,), (66.8,), (66.9,), count=3),
    ),
    Task(
        "coco_densepose", "COCO DensePose, R50-FPN, s1x",
        _configs("coco/coco_densepose_R_50_FPN_s1x"),
        ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival", "densepose_coco_2014_minival"),
        _DENSEPOSE,
        _rows(None, (50.6,), (53.9,), (54.3,)),
    ),
    Task(
        "lvis_1x", "LVIS v0.5, Mask R-CNN R50-FPN, 1x",
        _configs("lvis/lvis_v0.5_R_50_FPN_1x"), ("lvis_v0.5_train", "lvis_v0.5_val"), _MASK,
    ),
    Task(
        "lvis_2x", "LVIS v0.5, Mask R-CNN R50-FPN, 2x",
        _configs("lvis/lvis_v0.5_R_50_FPN_2x"), ("lvis_v0.5_train", "lvis_v0.5_val"), _MASK,
        _rows(None, (24.4,), (24.1,), (24.9,), count=3),
        "The paper's supervised row has its batch norm frozen.",
    ),
    Task(
        "cityscapes_instance", "Cityscapes instance segmentation, Mask R-CNN R50-FPN",
        _configs("cityscapes/cityscapes_R_50_FPN_24k"),
        ("cityscapes_fine_instance_seg_train", "cityscapes_fine_instance_seg_val"),
        (Metric("mask AP50", "segm", "AP50"), Metric("mask AP", "segm", "AP")),
        _rows(None, (59.6,), (59.3,), (60.3,), count=2),
    ),
    Task(
        "cityscapes_semantic", "Cityscapes semantic segmentation, FCN R50",
        _configs("cityscapes/cityscapes_fcn_R_50_90k"),
        ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val"),
        (Metric("mIoU", "sem_seg", "IoU"),),
        _rows(None, (74.6,), (75.3,), (75.5,)),
    ),
    Task(
        "voc_semantic", "VOC 2012 semantic segmentation, FCN R50",
        _configs("voc/pascal_voc_2012_fcn_R_50_30k"), ("voc_2012_sem_seg_train_aug", "voc_2012_sem_seg_val"),
        (Metric("mIoU", "sem_seg", "mIoU"),),
        _rows(None, (74.4,), (72.5,), (73.6,)),
    ),
    *(
        Task(
            f"scenes_{name.lower()}", f"the demo's scenes, Mask R-CNN R18-{name} of a quarter of the width",
            {"random": f"demo/scenes_R_18_{name}_quarter", "moco": f"demo/scenes_R_18_{name}_quarter_moco"},
            ("scenes_train", "scenes_test"), _BOX + _MASK,
        )
        for name in ("C4", "FPN")
    ),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
