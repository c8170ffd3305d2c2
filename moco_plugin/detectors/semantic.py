"""Semantic segmentation on own data: folders of images and of label images, checked, split and written as a list."""

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

ENTRY = ("file_name", "sem_seg_file_name", "width", "height")  # what is written of an image


def prepare_semantic(out: Path, sources: Sources) -> OwnData:
    """Check images and their label images, and write ``train.json`` and ``test.json`` into a folder.

    A label image has its image's name, but for the suffix, and one number per pixel, grey (of 1, 8 or 16 bits) or with a
    palette: the class, from 0, or 255 for pixels to ignore. Where all are 0 or 255, 255 is the one class. ``classes.txt``
    or a YAML file with ``names``, in the folder of labels or above, names the classes.

    What detectron2 would not read as it is meant is written once more, as grey PNG files in ``labels``.

    Raises:
        UserError: The data are invalid.
    """
    labels, notes = sources.train, list[str]()
    images = sources.train_images or labels
    names = class_names(labels, images)
    rows = _pair(labels, images, names, sources.value_range, notes)
    tested: list[Row] = []
    if sources.test is not None:
        tested = _pair(sources.test, sources.test_images or images, names, sources.value_range, notes)
    used, in_test = (set().union(*(row["classes"] for row in part)) for part in (rows, tested))
    if unknown := sorted(in_test - used - {VOID}):
        raise UserError(
            f"{sources.test} has the labels {few(unknown)}, which {labels} does not have; expected those of both"
        )
    binary = used == {0, VOID} and len(names) <= 2
    if binary:
        names = ["background", *names][-2:] if names else ["background", "object"]
        notes.append(f"the label images hold 0 and 255 alone: 0 is {names[0]}, and 255 the class {names[1]}")
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
    files = (out / "train.json").resolve(), (out / "test.json").resolve()
    for file, part in zip(files, (train, test), strict=True):
        _write_labels(part, out / "labels" / file.stem, binary)
        entries = [{key: row[key] for key in ENTRY} for row in part]
        write_json(file, {"classes": classes, "ignore_label": VOID, "images": entries})
    about: dict[str, Any] = {"prefix": SEMANTIC_PREFIX, "value_range": sources.value_range}
    return OwnData(*files, len(train), len(test), tuple(classes), False, tuple(notes), **about)


def _write_labels(rows: list[Row], folder: Path, binary: bool) -> None:
    """Write label images anew that are of 1 or 16 bits, or turned, or all if 255 is a class, and put them into the rows."""
    for index, row in enumerate(rows):
        if row["plain"] and not binary:
            continue
        labels = decode_labels(row["sem_seg_file_name"])
        grey = (labels == VOID if binary else labels).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / f"{index}.png").resolve()
        Image.fromarray(upright(grey, row["orientation"])).save(path)
        row["sem_seg_file_name"] = str(path)


def _pair(
    labels: Path, images: Path, names: list[str], value_range: Sequence[float] | None, notes: list[str]
) -> list[Row]:
    """Return entries of a data set, with the ``classes`` in each; what was left out is added to the notes."""
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
            "of the same names, but for the suffix"
        )
    if without:
        notes.append(f"left out {len(without)} label images without an image: {few(without)}")
    if by_name:
        notes.append(f"left out {len(by_name)} images without a label image: {few(sorted(by_name))}")
    records = [Record(image.relative_to(images).as_posix()) for image in pairs]
    opened = open_images(Annotations(images, "label images", [], {"": records}, [images]), value_range, notes)[""]
    rows: list[Row] = []
    for photo, _ in tqdm(opened, desc=f"labels of {labels.name}", file=sys.stderr):
        path = pairs[photo.path]
        classes, size = decode_labels(path), photo.size
        plain = stored_as(path) in (("L", 1), ("P", 1))
        orientation = stored_as(photo.path)[1]
        height, width = classes.shape
        as_stored = (
            orientation in SIDEWAYS and (width, height) == size[::-1] != size
        )  # drawn by a tool that ignores EXIF
        if as_stored:
            width, height = size
        if (width, height) != size:
            raise UserError(f"label image {path} has {width} x {height} pixels, and its image {size[0]} x {size[1]}")
        found = {int(label) for label in np.unique(classes)}
        here = found - {VOID}
        if here and names and max(here) >= len(names):
            raise UserError(f"label image {path} has the label {max(here)}, and there are {len(names)} names")
        if here and max(here) > VOID:
            raise UserError(f"label image {path} has the label {max(here)}; expected 0 to 254, and 255 to ignore")
        paths = (str(photo.path.resolve()), str(path.resolve()))
        state = {"orientation": orientation if as_stored else None, "plain": plain and not as_stored}
        known = {"classes": found, "digest": photo.digest}
        rows.append({**dict(zip(ENTRY, (*paths, width, height), strict=True)), **known, **state})
    return rows
