"""Writer of scenes in Pascal VOC's layout: images, annotations in XML, and label images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from moco_plugin.transfer.voc_files import VOID, voc_palette, write_palette_png

FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject")


def write_voc_image(
    root: Path, name: str, image: np.ndarray, objects: Sequence[Any], class_names: Sequence[str], segmented: bool = True
) -> None:
    """Write a scene into existing ``FOLDERS``.

    Args:
        root: The folder of the data set.
        name: Name of the image, without suffix.
        image: uint8, H x W x 3.
        objects: The ``SceneObject`` instances; labels beyond the last class start again at the first.
        class_names: The classes, without background.
        segmented: Write label images, too, with void edges.
    """
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    height, width = image.shape[:2]
    tree = ElementTree.Element("annotation")
    size = {"width": width, "height": height, "depth": 3}
    _add(tree, {"folder": "JPEGImages", "filename": f"{name}.jpg", "size": size, "segmented": 1})
    for item in objects:
        left, top, right, bottom = item.box
        # VOC counts pixels from 1 and includes the last one.
        box = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        about = {"name": class_names[item.label % len(class_names)], "pose": "Unspecified", "truncated": 0}
        _add(tree, {"object": {**about, "difficult": 0, "bndbox": box}})
    ElementTree.indent(tree)
    ElementTree.ElementTree(tree).write(root / "Annotations" / f"{name}.xml")
    if segmented:
        classes, instances = label_maps(image.shape[:2], objects, len(class_names))
        void = edges(instances)
        for folder, array in (("SegmentationClass", classes), ("SegmentationObject", instances)):
            labels = np.where(void, VOID, array).astype(np.uint8)
            write_palette_png(root / folder / f"{name}.png", labels, voc_palette())


def _add(node: ElementTree.Element, fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        child = ElementTree.SubElement(node, key)
        if isinstance(value, dict):
            _add(child, value)
        else:
            child.text = str(value)


def label_maps(shape: Sequence[int], objects: Sequence[Any], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return class numbers from 1 and object numbers from 1 (uint8, H x W), 0 for background."""
    classes, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for number, item in enumerate(objects, start=1):
        classes[item.mask], instances[item.mask] = item.label % num_classes + 1, number
    return classes, instances


def edges(labels: np.ndarray) -> np.ndarray:
    """Return the pixels that differ from one of their four neighbours (bool, H x W)."""
    found = np.zeros(labels.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[here] != labels[there]
        found[here] |= differ
        found[there] |= differ
    return found
