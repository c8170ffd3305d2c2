"""Preparation of own detection data for detectron2: checks, splits, and COCO files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from moco_plugin.detectors.formats import read_detection_data
from moco_plugin.detectors.images import open_images
from moco_plugin.detectors.objects import coco_row
from moco_plugin.detectors.records import Annotations, few
from moco_plugin.detectors.splits import Row, count_classes, hold_out, without_tested
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import write_json
from moco_plugin.transfer.components.datasets import FILE_PREFIX
from moco_plugin.transfer.mapper import box_polygon

MOST_FAULTS = 0.1  # share of the objects that may be left out; 3 objects always
MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Sources:
    """Paths of own data.

    Attributes:
        train: Data that ``read_detection_data`` reads; for semantic segmentation, a folder of label images (see
            ``prepare_semantic``).
        train_images: Folder of the images, if they are not beside the annotations.
        test: Data to test on; None for the validation or test split of the training data, or else a share of
            ``TEST_SHARE`` that is held out.
        test_images: Folder of its images.
        semantic: The data are label images.
        seed: Chooses the held-out images.
        value_range: The values that become black and white in images of more than 8 bits; None for their bit depth.
    """

    train: Path
    train_images: Path | None = None
    test: Path | None = None
    test_images: Path | None = None
    semantic: bool = False
    seed: int = 0
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("train", "train_images", "test", "test_images"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, path := Path(path).expanduser())
                if not path.exists():
                    raise UsageError(f"{path} does not exist; check the path")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise UsageError(
                f"--value-range is {self.value_range[0]:g} {self.value_range[1]:g}; expected a smaller and a larger value"
            )
        if self.semantic and self.train_images is None:
            raise UsageError("label images need --train-images, the folder of their images")


@dataclass(frozen=True)
class OwnData:
    """A training and a test set: COCO files, or lists of images and label images.

    Attributes:
        train: The training file.
        test: The test file.
        images: Number of training images.
        test_images: Number of test images.
        classes: Names, in the order of the model's outputs.
        masks: Whether objects have masks.
        notes: Sentences on what was assumed or left out.
        keypoints: Number of keypoints of an object; 0 if they are not trained.
        prefix: Prefix of the data sets' names, which states the kind of file.
        most_objects: Largest number of objects in an image.
        unmasked: Number of training objects without a mask if others have one.
        value_range: As in ``Sources``.
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
    most_objects: int = 0
    unmasked: int = 0
    value_range: tuple[float, float] | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Names of the data sets for detectron2; ``require_dataset`` registers them in any process."""
        return f"{self.prefix}{self.train}", f"{self.prefix}{self.test}"


def prepare(out: Path, sources: Sources) -> OwnData:
    """Check detection data and write ``train.json`` and ``test.json`` into a folder.

    Raises:
        UserError: The data are invalid.
    """
    notes: list[str] = []
    data = _read(sources.train, sources.train_images, notes)
    points = _keypoints(data, notes)
    ids = {kind.name: kind.key for kind in data.categories}
    splits = _rows(data, ids, points, sources.value_range, notes)
    train = splits["train"] if "train" in splits else [row for part in splits.values() for row in part]
    name = next((name for name in ("val", "test") if splits.get(name)), "") if "train" in splits else ""
    if sources.test is not None:
        test = _read_test(sources, ids, points, notes)
        notes += [f"{len(splits[name])} images of {name} are not used" for name in ("val", "test") if splits.get(name)]
    elif name:
        test = splits[name]
        other = (
            f"; {len(splits['test'])} of its test split are not used" if name == "val" and splits.get("test") else ""
        )
        notes.append(f"test set: the {len(test)} images that {data.name} names as {name}{other}")
    else:
        train, test = hold_out(train, sources.seed, notes)
    train = without_tested(train, test, notes)
    if not any(image["classes"] for image in train):
        left_out = f" (left out: {data.left_out()})" if data.faults else ""
        raise UserError(f"{sources.train} has no object to train on{left_out}; expected annotations with boxes")
    count_classes({kind.key: kind.name for kind in data.categories}, train, test, "object", notes)
    if empty := sum(not image["classes"] for image in train):
        notes.append(f"{empty} of {len(train)} training images have no object and are left out, as in detectron2")
    objects = [[row for image in part for row in image["objects"] if not row["iscrowd"]] for part in (train, test)]
    masks = any("segmentation" in row for row in objects[0])
    unmasked = [sum("segmentation" not in row for row in part) if masks else 0 for part in objects]
    if any(unmasked):
        notes.append(
            f"{sum(unmasked)} of {sum(map(len, objects))} objects have no mask: they are trained as boxes, "
            "and their boxes stand for their masks in the test"
        )
    for row in objects[1] if masks else ():
        row.setdefault("segmentation", box_polygon(row["bbox"]))
    keypoints = points if any("keypoints" in row for row in objects[0]) else 0
    for row in (*objects[0], *objects[1]) if keypoints else ():
        if "keypoints" not in row:
            row |= {"keypoints": [0] * 3 * points, "num_keypoints": 0}
    kinds = [
        {"id": kind.key, "name": kind.name}
        | ({"keypoints": kind.keypoints, "skeleton": kind.skeleton} if keypoints else {})
        for kind in data.categories
    ]
    return OwnData(
        _write(out / "train.json", train, kinds),
        _write(out / "test.json", test, kinds),
        images=len(train),
        test_images=len(test),
        classes=tuple(ids),
        masks=masks,
        notes=tuple(notes),
        keypoints=keypoints,
        most_objects=max(sum(not row["iscrowd"] for row in image["objects"]) for image in (*train, *test)),
        unmasked=unmasked[0],
        value_range=sources.value_range,
    )


def _read(source: Path, images: Path | None, notes: list[str]) -> Annotations:
    """Return annotations, with the classes in the order of their numbers."""
    data = read_detection_data(source, images)
    notes += [f"{data.name} is read as {data.form}", *data.notes]
    names = Counter(kind.name for kind in data.categories)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{data.source} has several classes of the name {few(twice)}; expected one each")
    if len(names) > MOST_CLASSES:
        raise UserError(f"{data.source} has {len(names)} classes; expected {MOST_CLASSES} at most")
    data.categories.sort(key=lambda kind: kind.key)
    return data


def _keypoints(data: Annotations, notes: list[str]) -> int:
    """Return how many keypoints objects have; 0 and a note with the reason if they cannot be trained."""
    objects = [item for record in data.records for item in record.objects]
    used = {item.category for item in objects if item.keypoints}
    if not used:
        return 0
    lists = {tuple(kind.keypoints) for kind in data.categories if kind.name in used}
    names = lists.pop() if len(lists) == 1 else ()
    if not names:
        notes.append("keypoints are not trained: the classes do not name the same keypoints")
    elif odd := sum(len(item.keypoints) != 3 * len(names) for item in objects):
        notes.append(f"{odd} of {len(objects)} objects do not have {len(names)} keypoints: they are trained without")
    for kind in data.categories:
        kind.keypoints = list(names)  # detectron2 has one list for all classes
    return len(names)


def _rows(
    data: Annotations, ids: dict[str, int], points: int, value_range: tuple[float, float] | None, notes: list[str]
) -> dict[str, list[Row]]:
    """Return the images of each split as rows of a COCO file, each with its ``objects``, ``classes`` and ``digest``.

    Raises:
        UserError: Too many images or objects are invalid.
    """
    rows: dict[str, list[Row]] = {}
    for split, images in open_images(data, value_range, notes).items():
        rows[split] = []
        for image, record in images:
            kept = []
            for item in record.objects:
                row = coco_row(item, image, record.relative, points)
                if isinstance(row, str):
                    data.leave_out(row, item.where or image.path.name)
                else:
                    kept.append(row | {"category_id": ids[item.category]})
            about = {"file_name": str(image.path.resolve()), "width": image.size[0], "height": image.size[1]}
            classes = {row["category_id"] for row in kept if not row["iscrowd"]}
            rows[split].append({**about, "objects": kept, "classes": classes, "digest": image.digest})
    bad, count = sum(map(len, data.faults.values())), sum(len(record.objects) for record in data.records)
    if bad > max(3, MOST_FAULTS * max(count, bad)):
        raise UserError(
            f"{data.source}: {data.left_out()}; at most {MOST_FAULTS:.0%} may be invalid, so correct the data"
        )
    if bad:
        notes.append(f"left out: {data.left_out()}")
    return rows


def _read_test(sources: Sources, ids: dict[str, int], points: int, notes: list[str]) -> list[Row]:
    """Return the test set: of data with splits the test or validation split; classes are matched by name.

    Raises:
        UserError: Its objects have other classes.
    """
    assert sources.test is not None
    data = _read(sources.test, sources.test_images, notes)
    if name := next((name for name in ("test", "val") if data.splits.get(name)), None):
        data.splits = {name: data.splits[name]}
        notes.append(f"test set: the images that {data.name} names as {name}")
    if unknown := sorted({item.category for record in data.records for item in record.objects} - ids.keys()):
        raise UserError(
            f"{sources.test} has {len(unknown)} classes that {sources.train} does not have: {few(unknown)}; "
            "expected those of the training set"
        )
    return [row for part in _rows(data, ids, points, sources.value_range, notes).values() for row in part]


def _write(path: Path, images: list[Row], categories: list[Row]) -> Path:
    """Write a COCO file and return its path."""
    rows, objects = [], list[Row]()
    for image_id, image in enumerate(images, start=1):
        rows.append({"id": image_id} | {key: image[key] for key in ("file_name", "width", "height")})
        objects += [
            {"id": key, "image_id": image_id} | row for key, row in enumerate(image["objects"], len(objects) + 1)
        ]
    write_json(path, {"images": rows, "annotations": objects, "categories": categories})
    return path.resolve()
