"""Semantic segmentation on own data: folders of images and of label images, checked, split and written as a list."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.listing import image_files
from moco_plugin.detectors.dataset import TEST_SHARE, OwnData, Sources
from moco_plugin.detectors.records import few
from moco_plugin.detectors.yolo import class_names
from moco_plugin.errors import UserError
from moco_plugin.files import write_json
from moco_plugin.transfer.components.datasets import SEMANTIC_PREFIX
from moco_plugin.transfer.semantic_mapper import read_labels
from moco_plugin.transfer.voc_files import VOID


def prepare_semantic(out: Path, sources: Sources) -> OwnData:
    """Check images and their label images, and write ``train.json`` and ``test.json`` into a folder.

    A label image has its image's name, but for the suffix, and one number per pixel, grey or with a palette: the class,
    from 0, or 255 for pixels to ignore. ``classes.txt`` or a YAML file with ``names``, in the folder of labels or
    above, names the classes.

    Raises:
        UserError: The data are invalid.
    """
    labels, test_labels, seed = sources.train, sources.test, sources.seed
    images = sources.train_images or labels
    names = class_names(labels, images)
    rows, used, notes = _pair(labels, images, names)
    if test_labels is None:
        order = random.Random(seed).sample(rows, len(rows))
        count = max(1, round(TEST_SHARE * len(rows)))
        held_out, rows = order[:count], sorted(order[count:], key=lambda row: str(row["file_name"]))
        notes.append(f"test set: {count} of the {len(order)} images, held out by seed {seed}")
    else:
        held_out, in_test, more = _pair(test_labels, sources.test_images or images, names)
        notes += more
        if unknown := sorted(in_test - used):
            raise UserError(
                f"{test_labels} has the labels {few(unknown)}, which {labels} has not; expected those of both"
            )
    if len(used) < 2:
        raise UserError(
            f"all pixels of {labels} have the label {few(sorted(used)) or VOID}, or {VOID}, which is ignored; "
            "expected two classes or more, numbered from 0"
        )
    classes = names or [str(index) for index in range(max(used) + 1)]
    if unused := [name for index, name in enumerate(classes) if index not in used]:
        notes.append(f"{len(unused)} of {len(classes)} classes have no pixel in {labels}: {few(unused)}")
    for name, part in (("train", rows), ("test", held_out)):
        write_json(out / f"{name}.json", {"classes": classes, "ignore_label": VOID, "images": part})
    train, test = ((out / f"{name}.json").resolve() for name in ("train", "test"))
    return OwnData(train, test, len(rows), len(held_out), tuple(classes), False, tuple(notes), prefix=SEMANTIC_PREFIX)


def _pair(labels: Path, images: Path, names: list[str]) -> tuple[list[dict[str, Any]], set[int], list[str]]:
    """Return entries of a data set, the labels that occur in it, and sentences that count what was left out."""
    by_name: dict[str, Path] = {
        path.relative_to(images).with_suffix("").as_posix(): path for path in image_files(images)
    }
    rows: list[dict[str, Any]] = []
    used: set[int] = set()
    without: list[str] = []
    files = image_files(labels)
    for path in tqdm(files, desc=f"labels of {labels.name}", file=sys.stderr):
        image = by_name.pop(path.relative_to(labels).with_suffix("").as_posix(), None)
        if image is None:
            without.append(path.name)
            continue
        try:
            classes = read_labels(str(path))
            with Image.open(image) as opened:
                size = opened.size
        except UserError:
            raise
        except Exception as error:  # decoders raise almost anything
            raise UserError(f"{image} or its label image {path} cannot be decoded; repair or remove both") from error
        height, width = classes.shape
        if (width, height) != size:
            raise UserError(f"label image {path} has {width} x {height} pixels, and its image {size[0]} x {size[1]}")
        here = {int(label) for label in np.unique(classes)} - {VOID}
        if here and names and max(here) >= len(names):
            raise UserError(f"label image {path} has the label {max(here)}, and there are {len(names)} names")
        if here and max(here) > VOID:
            raise UserError(f"label image {path} has the label {max(here)}; expected 0 to 254, and 255 to ignore")
        used |= here
        paths = {"file_name": str(image.resolve()), "sem_seg_file_name": str(path.resolve())}
        rows.append({**paths, "width": width, "height": height})
    if len(rows) < 2:
        raise UserError(
            f"{labels} has {len(files)} label images, of which {len(rows)} have an image in {images}; expected 2 or more "
            "of the same names, but for the suffix"
        )
    notes = []
    if without:
        notes.append(f"left out {len(without)} label images without an image: {few(without)}")
    if by_name:
        notes.append(f"left out {len(by_name)} images without a label image: {few(sorted(by_name))}")
    return rows, used, notes
