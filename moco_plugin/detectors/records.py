"""What the readers of detection data make of files: images with their objects, of one form for all tools."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_NAMES = 3  # names in a message
_SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}


@dataclass(slots=True)
class Runs:
    """A mask as lengths of runs of 0 and 1 in turn.

    Attributes:
        counts: The lengths; a text is COCO's compressed form.
        by_rows: The runs follow rows; COCO's follow columns.
        frame: Left, top, width and height in pixels of what they cover; None for the whole image.
        size: Height and width of the image, where the file states them.
        open: Pixels after the last run are 0.
    """

    counts: list[int] | str
    by_rows: bool = False
    frame: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    open: bool = False


@dataclass(slots=True)
class Object:
    """An object, in pixels of the image, or in shares of its sides where the record says so.

    Attributes:
        category: Name of its class.
        box: Left, top, width, height; None where only masks are given.
        polygons: x, y, x, y, ... of each part of its mask.
        runs: The mask as run lengths.
        keypoints: x, y and visibility (0, 1 or 2) of each.
        crowd: Not trained on: a region of many, or a difficult object.
        area: Of the mask in pixels, where the file states it.
        where: What messages call it.
    """

    category: str
    box: list[float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    runs: Runs | None = None
    keypoints: list[float] = field(default_factory=list)
    crowd: bool = False
    area: float | None = None
    where: str = ""


@dataclass(slots=True)
class Record:
    """An image and its objects.

    Attributes:
        name: Its path as the file has it.
        objects: Its objects.
        width: In pixels, where the file states it.
        height: In pixels.
        folder: Where the image is looked for first.
        relative: Coordinates are shares of the image's sides.
        others: Further names of the image.
    """

    name: str
    objects: list[Object] = field(default_factory=list)
    width: float | None = None
    height: float | None = None
    folder: Path | None = None
    relative: bool = False
    others: tuple[str, ...] = ()


@dataclass(slots=True)
class Category:
    """A class, its number in files of COCO's form, and the names of its keypoints and what joins them (from 1)."""

    name: str
    key: int
    keypoints: list[str] = field(default_factory=list)
    skeleton: list[list[int]] = field(default_factory=list)


class Faults:
    """What is left out: how often, by reason, and the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def take(self, other: "Faults") -> None:
        self.counts += other.counts
        self.first = other.first | self.first

    def text(self) -> str:
        return "; ".join(f"{count} {reason} (first {self.first[reason]})" for reason, count in self.counts.items())


@dataclass
class Annotations:
    """Detection data as read.

    Attributes:
        source: The file or folder.
        form: What it was read as.
        categories: The classes.
        splits: The images of "train", "val" and "test" where the data name them; else of "".
        roots: Folders that hold the images.
        notes: Sentences on what was assumed.
        faults: Objects that could not be read.
        numbers: Of the images in a COCO file.
    """

    source: Path
    form: str
    categories: list[Category]
    splits: dict[str, list[Record]]
    roots: list[Path]
    notes: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    numbers: list[int | str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the file or folder, also of "."."""
        return self.source.resolve().name

    def records(self) -> list[Record]:
        return [record for records in self.splits.values() for record in records]


def numbered(names: Sequence[str]) -> list[Category]:
    """Return the classes of names, numbered from 1."""
    return [Category(name, key) for key, name in enumerate(names, start=1)]


def named(records: Sequence[Record]) -> list[Category]:
    """Return the classes of images' objects, sorted by name."""
    return numbered(sorted({item.category for record in records for item in record.objects}))


def split_of(text: str) -> str:
    """Return the split that a name of a file or folder contains, such as ``instances_val2017``; else an empty text."""
    return next((SPLIT_OF[word] for word in reversed(re.split(r"[^a-z]+", text.lower())) if word in SPLIT_OF), "")


def by_folder(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each split by the names of their folders; all as of "" if one is in none, or no two occur."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        parts = map(str.lower, path.relative_to(root).parts[:-1])
        splits.setdefault(next((SPLIT_OF[part] for part in parts if part in SPLIT_OF), ""), []).append(path)
    return splits if "train" in splits and len(splits) > 1 and "" not in splits else {"": list(files)}


def few(names: Sequence[object]) -> str:
    """Return the first names of a list as text."""
    return ", ".join(map(str, names[:MOST_NAMES])) + (" ..." if len(names) > MOST_NAMES else "")
