"""Scenes in the layouts of Pascal VOC 2007 and 2012 and of SBD."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from moco_plugin.demo.tiny_scenes import TinyScene
from moco_plugin.demo.voc_files import FOLDERS, edges, label_maps, write_voc_image

Split = tuple[Sequence[str], Sequence[TinyScene]]  # names of the images, and the images


def write_voc(
    root: Path, segmented: Mapping[str, Split], names: Sequence[str], boxes_only: Mapping[str, Split] | None = None
) -> None:
    """Write ``JPEGImages``, ``Annotations``, ``ImageSets``, ``SegmentationClass`` and ``SegmentationObject``.

    Args:
        root: The folder ``VOC2007`` or ``VOC2012``.
        segmented: Splits of images with boxes and segmentations; ``trainval`` is added.
        names: The classes, without background.
        boxes_only: Further images of these splits, without segmentation, as most of VOC 2012's are.
    """
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for splits in (segmented, boxes_only or {}):
        for images, scenes in splits.values():
            for name, scene in zip(images, scenes, strict=True):
                write_voc_image(root, name, scene.image, scene.objects, names, segmented=splits is segmented)
    for folder, further in (("Main", boxes_only or {}), ("Segmentation", {})):
        lists = {split: [*images, *further.get(split, ((), ()))[0]] for split, (images, _) in segmented.items()}
        lists["trainval"] = sorted([*lists["train"], *lists["val"]])
        (root / "ImageSets" / folder).mkdir(parents=True)
        for split, listed in lists.items():
            _write_list(root / "ImageSets" / folder / f"{split}.txt", listed)


def write_sbd(root: Path, splits: Mapping[str, Split], names: Sequence[str]) -> None:
    """Write ``img``, ``cls``, ``inst`` and the lists of ``benchmark_RELEASE/dataset`` (Hariharan et al. 2011)."""
    for folder in ("img", "cls", "inst"):
        (root / folder).mkdir(parents=True)
    for split, (images, scenes) in splits.items():
        for name, scene in zip(images, scenes, strict=True):
            Image.fromarray(scene.image).save(root / "img" / f"{name}.jpg", quality=95)
            classes, instances = label_maps(scene.shape, scene.objects, len(names))
            present = {"CategoriesPresent": np.unique(classes[classes > 0])[:, None]}
            kinds = {"Categories": np.array([[obj.label % len(names) + 1] for obj in scene.objects], np.uint8)}
            _write_mat(root / "cls" / f"{name}.mat", "GTcls", classes, len(names), present)
            _write_mat(root / "inst" / f"{name}.mat", "GTinst", instances, len(scene.objects), kinds)
        _write_list(root / f"{split}.txt", images)


def _write_mat(path: Path, name: str, labels: np.ndarray, count: int, more: Mapping[str, Any]) -> None:
    """Write labels (H x W) from 1 to ``count``, and the boundary of each."""
    content = {"Segmentation": labels, "Boundaries": np.empty((count, 1), object), **more}
    for index in range(count):
        mask = labels == index + 1
        content["Boundaries"][index, 0] = csc_matrix((edges(mask) & mask).astype(float))
    file = io.BytesIO()
    savemat(file, {name: content})
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # scipy's names the time: the same scenes would differ in bytes
    path.write_bytes(header + file.getvalue()[len(header) :])


def _write_list(path: Path, names: Sequence[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names))
