"""Semantic segmentation on own data: folders of images and of label images, checked, split and written as a list."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.decode import decode_labels, stored_as
from moco_plugin.data.listing import image_files
from moco_plugin.detectors.dataset import OwnData, Sources
from moco_plugin.detectors.images import MOST_BROKEN, open_image
from moco_plugin.detectors.records import few
from moco_plugin.detectors.splits import TEST_SHARE
from moco_plugin.detectors.yolo import class_names
from moco_plugin.errors import UserError
from moco_plugin.files import write_json
from moco_plugin.transfer.components.datasets import SEMANTIC_PREFIX
from moco_plugin.transfer.voc_files import VOID

_TURN = Image.Transpose
TURNS = {5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}
"""What makes an image of an EXIF orientation upright, where its sides change places."""


def prepare_semantic(out: Path, sources: Sources) -> OwnData:
    """Check images and their label images, and write ``train.json`` and ``test.json`` into a folder.

    A label image has its image's name, but for the suffix, and one number per pixel, grey (of 1, 8 or 16 bits) or with a
    palette: the class, from 0, or 255 for pixels to ignore. Where all are 0 or 255, 255 is the one class. ``classes.txt``
    or a YAML file with ``names``, in the folder of labels or above, names the classes.

    What detectron2 would not read as it is meant is written once more, as grey PNG files in ``labels``.

    Raises:
        UserError: The data are invalid.
    """
    labels, test_labels, seed = sources.train, sources.test, sources.seed
    images = sources.train_images or labels
    names = class_names(labels, images)
    rows, used, notes = _pair(labels, images, names, sources.value_range)
    if test_labels is None:
        order = random.Random(seed).sample(rows, len(rows))
        count = max(1, round(TEST_SHARE * len(rows)))
        held_out, rows = order[:count], sorted(order[count:], key=lambda row: str(row["file_name"]))
        notes.append(f"test set: {count} of the {len(order)} images, held out by seed {seed}")
    else:
        held_out, in_test, more = _pair(test_labels, sources.test_images or images, names, sources.value_range)
        notes += more
        if unknown := sorted(in_test - used - {VOID}):
            raise UserError(
                f"{test_labels} has the labels {few(unknown)}, which {labels} has not; expected those of both"
            )
    binary = used == {0, VOID} and len(names) <= 2
    if binary:
        used, names = {0, 1}, ["background", *names][-2:] if names else ["background", "object"]
        notes.append(f"the label images hold 0 and 255 alone: 0 is {names[0]}, and 255 the class {names[1]}")
    used -= {VOID}
    if len(used) < 2:
        raise UserError(
            f"all pixels of {labels} have the label {few(sorted(used)) or VOID}, or {VOID}, which is ignored; "
            "expected two classes or more, numbered from 0"
        )
    classes = names or [str(index) for index in range(max(used) + 1)]
    if unused := [name for index, name in enumerate(classes) if index not in used]:
        notes.append(f"{len(unused)} of {len(classes)} classes have no pixel in {labels}: {few(unused)}")
    for name, part in (("train", rows), ("test", held_out)):
        _write_labels(part, out / "labels" / name, binary)
        write_json(out / f"{name}.json", {"classes": classes, "ignore_label": VOID, "images": part})
    train, test = ((out / f"{name}.json").resolve() for name in ("train", "test"))
    about: dict[str, Any] = {"prefix": SEMANTIC_PREFIX, "value_range": sources.value_range}
    return OwnData(train, test, len(rows), len(held_out), tuple(classes), False, tuple(notes), **about)


def _write_labels(rows: list[dict[str, Any]], folder: Path, binary: bool) -> None:
    """Write label images anew that are of 1 or 16 bits, or turned, or all if 255 is a class, and put them into the rows."""
    for index, row in enumerate(rows):
        turn, plain = row.pop("turn"), row.pop("plain")
        if plain and not binary:
            continue
        labels = decode_labels(row["sem_seg_file_name"])
        picture = Image.fromarray((labels == VOID if binary else labels).astype(np.uint8))
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / f"{index}.png").resolve()
        (picture if turn is None else picture.transpose(turn)).save(path)
        row["sem_seg_file_name"] = str(path)


def _pair(
    labels: Path, images: Path, names: list[str], value_range: Sequence[float] | None
) -> tuple[list[dict[str, Any]], set[int], list[str]]:
    """Return entries of a data set, the values that occur in it, and sentences that count what was left out."""
    by_name: dict[str, Path] = {
        path.relative_to(images).with_suffix("").as_posix(): path for path in image_files(images)
    }
    rows: list[dict[str, Any]] = []
    used: set[int] = set()
    without, broken = list[str](), list[str]()
    files = image_files(labels)
    for path in tqdm(files, desc=f"labels of {labels.name}", file=sys.stderr):
        image = by_name.pop(path.relative_to(labels).with_suffix("").as_posix(), None)
        if image is None:
            without.append(path.name)
            continue
        opened = open_image(image, value_range)
        if isinstance(opened, str):
            broken.append(opened or image.name)
            continue
        classes, size = decode_labels(path), opened.size
        plain = stored_as(path) in (("L", 1), ("P", 1))
        turn = TURNS.get(stored_as(image)[1])
        height, width = classes.shape
        as_stored = turn is not None and (width, height) == size[::-1] != size  # drawn by a tool that ignores EXIF
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
        used |= found
        paths = {"file_name": str(image.resolve()), "sem_seg_file_name": str(path.resolve())}
        state = {"turn": turn if as_stored else None, "plain": plain and not as_stored}
        rows.append({**paths, "width": width, "height": height, **state})
    if len(rows) < 2:
        raise UserError(
            f"{labels} has {len(files)} label images, of which {len(rows)} have an image in {images}; expected 2 or more "
            "of the same names, but for the suffix"
        )
    if len(broken) > max(3, MOST_BROKEN * len(files)):
        raise UserError(f"{len(broken)} of {len(files)} images of {images} cannot be used: {few(broken)}; repair them")
    notes = [f"left out {len(broken)} of {len(files)} images: {few(broken)}"] if broken else []
    if without:
        notes.append(f"left out {len(without)} label images without an image: {few(without)}")
    if by_name:
        notes.append(f"left out {len(by_name)} images without a label image: {few(sorted(by_name))}")
    return rows, used, notes
