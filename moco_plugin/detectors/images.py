"""Images of annotations: found at the given path, or else by a unique name; decoded once, and compared by content."""

import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

from tqdm import tqdm

from moco_plugin.data.decode import SUFFIXES, CannotDecode, decode_array, stored_as
from moco_plugin.data.listing import walk
from moco_plugin.data.pixels import SIDEWAYS
from moco_plugin.detectors.records import Annotations, Record, few
from moco_plugin.errors import UserError
from moco_plugin.files import MissingFile, read_file

MOST_MISSING = 0.5  # share of the images that may be missing
MOST_BROKEN = 0.1  # share that may be broken, or of another size than stated; 3 images always
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # prefix of the names of uploads to Label Studio


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below a folder with these suffixes, sorted, without hidden ones; none if it does not exist."""
    return sorted(path for path in (walk(root) if root.is_dir() else ()) if path.name.lower().endswith(suffixes))


class ImageFinder:
    """Finds image files by the names that annotations have for them.

    Args:
        roots: Folders of the images.
        files: The images; None for those below the roots.

    Attributes:
        by_name: The images that were found by name alone, by the name that the annotations have for them.
    """

    def __init__(self, roots: Iterable[Path], files: Sequence[Path] | None = None) -> None:
        self.roots, self.files = list(dict.fromkeys(roots)), files
        self.by_name: dict[str, Path] = {}

    def notes(self, source: str) -> list[str]:
        """Return a sentence on images that were found by name alone, if there are any."""
        return [
            f"{len(self.by_name)} images are not where {source} says, and were found by name: {name} is {path}"
            for name, path in [*self.by_name.items()][:1]
        ]

    def find(self, record: Record) -> Path | None:
        """Return the image of a record; None if there is none, or several."""
        names = [record.name, *record.others]
        for name in names:
            for folder in filter(None, (record.folder, *self.roots)):
                if name.lower().endswith(SUFFIXES) and is_file(folder / name):
                    return folder / name
        for name in names:
            if (same := self._search(name)) is not None:
                self.by_name[name] = same
                return same
        return None

    def _search(self, name: str) -> Path | None:
        parts = re.split(r"[\\/]+|\?d=", unquote(name.split("://")[-1]))
        parts = [part for part in parts if part not in ("", ".", "..")]
        if not parts:
            return None
        last = parts[-1].lower()
        stem = last.rpartition(".")[0] if last.endswith(SUFFIXES) else last
        for key in (last, _UPLOAD.sub("", last), f"{stem}.*", f"{_UPLOAD.sub('', stem)}.*"):
            if candidates := self._files.get(key):
                ends = [_common_end(path, parts) for path in candidates]
                return candidates[ends.index(max(ends))] if ends.count(max(ends)) == 1 else None
        return None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The images by name, by name without suffix, and both without an upload's number."""
        index: defaultdict[str, list[Path]] = defaultdict(list)
        below = (path for root in self.roots for path in files_below(root, SUFFIXES))
        files = {path.resolve(): path for path in (below if self.files is None else self.files)}
        for path in files.values():
            names = (path.name.lower(), _UPLOAD.sub("", path.name.lower()))
            for key in {*names, *(f"{Path(name).stem}.*" for name in names)}:
                index[key].append(path)
        return dict(index)


def is_file(path: Path) -> bool:
    """Return whether a path is a file; a path that is too long or contains NUL is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _common_end(path: Path, parts: Sequence[str]) -> int:
    """Return how many of the last folders of a path and a name are the same."""
    pairs = zip(path.parts[-2::-1], parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].lower() == pair[1].lower(), pairs))


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
    """Decode an image; return an empty text if it is missing, and a description of the fault if it is broken."""
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
    """Find and decode the images of annotations, and add omissions and assumptions to the notes.

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
