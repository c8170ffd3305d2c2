"""Opening of the images of annotations: they are found, decoded once, and compared by content."""

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
        digest: Hash of the file's name and bytes.
        orientation: EXIF orientation if the annotations refer to the stored image; else 1.
    """

    path: Path
    size: tuple[int, int]
    digest: bytes
    orientation: int = 1

    @property
    def raw(self) -> tuple[int, int]:
        """Width and height of the image that the annotations refer to."""
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
        The images of each split with their annotations. Several records of one file are merged.

    Raises:
        UserError: Half of the images are missing, or a tenth cannot be decoded or have other sizes than stated.
    """
    finder, records = ImageFinder(data.roots), data.records
    paths = [finder.find(record) for record in records]
    found = [path for path in dict.fromkeys(paths) if path is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        states = pool.map(lambda path: open_image(path, value_range), found)
        bar = tqdm(states, total=len(found), desc=f"images of {data.name}", file=sys.stderr)
        opened: dict[Path | None, Opened | str] = {None: "", **dict(zip(found, bar, strict=True))}
    missing = [record.name for record, path in zip(records, paths, strict=True) if opened[path] == ""]
    if len(missing) > MOST_MISSING * len(records) or len(records) - len(missing) < 2:
        first = f" ({missing[0]}, looked for in {few(finder.roots)}, and by its name below)" if missing else ""
        raise UserError(
            f"{data.source} lists {len(records)} images, of which {len(missing)} are missing{first}; expected 2 or "
            "more, and half of them at least, so check the folder of images (--train-images, --test-images)"
        )
    if missing:
        notes.append(f"left out {len(missing)} of {len(records)} images, which are missing: {few(missing)}")
    notes += finder.notes(data.name)
    broken, turned, twice = dict[str, None](), list[str](), list[str]()
    splits: dict[str, list[tuple[Opened, Record]]] = {}
    images = iter([opened[path] for path in paths])
    for split, part in data.splits.items():
        whole: dict[Path, tuple[Opened, Record]] = {}
        for record, image in zip(part, images, strict=False):
            if isinstance(image, str):
                broken |= {image: None} if image else {}
                continue
            name, (width, height) = image.path.name, image.size
            stated = (record.width or width, record.height or height)
            if stated == (height, width) != image.size and (turn := stored_as(image.path)[1]) in SIDEWAYS:
                image.orientation = turn
                turned.append(name)
            elif stated != image.size:
                text = f"{name} has {width} x {height} pixels, not {stated[0]:g} x {stated[1]:g} as {data.name} says"
                broken[text] = None
                continue
            if (before := whole.get(image.path)) is not None and before[1].relative == record.relative:
                before[1].objects += record.objects
                twice.append(name)
            else:
                whole[image.path] = (image, record)
        splits[split] = list(whole.values())
    if len(broken) > max(3, MOST_BROKEN * len(records)) or sum(map(len, splits.values())) < 2:
        raise UserError(
            f"{len(broken)} of {len(records)} images of {data.source} cannot be used: {few(list(broken))}; repair or "
            "remove them"
        )
    if broken:
        notes.append(f"left out {len(broken)} of {len(records)} images: {few(list(broken))}")
    if turned:
        notes.append(
            f"{len(turned)} images are turned by EXIF, and their annotations are not: they are turned too ({few(turned)})"
        )
    if twice:
        notes.append(f"{len(twice)} images are listed twice; their objects are joined: {few(twice)}")
    return splits
