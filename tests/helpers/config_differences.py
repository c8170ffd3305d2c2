"""What each transfer config changes of detectron2's baseline."""

from pathlib import Path
from typing import Any

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg

from moco_plugin.schema import configs_folder

FOLDER = configs_folder() / "detectron2"

RECORDED = Path(__file__).parents[1] / "data" / "detectron2_model_zoo"

INITIALISATIONS = ("random", "supervised", "moco")

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"

OFFICIAL_NAMES = ("voc/pascal_voc_R_50_C4_24k", "coco/coco_R_50_C4_2x")  # what the released code calls them

# what every experiment changes in detectron2's baseline: nothing is frozen, batch norm is trained and made precise
TUNED = {
    "MODEL.BACKBONE.FREEZE_AT": (2, 0),
    "MODEL.RESNETS.NORM": ("FrozenBN", "SyncBN"),
    "TEST.PRECISE_BN.ENABLED": (False, True),
}

C4 = {**TUNED, "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "Res5ROIHeadsExtraNorm")}

FPN = {**TUNED, "MODEL.FPN.NORM": ("", "SyncBN")}

DILATED_C5 = {
    **TUNED,
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone", "build_resnet_dilated_c5_backbone"),
    "MODEL.RPN.IN_FEATURES": (["res5"], ["c5"]),
    "MODEL.ROI_HEADS.IN_FEATURES": (["res5"], ["c5"]),
}

TWO_TIMES = {"SOLVER.STEPS": ((60000, 80000), (120000, 160000)), "SOLVER.MAX_ITER": (90000, 180000)}

SIX_TIMES = {"SOLVER.STEPS": ((60000, 80000), (480000, 520000)), "SOLVER.MAX_ITER": (90000, 540000)}

VOC_SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)

VOC_ON_COCO = {  # detectron2 has no dilated C5 on VOC
    "MODEL.ROI_HEADS.NUM_CLASSES": (80, 20),
    "INPUT.MIN_SIZE_TRAIN": ((640, 672, 704, 736, 768, 800), VOC_SCALES),
    "DATASETS.TRAIN": (("coco_2017_train",), ("voc_2007_trainval", "voc_2012_trainval")),
    "DATASETS.TEST": (("coco_2017_val",), ("voc_2007_test",)),
    "SOLVER.STEPS": ((60000, 80000), (18000, 22000)),
    "SOLVER.MAX_ITER": (90000, 24000),
    "SOLVER.WARMUP_ITERS": (1000, 100),
}

VOC_24K = {"SOLVER.STEPS": ((12000, 16000), (18000, 22000)), "SOLVER.MAX_ITER": (18000, 24000)}

VOC_2007_9K = {
    "DATASETS.TRAIN": (("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_trainval",)),
    "SOLVER.STEPS": ((12000, 16000), (6750, 8250)),
    "SOLVER.MAX_ITER": (18000, 9000),
}

CITYSCAPES = {  # the baseline starts from a COCO detector and evaluates on the way
    "MODEL.WEIGHTS": (
        "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
        MSRA,
    ),
    "TEST.EVAL_PERIOD": (8000, 0),
}

FULLY_CONVOLUTIONAL = {  # detectron2 has no such network: these are the differences to its defaults
    **TUNED,
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "SemanticSegmentor"),
    "MODEL.WEIGHTS": ("", MSRA),
    "MODEL.RESNETS.OUT_FEATURES": (["res4"], ["res5"]),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.SEM_SEG_HEAD.NAME": ("SemSegFPNHead", "FCNHead"),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": (["p2", "p3", "p4", "p5"], ["res5"]),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": (128, 256),
    "MODEL.SEM_SEG_HEAD.NORM": ("GN", "SyncBN"),
    "INPUT.SCALE_RANGE": ([], [0.5, 2.0]),
    "INPUT.CROP.ENABLED": (False, True),
    "INPUT.CROP.TYPE": ("relative_range", "absolute"),
    "INPUT.MIN_SIZE_TEST": (800, 0),  # no resizing
    "DATALOADER.ASPECT_RATIO_GROUPING": (True, False),
    "SOLVER.WARMUP_ITERS": (1000, 0),
}

FCN_DIFFERENCES: dict[str, dict[str, tuple[Any, Any]]] = {
    "voc/pascal_voc_2012_fcn_R_50_30k": {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (54, 21),
        "INPUT.CROP.SIZE": ([0.9, 0.9], [513, 513]),
        "DATASETS.TRAIN": ((), ("voc_2012_sem_seg_train_aug",)),
        "DATASETS.TEST": ((), ("voc_2012_sem_seg_val",)),
        "SOLVER.BASE_LR": (0.001, 0.003),
        "SOLVER.STEPS": ((30000,), (21000, 27000)),
        "SOLVER.MAX_ITER": (40000, 30000),
    },
    "cityscapes/cityscapes_fcn_R_50_90k": {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (54, 19),
        "INPUT.CROP.SIZE": ([0.9, 0.9], [769, 769]),
        "DATASETS.TRAIN": ((), ("cityscapes_fine_sem_seg_train",)),
        "DATASETS.TEST": ((), ("cityscapes_fine_sem_seg_val",)),
        "SOLVER.BASE_LR": (0.001, 0.01),
        "SOLVER.STEPS": ((30000,), (63000, 81000)),
        "SOLVER.MAX_ITER": (40000, 90000),
    },
}

# detectron2's equivalent baseline of an experiment, and all that differs: {key: (theirs, ours)}
BASELINES: dict[str, tuple[str, dict[str, tuple[Any, Any]]]] = {
    "voc/pascal_voc_R_50_C4_24k": ("PascalVOC-Detection/faster_rcnn_R_50_C4", {**C4, **VOC_24K}),
    "voc/pascal_voc_2007_R_50_C4_9k": ("PascalVOC-Detection/faster_rcnn_R_50_C4", {**C4, **VOC_2007_9K}),
    "voc/pascal_voc_R_50_dilated_C5_24k": ("COCO-Detection/faster_rcnn_R_50_DC5_1x", {**DILATED_C5, **VOC_ON_COCO}),
    "voc/pascal_voc_2007_R_50_dilated_C5_9k": (
        "COCO-Detection/faster_rcnn_R_50_DC5_1x",
        {
            **DILATED_C5,
            **VOC_ON_COCO,
            "DATASETS.TRAIN": (("coco_2017_train",), ("voc_2007_trainval",)),
            "SOLVER.STEPS": ((60000, 80000), (6750, 8250)),
            "SOLVER.MAX_ITER": (90000, 9000),
        },
    ),
    "coco/coco_R_50_C4_1x": ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", C4),
    "coco/coco_R_50_C4_2x": ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", {**C4, **TWO_TIMES}),
    "coco/coco_R_50_FPN_1x": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", FPN),
    "coco/coco_R_50_FPN_2x": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {**FPN, **TWO_TIMES}),
    "coco/coco_R_50_FPN_6x": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {**FPN, **SIX_TIMES}),
    "coco/coco_retinanet_R_50_FPN_1x": ("COCO-Detection/retinanet_R_50_FPN_1x", FPN),
    "coco/coco_retinanet_R_50_FPN_2x": ("COCO-Detection/retinanet_R_50_FPN_1x", {**FPN, **TWO_TIMES}),
    "coco/coco_keypoint_R_50_FPN_2x": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", {**FPN, **TWO_TIMES}),
    "lvis/lvis_v0.5_R_50_FPN_1x": ("LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", FPN),
    "lvis/lvis_v0.5_R_50_FPN_2x": ("LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {**FPN, **TWO_TIMES}),
    "cityscapes/cityscapes_R_50_FPN_24k": ("Cityscapes/mask_rcnn_R_50_FPN", {**FPN, **CITYSCAPES}),
}

FCN = tuple(FCN_DIFFERENCES)

DENSEPOSE = "coco/coco_densepose_R_50_FPN_s1x"

EXPERIMENTS = (*BASELINES, *FCN)

# one of each that build another network
NETWORKS = (
    "voc/pascal_voc_R_50_C4_24k",
    "voc/pascal_voc_R_50_dilated_C5_24k",
    "coco/coco_R_50_C4_2x",
    "coco/coco_R_50_FPN_1x",
    "coco/coco_retinanet_R_50_FPN_1x",
    "coco/coco_keypoint_R_50_FPN_2x",
    "lvis/lvis_v0.5_R_50_FPN_1x",
    "cityscapes/cityscapes_R_50_FPN_24k",
    *FCN,
)


def name_of(experiment: str, initialisation: str) -> str:
    """Return the config's name: the released code's where it has one."""
    plain = experiment in OFFICIAL_NAMES and initialisation == "supervised"
    return experiment if plain else f"{experiment}_{initialisation}"


def flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in (
            flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {f"{prefix}{key}": value}
        ).items()
    }


def differences(theirs: CfgNode, ours: CfgNode) -> dict[str, tuple[Any, Any]]:
    a, b = flat(theirs), flat(ours)
    return {key: (a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def baseline(name: str) -> CfgNode:
    """Return detectron2's config as recorded, after showing that the installed detectron2, if it has it, agrees."""
    cfg = get_cfg()
    cfg.merge_from_file(str(RECORDED / f"{name}.yaml"))
    try:
        installed = model_zoo.get_config_file(f"{name}.yaml")
    except RuntimeError:  # the index's copy of v0.6 comes without configs
        return cfg
    other = get_cfg()
    other.merge_from_file(installed)
    assert differences(cfg, other) == {}
    return cfg
