"""Training and test images: a share of each class held out, none in both sets, and what each has of each class."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_plugin.detectors.records import Category, few
from moco_plugin.errors import UserError

TEST_SHARE = 0.2  # of the images, where there is no test set


def without_tested(train: list[dict[str, Any]], test: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Return the training images that are no copies of test images.

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


def hold_out(images: list[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide images so that the test set has its share of each class, the rare ones first; copies stay together."""
    groups: dict[bytes, list[dict[str, Any]]] = {}
    for image in sorted(images, key=lambda image: str(image["file_name"])):
        groups.setdefault(image["digest"], []).append(image)
    order = random.Random(seed).sample(list(groups.values()), len(groups))
    classes = [
        {row["category_id"] for image in group for row in image["objects"] if not row["iscrowd"]} for group in order
    ]
    wanted = max(1, round(TEST_SHARE * len(order)))
    have = Counter(kind for kinds in classes for kind in kinds)
    taken: Counter[int] = Counter()
    chosen: set[int] = set()
    rare_first = [kind for kind, _ in sorted(have.items(), key=lambda item: (item[1], item[0]))]
    for kind in (*rare_first, None):  # None: whatever is left
        share = wanted if kind is None else min(wanted, max(1, round(TEST_SHARE * have[kind])))
        for place, kinds in enumerate(classes):
            enough = len(chosen) if kind is None else taken[kind]
            last = any(have[other] - taken[other] == 1 for other in kinds)  # of a class: it is trained on
            if (
                place not in chosen
                and (kind is None or kind in kinds)
                and enough < share
                and len(chosen) < wanted
                and not last
            ):
                chosen.add(place)
                taken.update(kinds)
    chosen |= {*[place for place in range(len(order)) if place not in chosen][: wanted - len(chosen)]}
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for place, group in enumerate(order):
        parts[place in chosen].extend(group)
    return tuple(sorted(part, key=lambda image: str(image["file_name"])) for part in parts)  # type: ignore[return-value]


def count_classes(
    categories: Sequence[Category], train: list[dict[str, Any]], test: list[dict[str, Any]], notes: list[str]
) -> None:
    """Add sentences on classes without objects, and on those that one of the sets lacks."""
    counts = [
        Counter(row["category_id"] for image in part for row in image["objects"] if not row["iscrowd"])
        for part in (train, test)
    ]
    for text, names in (
        ("have no object", [kind.name for kind in categories if not counts[0][kind.key] and not counts[1][kind.key]]),
        (
            "have objects in the training set alone: they are not tested",
            [kind.name for kind in categories if counts[0][kind.key] and not counts[1][kind.key]],
        ),
        (
            "have objects in the test set alone: they cannot be found",
            [kind.name for kind in categories if counts[1][kind.key] and not counts[0][kind.key]],
        ),
    ):
        if names:
            notes.append(f"{len(names)} of {len(categories)} classes {text}: {few(names)}")
    if not counts[1]:
        notes.append("the test set has no object: there is nothing to measure")
    empty = sum(not image["objects"] for image in train)
    if empty:
        notes.append(
            f"{empty} of {len(train)} training images have no object, and are left out of training as detectron2 does"
        )
