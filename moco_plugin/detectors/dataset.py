"""Own detection data made ready for detectron2: checked, split, and written as COCO files."""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from moco_plugin.detectors.formats import read_detection_data
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import write_json
from moco_plugin.transfer.checks import check_content
from moco_plugin.transfer.components.datasets import FILE_PREFIX

TEST_SHARE = 0.2  # of the images, where there is no test set
MOST_NAMES = 3  # names in a message


@dataclass(frozen=True)
class Sources:
    """Where own data are.

    Attributes:
        train: A COCO file, or a VOC or YOLO folder; see ``read_detection_data``. A folder of label images for semantic
            segmentation; see ``prepare_semantic``.
        train_images: Folder of the images of a COCO file or of label images.
        test: Data to test on; None holds out ``TEST_SHARE`` of the training images.
        test_images: Folder of its images.
        semantic: The data are label images.
        seed: Chooses the held-out images.
    """

    train: Path
    train_images: Path | None = None
    test: Path | None = None
    test_images: Path | None = None
    semantic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "train_images", "test", "test_images"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, path := Path(path).expanduser())
                if not path.exists():
                    raise UsageError(f"{path} does not exist; check the path")
        if self.semantic and self.train_images is None:
            raise UsageError("label images need --train-images, the folder of their images")


@dataclass(frozen=True)
class OwnData:
    """A training and a test set, as COCO files or as lists of images and label images.

    Attributes:
        train: The file to train on.
        test: The file to test on.
        images: Number of training images.
        test_images: Number of test images.
        classes: Names, in the order of the model's outputs.
        masks: Whether all objects have masks.
        notes: Sentences on what was assumed or left out.
        keypoints: Number of keypoints of an object; 0 if they are not trained.
        prefix: Of the data sets' names: what kind of file they are.
    """

    train: Path
    test: Path
    images: int
    test_images: int
    classes: tuple[str, ...]
    masks: bool
    notes: tuple[str, ...]
    keypoints: int = 0
    prefix: str = FILE_PREFIX

    @property
    def names(self) -> tuple[str, str]:
        """Names of the data sets for detectron2; ``require_dataset`` registers them in any process."""
        return f"{self.prefix}{self.train}", f"{self.prefix}{self.test}"


def prepare(out: Path, sources: Sources) -> OwnData:
    """Check detection data and write ``train.json`` and ``test.json`` into a folder.

    Raises:
        UserError: The data are invalid.
    """
    train, test = sources.train, sources.test
    content, notes = _clean(read_detection_data(train, sources.train_images), train)
    if test is None:
        content, held_out = _split(content, sources.seed)
        notes.append(
            f"test set: {len(held_out['images'])} of the {len(content['images']) + len(held_out['images'])} images, "
            f"held out by seed {sources.seed}"
        )
    else:
        held_out, more = _clean(read_detection_data(test, sources.test_images), test)
        notes += more
        _check_categories(content, held_out, train, test)
        held_out["categories"] = content["categories"]
    objects = [row for part in (content, held_out) for row in part["annotations"] if not row.get("iscrowd")]
    if not any(not row.get("iscrowd") for row in content["annotations"]):
        raise UserError(f"{train} has no object to train on; expected annotations with boxes")
    masks = all(row.get("segmentation") for row in objects)
    if not masks and any(row.get("segmentation") for row in objects):
        lacking = sum(not row.get("segmentation") for row in objects)
        notes.append(f"{lacking} of {len(objects)} objects have no mask, so only boxes are trained")
    keypoints = _count_keypoints(content["categories"], objects, notes)
    write_json(out / "train.json", content)
    write_json(out / "test.json", held_out)
    classes = tuple(row["name"] for row in sorted(content["categories"], key=lambda row: int(row["id"])))
    train_file, test_file = ((out / name).resolve() for name in ("train.json", "test.json"))
    counts = len(content["images"]), len(held_out["images"])
    return OwnData(train_file, test_file, *counts, classes, masks, tuple(notes), keypoints)


def _count_keypoints(categories: list[dict[str, Any]], objects: list[dict[str, Any]], notes: list[str]) -> int:
    """Return how many keypoints each object has; 0, and a sentence that says why, if they cannot be trained."""
    if not any(row.get("keypoints") for row in objects):
        return 0
    used = {row["category_id"] for row in objects}
    lists = {tuple(row.get("keypoints") or ()) for row in categories if row["id"] in used}
    names = lists.pop() if len(lists) == 1 else ()
    if not names:
        notes.append("keypoints are not trained: the classes do not name the same keypoints")
        return 0
    wrong = sum(len(row.get("keypoints") or ()) != 3 * len(names) for row in objects)
    if wrong:
        notes.append(f"keypoints are not trained: {wrong} of {len(objects)} objects have not {len(names)} of them")
        return 0
    for row in objects:
        row["num_keypoints"] = sum(visible > 0 for visible in row["keypoints"][2::3])
    return len(names)


def _clean(content: dict[str, Any], source: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the data that can be trained on, and sentences that count what was left out."""
    images, notes = _open_images(content["images"], source)
    listed = [images.get(row["id"], row) for row in content["images"]]
    check_content({**content, "images": listed}, source)
    ids = {key: index for index, key in enumerate(images, start=1)}
    kept: list[dict[str, Any]] = []
    outside = Counter[str]()
    for row in content["annotations"]:
        if (image := images.get(row["image_id"])) is None:
            continue
        if (box := _cut(row["bbox"], image)) is None:
            outside[Path(image["file_name"]).name] += 1
            continue
        area = row.get("area", box[2] * box[3])
        kept.append(
            {"iscrowd": 0, **row, "id": len(kept) + 1, "image_id": ids[row["image_id"]], "bbox": box, "area": area}
        )
    if outside:
        notes.append(
            f"left out {sum(outside.values())} boxes of less than a pixel, or outside of the image, in {few(list(outside))}"
        )
    used = {row["category_id"] for row in kept}
    unused = [row["name"] for row in content["categories"] if row["id"] not in used]
    if unused:
        notes.append(
            f"{len(unused)} of {len(content['categories'])} classes have no object in {source.name}: {few(unused)}"
        )
    rows = [{**row, "id": ids[key]} for key, row in images.items()]
    return {"images": rows, "annotations": kept, "categories": content["categories"]}, notes


def _open_images(rows: list[dict[str, Any]], source: Path) -> tuple[dict[Any, dict[str, Any]], list[str]]:
    """Return the images that exist, by id and with their sizes, and a sentence that counts the missing ones."""
    twice = [key for key, count in Counter(str(row["id"]) for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{source} has several images of the id {twice[0]}; expected one each")
    missing: list[str] = []
    images: dict[Any, dict[str, Any]] = {}
    for row in tqdm(rows, desc=f"images of {source.name}", file=sys.stderr):
        path = Path(row["file_name"])
        try:
            with Image.open(path) as image:
                size = ImageOps.exif_transpose(image).size if image.getexif() else image.size
        except FileNotFoundError:
            missing.append(path.name)
            continue
        except Exception as error:  # decoders raise almost anything
            raise UserError(f"image {path} of {source} cannot be decoded; repair or remove it") from error
        stated = (row.get("width", size[0]), row.get("height", size[1]))
        if stated != size:
            raise UserError(
                f"{source} says that {path.name} has {stated[0]} x {stated[1]} pixels; it has {size[0]} x {size[1]}"
            )
        images[row["id"]] = {**row, "width": size[0], "height": size[1]}
    if len(images) < 2:
        raise UserError(
            f"{source} lists {len(rows)} images, of which {len(missing)} are missing"
            f"{f' ({missing[0]})' if missing else ''}; expected 2 or more, so check the folder of images"
        )
    note = f"left out {len(missing)} of {len(rows)} images, which are missing: {few(missing)}"
    return images, [note] if missing else []


def _cut(box: list[float], image: dict[str, Any]) -> list[float] | None:
    """Return the part of a box that is inside of its image; None if that is less than a pixel wide or high."""
    left, top, width, height = box
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    left, top = max(left, 0.0), max(top, 0.0)
    return None if right - left < 1 or bottom - top < 1 else [left, top, right - left, bottom - top]


def _split(content: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    names = sorted(content["images"], key=lambda row: str(row["file_name"]))
    count = max(1, round(TEST_SHARE * len(names)))
    chosen = {row["id"] for row in random.Random(seed).sample(names, count)}

    def part(inside: bool) -> dict[str, Any]:
        return {
            "images": [row for row in content["images"] if (row["id"] in chosen) == inside],
            "annotations": [row for row in content["annotations"] if (row["image_id"] in chosen) == inside],
            "categories": content["categories"],
        }

    return part(False), part(True)


def _check_categories(train: dict[str, Any], test: dict[str, Any], source: Path, other: Path) -> None:
    """Give the test set's annotations the training set's category ids, by name."""
    ids = {row["name"]: row["id"] for row in train["categories"]}
    names = {row["id"]: row["name"] for row in test["categories"]}
    used = {names[row["category_id"]] for row in test["annotations"]}
    if unknown := sorted(used - ids.keys()):
        raise UserError(
            f"{other} has {len(unknown)} classes that {source} has not: {few(unknown)}; expected those of the training set"
        )
    for row in test["annotations"]:
        row["category_id"] = ids[names[row["category_id"]]]


def few(names: Sequence[object]) -> str:
    """Return the first names of a list as text."""
    return ", ".join(map(str, names[:MOST_NAMES])) + (" ..." if len(names) > MOST_NAMES else "")
