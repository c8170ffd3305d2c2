"""Images of annotations found: where a file says that they are, else by their name where that is unambiguous."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.detectors.records import Record

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the names of uploads


def files_below(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files below a folder with these suffixes, sorted, without hidden ones."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        found += [Path(folder, name) for name in names if name[0] != "." and name.lower().endswith(tuple(suffixes))]
    return sorted(found)


class ImageFinder:
    """Finds image files by the names that annotations have for them.

    Args:
        roots: Folders that hold the images.
        files: The images; None for those below the roots.

    Attributes:
        by_name: Names of the images that were found by name alone, and the files.
    """

    def __init__(self, roots: Iterable[Path], files: Sequence[Path] | None = None) -> None:
        self.roots, self.files = list(dict.fromkeys(roots)), files
        self.by_name: dict[str, Path] = {}

    def notes(self, source: str) -> list[str]:
        """Return a sentence on images that were found by name alone, if there are some."""
        return [
            f"{len(self.by_name)} images are not where {source} says, and were found by name: {name} is {path}"
            for name, path in [*self.by_name.items()][:1]
        ]

    def find(self, record: Record) -> Path | None:
        """Return the image of a record; None if there is none, or several."""
        names = [record.name, *record.others]
        for name in names:
            for folder in (record.folder, *self.roots):
                if folder is not None and is_file(path := folder / name) and path.name.lower().endswith(SUFFIXES):
                    return path
        for name in names:
            if (same := self._search(name)) is not None:
                self.by_name[name] = same
                return same
        return None

    def _search(self, name: str) -> Path | None:
        parts = [
            part for part in re.split(r"[\\/]+|\?d=", unquote(name.split("://")[-1])) if part not in ("", ".", "..")
        ]
        if not parts:
            return None
        last = parts[-1].lower()
        stem = last if not last.endswith(SUFFIXES) else last.rpartition(".")[0]
        for key in dict.fromkeys((last, _UPLOAD.sub("", last), f"{stem}.*", f"{_UPLOAD.sub('', stem)}.*")):
            if candidates := self._files.get(key):
                ends = [_common_end(path, parts) for path in candidates]
                return candidates[ends.index(max(ends))] if ends.count(max(ends)) == 1 else None
        return None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The images below the roots by name, by name without suffix, and both without an upload's number."""
        index: defaultdict[str, list[Path]] = defaultdict(list)
        below = (path for root in self.roots for path in files_below(root, SUFFIXES))
        files = {path.resolve(): path for path in (below if self.files is None else self.files)}
        for path in files.values():
            names = (path.name.lower(), _UPLOAD.sub("", path.name.lower()))
            for key in {*names, *(f"{Path(name).stem}.*" for name in names)}:
                index[key].append(path)
        return dict(index)


def is_file(path: Path) -> bool:
    """Return whether a path is a file; one that is too long, or has NUL in it, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _common_end(path: Path, parts: Sequence[str]) -> int:
    """Return how many of the last folders of a path are those of a name."""
    pairs = zip(path.parts[-2::-1], parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].lower() == pair[1].lower(), pairs))
