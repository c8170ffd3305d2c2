"""Division of images into training and test sets, and checks of their classes."""

import random
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from moco_plugin.detectors.records import few
from moco_plugin.errors import UserError

TEST_SHARE = 0.2  # of the images, where there is no test set
Row = dict[str, Any]
"""An image: its ``file_name``, the set of its ``classes``, and its ``digest``, which copies share."""


def without_tested(train: list[Row], test: list[Row], notes: list[str]) -> list[Row]:
    """Return the training images that are not copies of test images.

    Raises:
        UserError: Half of the test images are training images.
    """
    tested = {image["digest"] for image in test}
    same = [Path(image["file_name"]).name for image in train if image["digest"] in tested]
    if 2 * len(same) > len(test):
        raise UserError(
            f"{len(same)} of the {len(test)} test images are training images ({few(same)}); expected other images to "
            "test on, or no test set: a fifth is held out then"
        )
    if same:
        notes.append(f"{len(same)} images are in both sets, and not trained on: {few(same)}")
    return [image for image in train if image["digest"] not in tested]


def hold_out(images: list[Row], seed: int, notes: list[str]) -> tuple[list[Row], list[Row]]:
    """Hold out a share of each class for the test set, rare classes first; copies stay together."""
    groups: dict[bytes, list[Row]] = {}
    for image in sorted(images, key=lambda image: str(image["file_name"])):
        groups.setdefault(image["digest"], []).append(image)
    order = random.Random(seed).sample(list(groups.values()), len(groups))
    classes = [set().union(*(image["classes"] for image in group)) for group in order]
    wanted = max(1, round(TEST_SHARE * len(order)))
    have, taken = Counter(chain.from_iterable(classes)), Counter[int]()
    chosen: set[int] = set()
    for kind in (*sorted(have, key=lambda kind: (have[kind], kind)), None):  # None: whatever is left
        share = wanted if kind is None else max(1, round(TEST_SHARE * have[kind]))
        for index, kinds in enumerate(classes):
            if len(chosen) == wanted or taken[kind] >= share:
                break
            last = any(have[other] - taken[other] == 1 for other in kinds)  # of a class: it is trained on
            if index not in chosen and not last and (kind is None or kind in kinds):
                chosen.add(index)
                taken.update(kinds)
    chosen |= {*[index for index in range(len(order)) if index not in chosen][: wanted - len(chosen)]}
    held_out = {id(image) for index in chosen for image in order[index]}
    test = [image for group in groups.values() for image in group if id(image) in held_out]
    notes.append(f"test set: {len(test)} of the {len(images)} images, held out by seed {seed}, a share of each class")
    train = [image for group in groups.values() for image in group if id(image) not in held_out]
    return train, test


def count_classes(names: Mapping[int, str], train: list[Row], test: list[Row], what: str, notes: list[str]) -> None:
    """Add notes on classes without objects (or pixels: ``what``) in both or one of the sets."""
    trained, tested = (set(chain.from_iterable(image["classes"] for image in part)) for part in (train, test))
    for text, kinds in (
        (f"have no {what}", names.keys() - trained - tested),
        (f"have {what}s in the training set alone: they are not tested", trained - tested),
        (f"have {what}s in the test set alone: they cannot be found", tested - trained),
    ):
        if kinds:
            found = [name for kind, name in names.items() if kind in kinds]
            notes.append(f"{len(kinds)} of {len(names)} classes {text}: {few(found)}")
    if not tested:
        notes.append(f"the test set has no {what}: there is nothing to measure")
