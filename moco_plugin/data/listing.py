"""Image files of a folder, and lists of image files."""

import csv
import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.data.labels import class_indices, sort_classes
from moco_plugin.data.spec import EXPECTED_IMAGES
from moco_plugin.errors import UserError
from moco_plugin.files import MOST_TEXT, decode_text, read_file, read_text

LONGEST_LINE = 4096  # characters
MOST_LABELS = 1 << 31  # images times classes of images with several labels
HIDDEN = ("__MACOSX", "lost+found")  # and names that start with a dot
CONTAINERS = {  # files of images that are not read
    ".parquet": "a Parquet file",
    ".arrow": "an Arrow file",
    ".lmdb": "an LMDB database",
    ".mdb": "an LMDB database",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".tfrecord": "a TFRecord file",
    ".rec": "a RecordIO file",
}
EXPECTED_SUFFIXES = "expected files such as .jpg, .png or .tif"
UNPACK = "unpack its images into a folder, or into tar shards (moco-make-shards)"
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
KAGGLE_SOLUTION = "LOC_val_solution.csv"  # of ImageNet's validation set at Kaggle: ImageId,"n01440764 x y x y ..."
Exists = Callable[[Path], bool]
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
        what = "a file" if folder.exists() else "nothing"
        raise UserError(f"{folder}: found {what}, {EXPECTED_IMAGES}; check the path")
    files: list[Path] = []
    others: Counter[str] = Counter()
    for path in walk(folder):
        if not path.is_file():
            others["special file" if path.exists() else "broken link"] += 1
        elif path.name.lower().endswith(SUFFIXES):
            files.append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    if not files:
        packed = next((kind for suffix, kind in CONTAINERS.items() if suffix in others), "")
        advice = f"it contains {packed}, which is not read: {UNPACK}" if packed else EXPECTED_SUFFIXES
        raise UserError(f"{folder} contains no image at any depth; {advice}")
    if others and os.environ.get("RANK", "0") == "0":
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in Counter(dict(sorted(others.items()))).most_common(5))
        print(f"{folder}: {len(files)} images; left out {others.total()} other files ({kinds})", file=sys.stderr)
    return sorted(files)


def folder_labels(folder: Path, files: list[Path]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return the labels and classes of a folder's images: its subfolders, or Kaggle's list for ImageNet's flat val.

    Subfolders that are splits (``train``, ``val``) are reported on stderr, since all of them are used.
    """
    if not files:
        return None, None
    parents = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in files]
    if not any(parents):
        lists = [parent / KAGGLE_SOLUTION for parent in (folder, *folder.parents[:4])]
        parents = next((_kaggle_labels(path, files) for path in lists if path.is_file()), parents)
    _report_splits(files)
    if not all(parents) or len(set(parents)) < 2:
        return None, None
    classes = sort_classes(parents)  # as those of lists and shards
    return class_indices(parents, classes), classes


def _report_splits(files: list[Path]) -> None:
    common = Path(os.path.commonpath([path.parent for path in files]))
    names = sorted({path.relative_to(common).parts[0] for path in files if path.parent != common})
    if len(names) > 1 and {name.lower() for name in names} <= SPLIT_NAMES and os.environ.get("RANK", "0") == "0":
        first = next(name for name in names if name.lower().startswith("train") or name == names[-1])
        print(
            f"{common} contains the splits {', '.join(names)}; all images are used; give {common / first} for one split",
            file=sys.stderr,
        )


def _kaggle_labels(solution: Path, files: list[Path]) -> list[str]:
    try:
        rows = csv.reader(read_text(solution).splitlines())
        labels = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
    except (UserError, csv.Error):
        return [""] * len(files)
    return [labels.get(path.stem, "") for path in files]


def walk(folder: Path) -> Iterator[Path]:
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


class Entry(NamedTuple):
    """An image of a list; ``where`` is its line, for messages."""

    path: Path
    label: str
    where: str


def read_entries(path: Path, *folders: Path) -> list[Entry]:
    """Return the entries of a list, whose image files all exist.

    Args:
        path: A ``.csv`` file of ``path`` or ``path,label`` rows, whose first row may name the columns, or a file of
            ``path`` or ``path label`` lines. Blank lines and those that start with ``#`` are skipped.
        *folders: What paths may be relative to, the first that has the image; by default the list's folder.

    Raises:
        UserError: A line is invalid, no image is listed, or image files are missing.
    """
    exists, folders = _lookup(), folders or (path.parent,)
    data = read_file(path, MOST_TEXT, "a list of images")
    text, names = decode_text(data), data.decode(errors="surrogateescape")
    for line in names.split("\n") if "\udc00" <= max(names, default="") <= "\udfff" else ():
        name = _split(line.strip(), folders[0], exists)[0]
        if not name.isprintable() and exists(folders[0] / name):
            text = names  # file names are in the list's encoding
            break
    lines = text.split("\n")
    entries: list[Entry] = []
    missing: list[Path] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if len(line) > LONGEST_LINE or "\0" in line:
            raise UserError(f"{path}, line {number}: not a path ({line[:40]!r}...); expected 'path' or 'path label'")
        cells = next(csv.reader([line])) if path.suffix.lower() == ".csv" else []
        file, label, there = _locate(line, cells, folders, exists)
        if number == 1 and cells and not there and file.suffix.lower() not in SUFFIXES:
            continue  # names of columns
        if len(cells) > 2:
            raise UserError(f"{path}, line {number}: {len(cells)} cells; expected path, or path and label")
        entries.append(Entry(file, label, f"{path}, line {number}: {line!r}"))
        if not there:
            missing.append(file)
    if not entries:
        raise UserError(f"{path} lists no image; expected one per line, 'path' or 'path label'")
    if missing:
        where = "the list's folder" if folders == (path.parent,) else " or ".join(map(str, folders))
        raise UserError(
            f"{path}: {len(missing)} of its {len(entries)} images are missing, {missing[0]} first; expected 'path' or "
            f"'path label', with paths relative to {where}"
        )
    return entries


def read_list(path: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...] | None]:
    """Return the paths of a list, and the labels and classes if its lines have them.

    Args:
        path: A list, as for ``read_entries``. Where any label has a ``;``, images have several, or none.

    Returns:
        The paths; the labels, int64, N, or bool, N x C, for several per image; the classes.

    Raises:
        UserError: The list is invalid, or only some of its lines have a label.
    """
    entries = read_entries(path)
    paths, labels = [entry.path for entry in entries], [entry.label for entry in entries]
    if any(";" in label for label in labels):
        return paths, *_several_labels(labels, path)
    odd = next((entry for entry in entries if bool(entry.label) != bool(labels[0])), None)
    if odd is not None:
        has, first = ("a", "none") if odd.label else ("no", "one")
        raise UserError(f"{odd.where} has {has} label and the first image has {first}; give each line one, or none")
    if not labels[0]:
        return paths, None, None
    classes = sort_classes(labels)
    return paths, class_indices(labels, classes), classes


def _several_labels(labels: list[str], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return which classes each image has (bool, N x C), and the classes; an empty text is none."""
    sets = [{name.strip() for name in label.split(";")} - {""} for label in labels]
    classes = sort_classes(name for names in sets for name in names)
    indices = {name: index for index, name in enumerate(classes)}
    if len(labels) * len(classes) > MOST_LABELS:
        raise UserError(f"{path} lists {len(labels)} images of {len(classes)} classes; expected fewer classes")
    matrix = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, names in zip(matrix, sets, strict=True):
        row[[indices[name] for name in names]] = True
    return matrix, classes


def _lookup() -> Exists:
    """Return a function that says whether a file exists, and lists each folder once."""

    @functools.cache
    def names(folder: Path) -> set[str]:
        return set(os.listdir(folder)) if os.path.isdir(folder) and os.access(folder, os.R_OK) else set()

    return lambda path: path.name in names(path.parent)


def _locate(line: str, cells: list[str], folders: Sequence[Path], exists: Exists) -> tuple[Path, str, bool]:
    """Return the file and the label of a line, or of a row's cells, and whether the file exists."""
    options: list[tuple[Path, str]] = []
    for folder in folders:
        name, label = (cells[0].strip(), "".join(cells[1:2]).strip()) if cells else _split(line, folder, exists)
        options.append((folder / name, label))
        if exists(folder / name):
            return *options[-1], True
    return *options[0], False


def _split(line: str, folder: Path, exists: Exists) -> tuple[str, str]:
    """Split a line into path and label, which may contain blanks; an existing file decides, else the first suffix."""
    if exists(folder / line):
        return line, ""
    ends = [match.end() for match in _ENDS_AS_IMAGE.finditer(line)]
    ends = next(([end] for end in ends if exists(folder / line[:end])), ends)
    if not ends:  # a name without an image suffix
        name, _, label = line.rpartition(" ") if " " in line else (line, "", "")
        return name, label
    return line[: ends[0]], line[ends[0] :].strip()
