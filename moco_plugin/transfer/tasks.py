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


def _task(
    name: str, title: str, stem: str, datasets: str, metrics: tuple[Metric, ...], note: str = "", official: bool = False
) -> Task:
    """Return a task of the papers; the config of an official one for supervised weights is the released code's."""
    configs = {init: f"{stem}_{init}" for init in INITIALISATIONS}
    if official:
        configs["supervised"] = stem
    return Task(name, title, configs, tuple(datasets.split()), metrics, note)


def _metrics(title: str, group: str, names: str = "AP AP50 AP75") -> tuple[Metric, ...]:
    return tuple(Metric(f"{title} {name}".lstrip(), group, name) for name in names.split())


_VOC_BOX = _metrics("", "bbox", "AP50 AP AP75")  # the paper's order
_BOX, _MASK = _metrics("box", "bbox"), _metrics("mask", "segm")
_MASKS = _BOX + _MASK
_VOC = "voc_2007_trainval voc_2012_trainval voc_2007_test"
_VOC_2007 = "voc_2007_trainval voc_2007_test"
_COCO = "coco_2017_train coco_2017_val"
_LVIS = "lvis_v0.5_train lvis_v0.5_val"
_FIVE_TRIALS = "The paper's numbers are means of 5 trials."
_VOC_TRIALS = "The papers' numbers are means of 5 trials; their standard deviation is about 0.2, 0.2 and 0.4."
_LVIS_2X = (
    f"{_FIVE_TRIALS} Batch norm is trained in all rows; with frozen batch norm the paper gives supervised weights "
    f"{' / '.join(map(str, LVIS_2X_FROZEN))}."
)

_TASKS = (
    _task(
        "voc_c4",
        "VOC detection, trainval07+12, Faster R-CNN R50-C4",
        "voc/pascal_voc_R_50_C4_24k",
        _VOC,
        _VOC_BOX,
        _VOC_TRIALS,
        official=True,
    ),
    _task(
        "voc_dilated_c5",
        "VOC detection, trainval07+12, Faster R-CNN R50-dilated-C5",
        "voc/pascal_voc_R_50_dilated_C5_24k",
        _VOC,
        _VOC_BOX,
        _VOC_TRIALS,
    ),
    _task(
        "voc07_c4",
        "VOC detection, trainval2007 only, Faster R-CNN R50-C4",
        "voc/pascal_voc_2007_R_50_C4_9k",
        _VOC_2007,
        _VOC_BOX,
        _FIVE_TRIALS,
    ),
    _task(
        "voc07_dilated_c5",
        "VOC detection, trainval2007 only, Faster R-CNN R50-dilated-C5",
        "voc/pascal_voc_2007_R_50_dilated_C5_9k",
        _VOC_2007,
        _VOC_BOX,
    ),
    _task("coco_c4_1x", "COCO, Mask R-CNN R50-C4, 1x", "coco/coco_R_50_C4_1x", _COCO, _MASKS),
    _task("coco_c4_2x", "COCO, Mask R-CNN R50-C4, 2x", "coco/coco_R_50_C4_2x", _COCO, _MASKS, official=True),
    _task("coco_fpn_1x", "COCO, Mask R-CNN R50-FPN, 1x", "coco/coco_R_50_FPN_1x", _COCO, _MASKS),
    _task("coco_fpn_2x", "COCO, Mask R-CNN R50-FPN, 2x", "coco/coco_R_50_FPN_2x", _COCO, _MASKS),
    _task("coco_fpn_6x", "COCO, Mask R-CNN R50-FPN, 6x", "coco/coco_R_50_FPN_6x", _COCO, _MASKS),
    _task("coco_retinanet_1x", "COCO, RetinaNet R50-FPN, 1x", "coco/coco_retinanet_R_50_FPN_1x", _COCO, _BOX),
    _task("coco_retinanet_2x", "COCO, RetinaNet R50-FPN, 2x", "coco/coco_retinanet_R_50_FPN_2x", _COCO, _BOX),
    _task(
        "coco_keypoint",
        "COCO keypoints, R50-FPN, 2x",
        "coco/coco_keypoint_R_50_FPN_2x",
        "keypoints_coco_2017_train keypoints_coco_2017_val",
        _metrics("keypoint", "keypoints"),
    ),
    _task(
        "coco_densepose",
        "COCO DensePose, R50-FPN, s1x",
        "coco/coco_densepose_R_50_FPN_s1x",
        "densepose_coco_2014_train densepose_coco_2014_valminusminival densepose_coco_2014_minival",
        _metrics("DensePose", "densepose_gps"),
    ),
    _task("lvis_1x", "LVIS v0.5, Mask R-CNN R50-FPN, 1x", "lvis/lvis_v0.5_R_50_FPN_1x", _LVIS, _MASK, _FIVE_TRIALS),
    _task("lvis_2x", "LVIS v0.5, Mask R-CNN R50-FPN, 2x", "lvis/lvis_v0.5_R_50_FPN_2x", _LVIS, _MASK, _LVIS_2X),
    _task(
        "cityscapes_instance",
        "Cityscapes instance segmentation, Mask R-CNN R50-FPN",
        "cityscapes/cityscapes_R_50_FPN_24k",
        "cityscapes_fine_instance_seg_train cityscapes_fine_instance_seg_val",
        _metrics("mask", "segm", "AP50 AP"),
    ),
    _task(
        "cityscapes_semantic",
        "Cityscapes semantic segmentation, FCN R50",
        "cityscapes/cityscapes_fcn_R_50_90k",
        "cityscapes_fine_sem_seg_train cityscapes_fine_sem_seg_val",
        (Metric("mIoU", "sem_seg", "IoU"),),
        _FIVE_TRIALS,
    ),
    _task(
        "voc_semantic",
        "VOC 2012 semantic segmentation, FCN R50",
        "voc/pascal_voc_2012_fcn_R_50_30k",
        "voc_2012_sem_seg_train_aug voc_2012_sem_seg_val",
        (Metric("mIoU", "sem_seg", "mIoU"),),
        _FIVE_TRIALS,
    ),
    *(
        Task(
            f"scenes_{name.lower()}",
            f"the demo's scenes, Mask R-CNN R18-{name} of a quarter of the width",
            {"random": f"demo/scenes_R_18_{name}_quarter", "moco": f"demo/scenes_R_18_{name}_quarter_moco"},
            ("scenes_train", "scenes_test"),
            _MASKS,
        )
        for name in ("C4", "FPN")
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
