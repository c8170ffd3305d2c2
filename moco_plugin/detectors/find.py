"""Search for the images of annotations: at the given path, or else by name if it is unique."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.data.listing import walk
from moco_plugin.detectors.records import Record

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the names of uploads


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
