"""Image files of a folder, and lists of image files."""

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.data.shard_index import sort_classes
from moco_plugin.early_checks import EXPECTED_IMAGES
from moco_plugin.errors import UserError

LONGEST_LINE = 4096  # characters
HIDDEN = ("__MACOSX", "lost+found")  # and names that start with a dot
CONTAINERS = {  # what people keep images in that is not read
    ".parquet": "a Parquet file",
    ".arrow": "an Arrow file",
    ".lmdb": "an LMDB database",
    ".mdb": "an LMDB database",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".tfrecord": "a TFRecord file",
    ".rec": "a RecordIO file",
}
UNPACK = "unpack its images into a folder, or into tar shards (moco-make-shards)"
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
KAGGLE_SOLUTION = "LOC_val_solution.csv"  # of ImageNet's validation set at Kaggle: ImageId,"n01440764 x y x y ..."
_ENDS_AS_IMAGE = re.compile(rf"(?:{'|'.join(map(re.escape, SUFFIXES))})(?=\s|$)", re.IGNORECASE)


def image_files(folder: Path) -> list[Path]:
    """Return all image files below a folder in sorted order, and report other suffixes on stderr.

    Hidden files and folders are skipped. A folder that is reachable twice, by symbolic links, counts once.

    Raises:
        UserError: There is no such folder, it cannot be read, or it has no image.
    """
    if not folder.is_dir():
        if kind := CONTAINERS.get(folder.suffix.lower()):
            raise UserError(f"{folder} is {kind}, which is not read; {UNPACK}")
        found = "a file" if folder.exists() else "nothing"
        raise UserError(f"{folder}: found {found}, {EXPECTED_IMAGES}; check the path")
    files: list[Path] = []
    others: Counter[str] = Counter()
    for path in _walk(folder):
        if not path.is_file():
            others["special file" if path.exists() else "broken link"] += 1
        elif path.name.lower().endswith(SUFFIXES):
            files.append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    if not files:
        packed = next((kind for suffix, kind in CONTAINERS.items() if suffix in others), "")
        raise UserError(
            f"{folder} holds no image at any depth; "
            + (
                f"it holds {packed}, which is not read: {UNPACK}"
                if packed
                else "expected files such as .jpg, .png or .tif"
            )
        )
    if others and os.environ.get("RANK", "0") == "0":
        kinds = ", ".join(
            f"{count} {suffix}" for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))[:5]
        )
        print(f"{folder}: {len(files)} images; left out {others.total()} other files ({kinds})", file=sys.stderr)
    return sorted(files)


def folder_labels(folder: Path, files: list[Path]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return the labels and classes of a folder's images: its subfolders, or Kaggle's list for ImageNet's flat val.

    A folder of splits (``train``, ``val``) is reported on stderr, since all of them would be used.
    """
    parents = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in files]
    if not any(parents):
        lists = [parent / KAGGLE_SOLUTION for parent in (folder, *folder.parents[:4])]
        parents = next((_kaggle_labels(path, files) for path in lists if path.is_file()), parents)
    _report_splits(files)
    if not all(parents) or len(set(parents)) < 2:
        return None, None
    classes = tuple(sort_classes(parents))  # as those of lists and shards
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in parents], dtype=np.int64), classes


def _report_splits(files: list[Path]) -> None:
    common = Path(os.path.commonpath([path.parent for path in files]))
    names = sorted({path.relative_to(common).parts[0] for path in files if path.parent != common})
    if len(names) > 1 and {name.lower() for name in names} <= SPLIT_NAMES and os.environ.get("RANK", "0") == "0":
        first = next(name for name in names if name.lower().startswith("train") or name == names[-1])
        print(
            f"{common} holds the splits {', '.join(names)}, and the images of all are used; give {common / first} for one",
            file=sys.stderr,
        )


def _kaggle_labels(solution: Path, files: list[Path]) -> list[str]:
    try:
        rows = csv.reader(solution.read_text(encoding="utf-8").splitlines())
        labels = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
    except (OSError, UnicodeDecodeError, csv.Error):
        return [""] * len(files)
    return [labels.get(path.stem, "") for path in files]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; linked folders come last, so that each has its own name."""
    seen: set[tuple[int, int]] = set()
    waiting, linked = [folder], list[Path]()
    while waiting or linked:
        current = waiting.pop() if waiting else linked.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith(".") or entry.name in HIDDEN:
                        continue
                    if entry.is_dir():
                        (linked if entry.is_symlink() else waiting).append(Path(entry.path))
                    else:
                        yield Path(entry.path)
        except OSError as error:
            raise UserError(f"{current} cannot be read ({error.strerror}); check its permissions") from error


def read_list(path: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...] | None]:
    """Return the paths of a list, and the labels and classes if its lines have them.

    Args:
        path: A ``.txt`` file of ``path`` or ``path label`` lines, or a ``.csv`` file of ``path`` or ``path,label`` rows,
            whose first row may name the columns. Where any label has a ``;``, images have several, or none.

    Returns:
        The paths; the labels, int64, N, or bool, N x C, for several per image; the classes.

    Raises:
        UserError: A line is neither, or files of the list are missing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    files = _Files()
    paths: list[Path] = []
    labels: list[str] = []
    where: list[str] = []
    missing: list[Path] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if len(line) > LONGEST_LINE or "\0" in line:
            raise UserError(f"{path}, line {number}: not a path ({line[:40]!r}...); expected 'path' or 'path label'")
        if path.suffix.lower() == ".csv":
            cells = next(csv.reader([line]))
            if number == 1 and path.parent / cells[0] not in files and Path(cells[0]).suffix.lower() not in SUFFIXES:
                continue  # names of columns
            if len(cells) > 2:
                raise UserError(f"{path}, line {number}: {len(cells)} cells; expected path, or path and label")
            entry, label = cells[0].strip(), cells[1].strip() if len(cells) == 2 else ""
        else:
            entry, label = _entry(line, path.parent, files)
        paths.append(path.parent / entry)
        labels.append(label)
        where.append(f"{path}, line {number}: {line!r}")
        if paths[-1] not in files:
            missing.append(paths[-1])
    if not paths:
        raise UserError(f"{path} lists no image; expected one per line, 'path' or 'path label'")
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of its {len(paths)} images are missing, {missing[0]} first; expected 'path' or "
            "'path label', with paths relative to the list's folder"
        )
    if any(";" in label for label in labels):
        return paths, *_several_labels(labels)
    odd = next((place for place, label in enumerate(labels) if bool(label) != bool(labels[0])), None)
    if odd is not None:
        has, first = ("a", "none") if labels[odd] else ("no", "one")
        raise UserError(f"{where[odd]} has {has} label and the first image has {first}; give each line one, or none")
    if not labels[0]:
        return paths, None, None
    classes = tuple(sort_classes(labels))
    places = {name: i for i, name in enumerate(classes)}
    return paths, np.array([places[label] for label in labels], dtype=np.int64), classes


def _several_labels(labels: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return which classes each image has (bool, N x C), and the classes; an empty text is none."""
    sets = [{name.strip() for name in label.split(";")} - {""} for label in labels]
    classes = tuple(sort_classes(name for names in sets for name in names))
    places = {name: i for i, name in enumerate(classes)}
    matrix = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, names in zip(matrix, sets, strict=True):
        row[[places[name] for name in names]] = True
    return matrix, classes


class _Files:
    """Files that exist; each folder is listed once."""

    def __init__(self) -> None:
        self.names: dict[Path, set[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self.names:
            try:
                self.names[path.parent] = set(os.listdir(path.parent))
            except OSError:
                self.names[path.parent] = set()
        return path.name in self.names[path.parent]


def _entry(line: str, folder: Path, files: _Files) -> tuple[str, str]:
    """Split a line into path and label, which may contain blanks; an existing file decides, else the first suffix."""
    if folder / line in files:
        return line, ""
    ends = [match.end() for match in _ENDS_AS_IMAGE.finditer(line)]
    ends = next(([end] for end in ends if folder / line[:end] in files), ends)
    if not ends:  # a name without an image suffix
        entry, _, label = line.rpartition(" ") if " " in line else (line, "", "")
        return entry, label
    return line[: ends[0]], line[ends[0] :].strip()
