"""VOC 2012 semantic segmentation: train, val, and train_aug with SBD's labels (Hariharan et al. 2011)."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.utils import comm
from tqdm import tqdm

from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path, open_file, read_text
from moco_plugin.transfer.voc_files import VOID, voc_palette, write_palette_png

AUGMENTED = "SegmentationClassAug"  # the usual name of a folder of label images for all of SBD
TRAIN_AUG = "train_aug"


def register_voc_semantic(root: Path) -> None:
    """Register ``voc_2012_sem_seg_train``, ``_val`` and ``_train_aug``.

    Args:
        root: Folder of ``VOC2012`` and, for train_aug, of ``benchmark_RELEASE`` from SBD's archive.
    """
    palette = voc_palette()
    classes = ["background", *CLASS_NAMES]
    voc, sbd = root / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for split in ("train", "val", TRAIN_AUG):
        name = f"voc_2012_sem_seg_{split}"
        DatasetCatalog.register(name, partial(load_voc_semantic, voc, split, sbd))
        MetadataCatalog.get(name).set(
            dirname=str(voc),
            split=split,
            sbd_dirname=str(sbd),
            stuff_classes=classes,
            stuff_colors=[palette[3 * index : 3 * index + 3] for index in range(len(classes))],
            ignore_label=VOID,
            evaluator_type="sem_seg",
        )


def read_ids(path: Path) -> list[str]:
    """Read a list of image names, one per line."""
    return read_text(path, what="a list of names").split()


def semantic_ids(voc: Path, split: str, sbd: Path) -> list[str]:
    """Return the names of a split's images, sorted.

    ``train_aug`` is the union of VOC's train and SBD's train and val, without VOC's val: 10582 images. Without SBD's
    lists, SBD's images are those with a file in ``SegmentationClassAug``.
    """
    lists = voc / "ImageSets" / "Segmentation"
    if split != TRAIN_AUG:
        return sorted(read_ids(lists / f"{split}.txt"))
    if (sbd / "train.txt").exists() or not (voc / AUGMENTED).is_dir():
        more = {*read_ids(sbd / "train.txt"), *read_ids(sbd / "val.txt")}
    else:
        more = {Path(name).stem for name in os.listdir(voc / AUGMENTED) if name.endswith(".png")}
    return sorted({*read_ids(lists / "train.txt"), *more} - {*read_ids(lists / "val.txt")})


def load_voc_semantic(voc: Path, split: str, sbd: Path) -> list[dict]:
    """Return a split's entries in detectron2's format, with ``sem_seg_file_name``.

    Label images contain class numbers, 0 for background and 255 for ignored pixels. SBD's files in Matlab's format are
    converted to ``SegmentationClassAug`` once.

    Args:
        voc: The folder ``VOC2012``.
        split: "train", "val" or "train_aug".
        sbd: The folder ``benchmark_RELEASE/dataset``.

    Raises:
        UserError: SBD's labels cannot be converted.
    """
    names = semantic_ids(voc, split, sbd)
    own = set(read_ids(voc / "ImageSets" / "Segmentation" / "train.txt")) if split == TRAIN_AUG else set(names)
    labels = [voc / ("SegmentationClass" if name in own else AUGMENTED) / f"{name}.png" for name in names]
    _convert_sbd(sbd, [path for path in labels if path.parent.name == AUGMENTED and not path.exists()])
    return [
        {"file_name": str(voc / "JPEGImages" / f"{name}.jpg"), "image_id": name, "sem_seg_file_name": str(path)}
        for name, path in zip(names, labels, strict=True)
    ]


def _convert_sbd(sbd: Path, labels: list[Path]) -> None:
    """Write label images (PNG with VOC's palette) from SBD's ``cls/*.mat``."""
    if not labels:
        return
    from scipy.io import loadmat

    folder = labels[0].parent
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise UserError(
            f"SBD's labels are converted to PNG files in {folder}, which cannot be written; make it writable, "
            "or put the files there"
        )
    palette = voc_palette()
    for path in tqdm(labels, desc="SBD labels", unit="image", disable=not comm.is_main_process()):
        source = sbd / "cls" / f"{path.stem}.mat"
        try:
            with open_file(source) as file:
                classes = loadmat(file)["GTcls"][0, 0]["Segmentation"].astype(np.uint8)
        except Exception as error:  # a broken file raises almost anything
            raise UserError(f"{source} is not a label file of SBD's ({error}); unpack its archive again") from error
        with atomic_path(path) as temporary:
            write_palette_png(temporary, classes, palette)
