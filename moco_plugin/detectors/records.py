"""Images and their objects: the common form of the annotations of all tools."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_NAMES = 3  # names in a message
_SPLITS = {"train": "train training trainval", "val": "val valid validation", "test": "test testing"}
SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words.split()}


@dataclass(slots=True)
class Runs:
    """A mask as lengths of alternating runs of 0 and 1.

    Attributes:
        counts: The lengths, or COCO's compressed text.
        by_rows: The runs follow rows; COCO's follow columns.
        frame: Left, top, width and height in pixels of the covered area; None for the whole image.
        size: Height and width of the image, or None.
        open: Pixels after the last run are 0.
    """

    counts: list[int] | str
    by_rows: bool = False
    frame: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    open: bool = False


@dataclass(slots=True)
class Object:
    """An object, in pixels of the image, or in shares of its sides if the record says so.

    Attributes:
        category: Name of its class.
        box: Left, top, width, height; None for the extent of the mask.
        polygons: x, y, x, y, ... of each part of its mask.
        runs: The mask as run lengths.
        keypoints: x, y and visibility (0, 1 or 2) of each.
        crowd: A group of objects or a difficult object, which is not trained on.
        area: Area of the mask in pixels, or None.
        where: Its name in messages.
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
        name: Its path in the file.
        objects: Its objects.
        width: In pixels; None or 0 if unknown.
        height: In pixels.
        folder: Folder where the image is searched first.
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
    """A class, its id in COCO files, the names of its keypoints, and the pairs of them that are joined (from 1)."""

    name: str
    key: int
    keypoints: list[str] = field(default_factory=list)
    skeleton: list[list[int]] = field(default_factory=list)


@dataclass
class Annotations:
    """Detection data as read.

    Attributes:
        source: The file or folder.
        form: The detected format.
        roots: Folders of the images.
        categories: The classes; empty for those of the objects.
        splits: The images of "train", "val" and "test" if the data define splits; else of "".
        notes: Sentences on assumptions.
        faults: Places of the objects that were left out, by reason.
        image_ids: Ids of the images in a COCO file.
    """

    source: Path
    form: str
    roots: list[Path]
    categories: list[Category] = field(default_factory=list)
    splits: dict[str, list[Record]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    image_ids: list[int | str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the file or folder, also of "."."""
        return self.source.resolve().name

    @property
    def records(self) -> list[Record]:
        """The images of all splits."""
        return [record for records in self.splits.values() for record in records]

    def add(self, record: Record, item: Object | str, where: str) -> None:
        """Add an object to its image; a text is the reason for which it is left out."""
        if isinstance(item, str):
            self.leave_out(item, where)
        else:
            item.where = where
            record.objects.append(item)

    def leave_out(self, reason: str, where: str) -> None:
        """Count an object that is left out."""
        self.faults.setdefault(reason, []).append(where)

    def left_out(self) -> str:
        """Return how many objects were left out for each reason, and the first of each."""
        return "; ".join(f"{len(places)} {reason} (first {places[0]})" for reason, places in self.faults.items())


def numbered(names: Iterable[str]) -> list[Category]:
    """Return classes, numbered from 1."""
    return [Category(name, key) for key, name in enumerate(names, start=1)]


def split_of(text: str) -> str:
    """Return the split in the name of a file or folder, such as ``instances_val2017``; else an empty text."""
    return next((SPLIT_OF[word] for word in reversed(re.split(r"[^a-z]+", text.lower())) if word in SPLIT_OF), "")


def by_folder(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each split by the names of their folders; all in "" if a file has none or there is one split."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        parts = map(str.lower, path.relative_to(root).parts[:-1])
        splits.setdefault(next((SPLIT_OF[part] for part in parts if part in SPLIT_OF), ""), []).append(path)
    return splits if "train" in splits and len(splits) > 1 and "" not in splits else {"": list(files)}


def few(names: Sequence[object]) -> str:
    """Return the first names of a list as text."""
    return ", ".join(map(str, names[:MOST_NAMES])) + (" ..." if len(names) > MOST_NAMES else "")
