"""Preparation of own images and label images for semantic segmentation."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.decode import decode_labels, stored_as
from moco_plugin.data.listing import image_files
from moco_plugin.data.pixels import SIDEWAYS, upright
from moco_plugin.detectors.dataset import OwnData, Sources
from moco_plugin.detectors.images import open_images
from moco_plugin.detectors.records import Annotations, Record, few
from moco_plugin.detectors.splits import Row, count_classes, hold_out, without_tested
from moco_plugin.detectors.yolo import class_names
from moco_plugin.errors import UserError
from moco_plugin.files import write_json
from moco_plugin.transfer.components.datasets import SEMANTIC_PREFIX
from moco_plugin.transfer.voc_files import VOID

ENTRY = ("file_name", "sem_seg_file_name", "width", "height")  # keys of an image in the list


def prepare_semantic(out: Path, sources: Sources) -> OwnData:
    """Check images and their label images, and write ``train.json`` and ``test.json`` into a folder.

    A label image has the name of its image except for the suffix, and the class of each pixel as a grey value (1, 8 or 16
    bits) or palette index: classes from 0, and 255 for ignored pixels. If all values are 0 or 255, 255 is the only class.
    ``classes.txt`` or a YAML file with ``names``, in the folder of the labels or above, names the classes.

    Label images that detectron2 would read differently are rewritten as grey PNG files in ``labels``.

    Raises:
        UserError: The data are invalid.
    """
    labels, notes = sources.train, list[str]()
    images = sources.train_images or labels
    names = class_names(labels, images)
    rows, tested = _pair(labels, images, names, sources.value_range, notes), list[Row]()
    if sources.test is not None:
        tested = _pair(sources.test, sources.test_images or images, names, sources.value_range, notes)
    used, in_test = (set().union(*(row["classes"] for row in part)) for part in (rows, tested))
    if unknown := sorted(in_test - used - {VOID}):
        raise UserError(
            f"{sources.test} has the labels {few(unknown)}, which {labels} does not have; expected those of both"
        )
    binary = used == {0, VOID} and len(names) <= 2
    if binary:
        names = ["background", *(names or ["object"])][-2:]
        notes.append(f"the label images contain 0 and 255 alone: 0 is {names[0]}, and 255 the class {names[1]}")
    for row in (*rows, *tested):
        row["classes"] = {min(label, 1) if binary else label for label in row["classes"] if binary or label != VOID}
    used = {0, 1} if binary else used - {VOID}
    if len(used) < 2:
        raise UserError(
            f"all pixels of {labels} have the label {few(sorted(used)) or VOID}, or {VOID}, which is ignored; "
            "expected two classes or more, numbered from 0"
        )
    train, test = (rows, tested) if sources.test is not None else hold_out(rows, sources.seed, notes)
    train = without_tested(train, test, notes)
    if not train:
        raise UserError(f"all images of {images} are copies of one; expected 2 or more that differ")
    classes = names or [str(index) for index in range(max(used) + 1)]
    count_classes(dict(enumerate(classes)), train, test, "pixel", notes)
    files = _write(out / "train.json", train, classes, binary), _write(out / "test.json", test, classes, binary)
    about: dict[str, Any] = {"prefix": SEMANTIC_PREFIX, "value_range": sources.value_range}
    return OwnData(*files, len(train), len(test), tuple(classes), False, tuple(notes), **about)


def _write(path: Path, rows: list[Row], classes: list[str], binary: bool) -> Path:
    """Write the list of a set, and again the label images that are not plain, or all of them if 255 is a class."""
    for index, row in enumerate(rows):
        if row["plain"] and not binary:
            continue
        labels = decode_labels(row["sem_seg_file_name"])
        grey = (labels == VOID if binary else labels).astype(np.uint8)
        folder = (path.parent / "labels" / path.stem).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        row["sem_seg_file_name"] = str(folder / f"{index}.png")
        Image.fromarray(upright(grey, row["orientation"])).save(row["sem_seg_file_name"])
    entries = [{key: row[key] for key in ENTRY} for row in rows]
    write_json(path, {"classes": classes, "ignore_label": VOID, "images": entries})
    return path.resolve()


def _pair(
    labels: Path, images: Path, names: list[str], value_range: Sequence[float] | None, notes: list[str]
) -> list[Row]:
    """Return the entries of a data set, each with its ``classes``, and add omissions to the notes."""
    by_name = {path.relative_to(images).with_suffix("").as_posix(): path for path in image_files(images)}
    files, pairs, without = image_files(labels), dict[Path, Path](), list[str]()
    for path in files:
        image = by_name.pop(path.relative_to(labels).with_suffix("").as_posix(), None)
        if image is None:
            without.append(path.name)
        else:
            pairs[image] = path
    if len(pairs) < 2:
        raise UserError(
            f"{labels} has {len(files)} label images, of which {len(pairs)} have an image in {images}; expected 2 or more "
            "with the same names except for the suffix"
        )
    if without:
        notes.append(f"left out {len(without)} label images without an image: {few(without)}")
    if by_name:
        notes.append(f"left out {len(by_name)} images without a label image: {few(sorted(by_name))}")
    data = Annotations(images, "label images", [images])
    data.splits[""] = [Record(image.relative_to(images).as_posix()) for image in pairs]
    rows: list[Row] = []
    for photo, _ in tqdm(open_images(data, value_range, notes)[""], desc=f"labels of {labels.name}", file=sys.stderr):
        path = pairs[photo.path]
        array, (width, height), orientation = decode_labels(path), photo.size, stored_as(photo.path)[1]
        turned = orientation in SIDEWAYS and array.shape == (width, height) != (height, width)  # by a tool without EXIF
        if array.shape != (height, width) and not turned:
            found = f"{array.shape[1]} x {array.shape[0]} pixels, and its image {width} x {height}"
            raise UserError(f"label image {path} has {found}")
        classes = {int(label) for label in np.unique(array)}
        most = max(classes - {VOID}, default=0)
        if most >= (count := min(len(names) or VOID, VOID)):
            raise UserError(f"label image {path} has the label {most}; expected 0 to {count - 1}, and {VOID} to ignore")
        row = dict(zip(ENTRY, (str(photo.path.resolve()), str(path.resolve()), width, height), strict=True))
        row |= {"orientation": orientation if turned else None, "classes": classes, "digest": photo.digest}
        rows.append(row | {"plain": not turned and stored_as(path) in (("L", 1), ("P", 1))})
    return rows
