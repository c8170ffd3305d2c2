"""The files of data sets: which are needed, which are missing, and where to get them."""

import json
import mmap
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from moco_plugin.transfer.components.voc_semantic import AUGMENTED, TRAIN_AUG, label_file, read_ids, semantic_ids

DENSEPOSE = {  # of detectron2's DensePose project, which registers them if it is installed
    "densepose_coco_2014_train": ("coco/train2014", "coco/annotations/densepose_train2014.json"),
    "densepose_coco_2014_minival": ("coco/val2014", "coco/annotations/densepose_minival2014.json"),
    "densepose_coco_2014_valminusminival": ("coco/val2014", "coco/annotations/densepose_valminusminival2014.json"),
}
SOURCES = {  # first part of the names: where to get the files
    "voc_2007": "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ (VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar)",
    "voc_2012_sem_seg_train_aug": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar) and "
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "voc_2012": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar)",
    "coco_2014": "https://cocodataset.org/#download (train2014.zip, val2014.zip, annotations_trainval2014.zip)",
    "keypoints_coco_2014": "https://cocodataset.org/#download (train2014.zip, val2014.zip, "
    "annotations_trainval2014.zip)",
    "coco_2017": "https://cocodataset.org/#download (train2017.zip, val2017.zip, annotations_trainval2017.zip)",
    "keypoints_coco_2017": "https://cocodataset.org/#download (train2017.zip, val2017.zip, "
    "annotations_trainval2017.zip)",
    "densepose_coco_2014": "https://cocodataset.org/#download (train2014.zip, val2014.zip) and "
    "https://github.com/facebookresearch/detectron2/blob/main/projects/DensePose/doc/DENSEPOSE_DATASETS.md",
    "lvis": "https://www.lvisdataset.org/dataset (annotations) and https://cocodataset.org/#download "
    "(train2017.zip, val2017.zip)",
    "cityscapes": "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip); "
    "labelTrainIds are made by cityscapesscripts' csCreateTrainIdLabelImgs",
    "scenes": "tools/make_scenes.py, which composes it",
}
PACKAGES = {  # by kind: what reading or evaluating it takes
    "lvis": ("lvis",),
    "cityscapes_instance": ("cityscapesscripts", "shapely"),
    "cityscapes_sem_seg": ("cityscapesscripts",),
}


@dataclass(frozen=True)
class Files:
    """Files of one kind that a data set needs.

    Attributes:
        sort: What they are: "images", "annotations", "list" and so on.
        needed: How many; 0 if that cannot be known while their list is missing.
        missing: Those that are missing or truncated.
        state: What is wrong with these.
    """

    sort: str
    needed: int
    missing: tuple[Path, ...] = field(repr=False)
    state: str = "missing"

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.needed} of {self.needed} {self.sort}"
        if self.needed < 2:
            return f"{self.missing[0]} is {self.state}"
        return f"{len(self.missing)} of {self.needed} {self.sort} are {self.state}, {self.missing[0]} first"


def datasets_root() -> Path:
    """Return the folder that detectron2 looks for data sets in: $DETECTRON2_DATASETS, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def source(name: str) -> str:
    """Return where to get the files of a data set, or an empty string."""
    return next((text for prefix, text in SOURCES.items() if name.startswith(prefix)), "")


def find_files(name: str) -> list[Files]:
    """Look for the files of a data set: every image and label that its lists or annotations name.

    Args:
        name: A registered data set, or one of DensePose's.

    Returns:
        What is needed and what of it is missing; empty for kinds of data sets that are not known here.
    """
    if name in DENSEPOSE and name not in DatasetCatalog.list():
        images, annotations = (str(datasets_root() / part) for part in DENSEPOSE[name])
        metadata: Any = SimpleNamespace(evaluator_type="coco", image_root=images, json_file=annotations)
    else:
        metadata = MetadataCatalog.get(name)
    find = _FINDERS.get(getattr(metadata, "evaluator_type", ""))
    return find(metadata) if find else []


def _files(sort: str, paths: Iterable[str | Path]) -> Files:
    """Look for files, reading each folder once: data sets hold 100,000 of them."""
    folders: dict[str, set[str]] = {}
    missing = []
    count = 0
    for path in map(str, paths):
        folder, file = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        count += 1
        if file not in folders[folder]:
            missing.append(Path(path))
    return Files(sort, count, tuple(missing))


def _folder(sort: str, path: str | Path) -> Files:
    """Look for a folder whose files are unknown."""
    return Files(sort, 0, () if os.path.isdir(path) else (Path(path),))


def _coco(metadata: Any) -> list[Files]:
    return _coco_files(metadata, b"file_name", lambda name: os.path.join(metadata.image_root, name))


def _lvis(metadata: Any) -> list[Files]:
    # as detectron2 has it: the last two parts of the address are folder and file
    return _coco_files(metadata, b"coco_url", lambda url: os.path.join(metadata.image_root, *url.split("/")[-2:]))


def _coco_files(metadata: Any, key: bytes, path: Callable[[str], str]) -> list[Files]:
    if not hasattr(metadata, "json_file"):  # a user's own data set, which is not in files of COCO's format
        return []
    annotations = Path(metadata.json_file)
    if not annotations.is_file() or annotations.stat().st_size == 0:
        return [Files("annotations", 1, (annotations,)), _folder("images", metadata.image_root)]
    # Not parsed: of COCO's half a gigabyte only the names are wanted.
    pattern = re.compile(b'"' + key + rb'"\s*:\s*("(?:[^"\\]|\\.)*")')
    with open(annotations, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not content[-64:].rstrip().endswith(b"}"):
            return [Files("annotations", 1, (annotations,), "truncated")]
        names = [json.loads(found) for found in pattern.findall(content)]
    return [_files("images", map(path, dict.fromkeys(names)))]


def _pascal_voc(metadata: Any) -> list[Files]:
    root = Path(metadata.dirname)
    listed = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
    if not listed.is_file():
        return [Files("list", 1, (listed,)), _folder("images", root / "JPEGImages")]
    names = read_ids(listed)
    return [
        _files("images", (root / "JPEGImages" / f"{name}.jpg" for name in names)),
        _files("annotations", (root / "Annotations" / f"{name}.xml" for name in names)),
    ]


def _sem_seg(metadata: Any) -> list[Files]:
    if not hasattr(metadata, "sbd_dirname"):  # ADE20k and others: a folder of images and one of labels
        return [_folder("images", metadata.image_root), _folder("labels", metadata.sem_seg_root)]
    voc, sbd, split = Path(metadata.dirname), Path(metadata.sbd_dirname), metadata.split
    lists = [voc / "ImageSets" / "Segmentation" / f"{part}.txt" for part in ("train", "val")]
    if split == TRAIN_AUG and not (voc / AUGMENTED).is_dir():
        lists += [sbd / "train.txt", sbd / "val.txt"]
    found = _files("lists", lists)
    if found.missing:
        return [found, _folder("images", voc / "JPEGImages")]
    names = semantic_ids(voc, split, sbd)
    own = set(read_ids(lists[0]))
    labels = [label_file(voc, split, name, own) for name in names]
    # what does not exist as PNG is converted from Matlab's format
    labels = [
        sbd / "cls" / f"{path.stem}.mat" if path.parent.name == AUGMENTED and not path.exists() else path
        for path in labels
    ]
    return [_files("images", (voc / "JPEGImages" / f"{name}.jpg" for name in names)), _files("labels", labels)]


def _cityscapes(metadata: Any, *labels: str) -> list[Files]:
    images, truth = Path(metadata.image_dir), Path(metadata.gt_dir)
    names = {str(path)[: -len("leftImg8bit.png")] for path in _below(images, "leftImg8bit.png")}
    known = {str(path)[: -len("gtFine_polygons.json")] for path in _below(truth, "gtFine_polygons.json")}
    if not names and not known:
        return [Files("images", 0, (images,)), Files("labels", 0, (truth,))]
    frames = sorted(names | known)
    return [
        _files("images", (images / f"{frame}leftImg8bit.png" for frame in frames)),
        _files("labels", (truth / f"{frame}gtFine_{label}" for frame in frames for label in labels)),
    ]


def _below(root: Path, suffix: str) -> list[Path]:
    """Return the files in a folder's subfolders, relative to it."""
    return [path.relative_to(root) for path in root.glob(f"*/*{suffix}")]


_FINDERS: dict[str, Callable[[Any], list[Files]]] = {
    "coco": _coco,
    "lvis": _lvis,
    "pascal_voc": _pascal_voc,
    "sem_seg": _sem_seg,
    "cityscapes_instance": lambda metadata: _cityscapes(metadata, "polygons.json", "instanceIds.png", "labelIds.png"),
    "cityscapes_sem_seg": lambda metadata: _cityscapes(
        metadata, "polygons.json", "labelIds.png", "labelTrainIds.png", "instanceIds.png"
    ),
}
