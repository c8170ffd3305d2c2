"""Images of annotations found: where a file says that they are, else by their name where that is unambiguous."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
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
        self._index: dict[str, list[Path]] | None = None

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
            if candidates := self._files().get(key):
                ends = [_common_end(path, parts) for path in candidates]
                best = [path for path, end in zip(candidates, ends, strict=True) if end == max(ends)]
                return best[0] if len(best) == 1 else None
        return None

    def _files(self) -> dict[str, list[Path]]:
        """Return the images below the roots by name, by name without suffix, and both without an upload's number."""
        if self._index is None:
            index: defaultdict[str, list[Path]] = defaultdict(list)
            below = (path for root in self.roots for path in files_below(root, SUFFIXES))
            files = {path.resolve(): path for path in (below if self.files is None else self.files)}
            for path in files.values():
                name = path.name.lower()
                keys = {part: None for name in (name, _UPLOAD.sub("", name)) for part in (name, f"{Path(name).stem}.*")}
                for key in keys:
                    index[key].append(path)
            self._index = dict(index)
        return self._index


def is_file(path: Path) -> bool:
    """Return whether a path is a file; one that is too long, or has NUL in it, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _common_end(path: Path, parts: Sequence[str]) -> int:
    """Return how many of the last folders of a path are those of a name."""
    count = 0
    for one, other in zip(reversed(path.parts[:-1]), reversed(parts[:-1]), strict=False):
        if one.lower() != other.lower():
            break
        count += 1
    return count
