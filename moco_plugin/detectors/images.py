"""Images of annotations opened: found, decoded once, and compared by content."""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from moco_plugin.data.decode import CannotDecode, decode_array, stored_as
from moco_plugin.data.pixels import SIDEWAYS
from moco_plugin.detectors.find import ImageFinder
from moco_plugin.detectors.records import Annotations, Record, few
from moco_plugin.errors import UserError
from moco_plugin.files import MissingFile, read_file

MOST_MISSING = 0.5  # share of the images that may be missing
MOST_BROKEN = 0.1  # share that may be broken, or of another size than stated; 3 images always


@dataclass(slots=True)
class Opened:
    """An image on disk.

    Attributes:
        path: The file.
        size: Width and height in pixels, upright by its EXIF orientation.
        digest: Of the file's name and bytes, which a copy of it shares.
        orientation: By which the annotations are to be turned too, since they are of the image as stored; else 1.
    """

    path: Path
    size: tuple[int, int]
    digest: bytes
    orientation: int = 1

    @property
    def raw(self) -> tuple[int, int]:
        """Width and height that the annotations are of."""
        return self.size if self.orientation == 1 else (self.size[1], self.size[0])


def open_image(path: Path, value_range: Sequence[float] | None) -> Opened | str:
    """Decode an image, and return what is known of it; an empty text if it is missing, else what is wrong."""
    try:
        data = read_file(path, what="an image")
        height, width = decode_array(data, str(path), value_range).shape[:2]
    except MissingFile:
        return ""
    except CannotDecode as error:
        return f"{path.name} cannot be decoded{f' ({error})' if str(error) else ''}"
    named = path.name.lower().encode(errors="replace") + b"\0" + data
    return Opened(path, (width, height), hashlib.blake2b(named, digest_size=16).digest())


def open_images(
    data: Annotations, value_range: Sequence[float] | None, notes: list[str]
) -> dict[str, list[tuple[Opened, Record]]]:
    """Find and decode the images of annotations, and add what was left out or assumed to the notes.

    Returns:
        The images of each split with their annotations. Several records of one file become one.

    Raises:
        UserError: Half of the images are missing, or a tenth cannot be decoded or are of other sizes than stated.
    """
    finder, records = ImageFinder(data.roots), data.records()
    paths = [finder.find(record) for record in records]
    found = [path for path in dict.fromkeys(paths) if path is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        states = pool.map(lambda path: open_image(path, value_range), found)
        bar = tqdm(states, total=len(found), desc=f"images of {data.name}", file=sys.stderr)
        opened = dict(zip(found, bar, strict=True))
    missing = [record for record, path in zip(records, paths, strict=True) if path is None or opened[path] == ""]
    if len(missing) > MOST_MISSING * len(records) or len(records) - len(missing) < 2:
        first = f" ({missing[0].name}, looked for in {few(finder.roots)}, and by its name below)" if missing else ""
        raise UserError(
            f"{data.source} lists {len(records)} images, of which {len(missing)} are missing{first}; expected 2 or "
            "more, and half of them at least, so check the folder of images (--train-images, --test-images)"
        )
    if missing:
        notes.append(
            f"left out {len(missing)} of {len(records)} images, which are missing: {few([r.name for r in missing])}"
        )
    notes += finder.notes(data.name)
    return _match(data, dict(zip(map(id, records), paths, strict=True)), opened, notes)


def _match(
    data: Annotations, paths: dict[int, Path | None], opened: dict[Path, Opened | str], notes: list[str]
) -> dict[str, list[tuple[Opened, Record]]]:
    broken, turned, twice = dict[str, None](), list[str](), list[str]()
    splits: dict[str, list[tuple[Opened, Record]]] = {}
    for split, records in data.splits.items():
        whole: dict[Path, tuple[Opened, Record]] = {}
        for record in records:
            image = opened.get(paths[id(record)] or Path(), "")
            if isinstance(image, str):
                broken |= {image: None} if image else {}
                continue
            stated = (record.width or image.size[0], record.height or image.size[1])
            if stated == image.size[::-1] != image.size and (turn := stored_as(image.path)[1]) in SIDEWAYS:
                image.orientation = turn
                turned.append(image.path.name)
            elif stated != image.size:
                sizes = f"{image.size[0]} x {image.size[1]} pixels, not {stated[0]:g} x {stated[1]:g}"
                broken[f"{image.path.name} has {sizes} as {data.name} says"] = None
                continue
            if (before := whole.get(image.path)) is not None and before[1].relative == record.relative:
                before[1].objects += record.objects
                twice.append(image.path.name)
            else:
                whole[image.path] = (image, record)
        splits[split] = list(whole.values())
    count = len(data.records())
    if len(broken) > max(3, MOST_BROKEN * count) or sum(map(len, splits.values())) < 2:
        raise UserError(
            f"{len(broken)} of {count} images of {data.source} cannot be used: {few(list(broken))}; repair or remove them"
        )
    if broken:
        notes.append(f"left out {len(broken)} of {count} images: {few(list(broken))}")
    if turned:
        notes.append(
            f"{len(turned)} images are turned by EXIF, and their annotations are not: they are turned too ({few(turned)})"
        )
    if twice:
        notes.append(f"{len(twice)} images are listed twice; their objects are joined: {few(twice)}")
    return splits
