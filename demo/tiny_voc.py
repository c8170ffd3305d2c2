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
        segmented: Splits whose images have boxes and segmentations; ``trainval`` is added.
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
            outlines = [_boundary(classes == number) for number in range(1, len(names) + 1)]
            present = np.unique(classes[classes > 0])[:, None]
            _write_mat(
                root / "cls" / f"{name}.mat",
                "GTcls",
                {"Boundaries": outlines, "CategoriesPresent": present, "Segmentation": classes},
            )
            outlines = [_boundary(instances == number) for number in range(1, len(scene.objects) + 1)]
            categories = np.array([[obj.label % len(names) + 1] for obj in scene.objects], np.uint8)
            _write_mat(
                root / "inst" / f"{name}.mat",
                "GTinst",
                {"Segmentation": instances, "Boundaries": outlines, "Categories": categories},
            )
        _write_list(root / f"{split}.txt", images)


def _boundary(mask: np.ndarray) -> np.ndarray:
    return (edges(mask) & mask).astype(np.uint8)


def _write_mat(path: Path, name: str, fields: Mapping[str, Any]) -> None:
    content = dict(fields)
    content["Boundaries"] = np.empty((len(fields["Boundaries"]), 1), object)
    for number, outline in enumerate(fields["Boundaries"]):
        content["Boundaries"][number, 0] = csc_matrix(outline.astype(float))
    file = io.BytesIO()
    savemat(file, {name: content})
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # scipy's names the time: the same scenes would differ in bytes
    path.write_bytes(header + file.getvalue()[len(header) :])


def _write_list(path: Path, names: Sequence[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names))
