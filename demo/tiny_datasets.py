"""Tiny data sets of real images in the layouts of VOC, SBD, COCO, LVIS and Cityscapes."""

from collections.abc import Sequence
from pathlib import Path

import moco_plugin.transfer.components  # noqa: F401  (lets detectron2 import with current libraries)  # isort: skip
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from tqdm import tqdm

from moco_plugin.demo.scenes import MAX_SCALE, check_replaceable
from moco_plugin.demo.tiny_cityscapes import BANDS, write_cityscapes
from moco_plugin.demo.tiny_coco import write_coco, write_lvis
from moco_plugin.demo.tiny_scenes import Looks, TinyScene, compose_split
from moco_plugin.demo.tiny_voc import write_sbd, write_voc
from moco_plugin.errors import UsageError
from moco_plugin.files import atomic_folder, write_json

COCO_CLASSES = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
MARKER = "tiny_datasets.json"
MIN_TRAIN, MIN_TEST = 4, 2
MIN_SIZE = round(28 * MAX_SCALE) + 1  # the largest object of 28 pixels must fit


def make_tiny_datasets(
    output: str | Path,
    train: Looks,
    test: Looks,
    *,
    num_train: int = 8,
    num_test: int = 8,
    size: int = 128,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a folder for ``DETECTRON2_DATASETS``, whole or not at all.

    It contains ``VOC2007``, ``VOC2012``, ``benchmark_RELEASE`` (SBD), ``coco``, ``lvis`` (with COCO's images) and
    ``cityscapes`` in their published layouts. Scenes are composed of real images of objects; the classes are those of
    the real data sets, assigned round-robin. The same arguments give the same bytes.

    Args:
        output: Folder to make.
        train: Objects for all scenes that are trained on.
        test: Objects for all scenes that are tested on.
        num_train: Scenes of each data set's training split. SBD adds half as many to VOC 2012.
        num_test: Scenes of each test split; from seven on, every class of VOC is among them.
        size: Height and width in pixels; Cityscapes is twice as wide.
        seed: Seed of all random choices.
        overwrite: Replace existing tiny data sets.
        progress: Show a progress bar.

    Returns:
        ``output``.

    Raises:
        UsageError: A number is out of range, or ``output`` exists.
    """
    output = Path(output)
    check_replaceable(output, overwrite, MARKER, "tiny data sets")
    if num_train < MIN_TRAIN or num_test < MIN_TEST or seed < 0:
        raise UsageError(
            f"expected {MIN_TRAIN} training and {MIN_TEST} test images or more and a seed from 0, "
            f"got {num_train}, {num_test} and {seed}"
        )
    if size < MIN_SIZE:
        raise UsageError(f"images of {size} pixels are too small for the objects; expected {MIN_SIZE} or more")

    def compose(number: int, looks: Looks, count: int, bands: Sequence[Sequence[int]] = ()) -> list[TinyScene]:
        scenes: list[TinyScene] = compose_split(looks, count, size, [seed, number], bands)
        bar.update()
        return scenes

    with atomic_folder(output) as root, tqdm(total=9, desc="tiny data sets", unit="split", disable=not progress) as bar:
        trained, tested = compose(0, train, num_train), compose(1, test, num_test)
        _write_voc2007(root, trained, tested)
        trained, tested = compose(2, train, num_train), compose(3, test, num_test)
        _write_voc2012(root, trained, tested, compose(4, train, num_train // 2))
        for number, looks, count, split in ((5, train, num_train, "train"), (6, test, num_test, "val")):
            scenes = compose(number, looks, count)
            write_coco(root / "coco", f"{split}2017", scenes, COCO_CLASSES, len(looks.groups))
            write_lvis(root / "lvis" / f"lvis_v0.5_{split}.json", f"{split}2017", scenes, LVIS_CATEGORIES)
        colours = {category["name"]: category["color"] for category in CITYSCAPES_CATEGORIES}
        bands = [colours[name] for name in BANDS]
        for number, looks, count, split, city in (
            (7, train, num_train, "train", "aachen"),
            (8, test, num_test, "val", "frankfurt"),
        ):
            scenes = compose(number, looks, count, bands)
            write_cityscapes(root / "cityscapes", split, city, scenes, CITYSCAPES_CATEGORIES)
        options = {"num_train": num_train, "num_test": num_test, "size": size, "seed": seed}
        write_json(root / MARKER, {"made_by": "tools/make_tiny_datasets.py", **options})
    return output


def _write_voc2007(root: Path, trained: Sequence[TinyScene], tested: Sequence[TinyScene]) -> None:
    names = [f"{number:06d}" for number in range(1, len(trained) + len(tested) + 1)]
    half, count = len(trained) // 2, len(trained)
    splits = {
        "train": (names[:half], trained[:half]),
        "val": (names[half:count], trained[half:]),
        "test": (names[count:], tested),
    }
    write_voc(root / "VOC2007", splits, CLASS_NAMES)


def _write_voc2012(
    root: Path, trained: Sequence[TinyScene], tested: Sequence[TinyScene], further: Sequence[TinyScene]
) -> None:
    """Write VOC 2012 and SBD, which segments further images of VOC 2012, and some of its own train and val."""
    train, val, more = (
        [f"{year}_{number:06d}" for number in range(1, len(scenes) + 1)]
        for year, scenes in ((2007, trained), (2008, tested), (2009, further))
    )
    segmented = {"train": (train, trained), "val": (val, tested)}
    write_voc(root / "VOC2012", segmented, CLASS_NAMES, {"train": (more, further)})
    sbd = {
        "train": ([*train[:2], *more[1:]], [*trained[:2], *further[1:]]),
        "val": ([val[0], more[0]], [tested[0], further[0]]),
    }
    write_sbd(root / "benchmark_RELEASE" / "dataset", sbd, CLASS_NAMES)
