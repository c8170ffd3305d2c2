"""Reader of YOLO sets: Ultralytics' and Roboflow's YAML files, Darknet's ``obj.data``, and folders of labels."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.detectors.find import ImageFinder, files_below, is_file
from moco_plugin.detectors.records import SPLIT_OF, Annotations, Category, Faults, Object, Record, by_folder, few
from moco_plugin.errors import UserError
from moco_plugin.files import read_text
from moco_plugin.safe_yaml import parse_yaml

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
MOST_CLASSES = 10_000
MOST_LABEL_BYTES = 16 << 20
Line = tuple[Path, int, list[float]]  # file, class and the numbers after it
Lines = dict[Path, list[Line]]


@dataclass
class _Description:
    """What a YAML file or ``obj.data`` says of a set."""

    root: Path
    names: dict[int, str] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)
    keypoints: tuple[int, int] | None = None  # their number, and the numbers of each
    flips: list[int] = field(default_factory=list)


def describes_yolo(root: Path) -> Path | None:
    """Return the YAML file or ``obj.data`` of a folder that describes a YOLO set."""
    if data := sorted(root.glob("*.data")):
        return data[0]
    keys = {
        path: _read_yaml(path).keys() & {"names", "train"}
        for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml")))
    }
    return max((path for path in keys if keys[path]), key=lambda path: len(keys[path]), default=None)


def read_yolo(source: Path, images: Path | None) -> Annotations:
    """Read a YOLO set.

    Args:
        source: A YAML file, ``obj.data``, a list of images, or a folder of images and labels with or without them.
        images: Folder of the images, if they are elsewhere.

    Raises:
        UserError: A file that is named does not exist, labels are of no known kind, or names are contradictory.
    """
    file = describes_yolo(source) if source.is_dir() else source
    root = source if source.is_dir() else source.parent
    notes: list[str] = []
    if file is None:
        about = _Description(root)
    elif file.suffix.lower() == ".txt":
        about = _Description(root, splits={"": [file.name]})
    else:
        about = _from_data(file) if file.suffix == ".data" else _from_yaml(file)
    finder = ImageFinder([images or about.root, about.root, root])
    splits = {split: _images(split, names, about, finder, file, notes) for split, names in about.splits.items()}
    if not splits:
        splits = by_folder(images or root, files_below(images or root, SUFFIXES))
    lines, without = _read_labels([path for paths in splits.values() for path in paths], root)
    if without:
        notes.append(
            f"{len(without)} images have no label file, and are taken for images without objects: {few(without)}"
        )
    names = about.names or _names(root, {line[0].parent for rows in lines.values() for line in rows})
    if not names:
        notes.append(
            f"{source} names no classes (names in a YAML file, or classes.txt): they are called by their numbers"
        )
    rows = [row for part in lines.values() for row in part]
    about.keypoints = about.keypoints or _guess_keypoints(rows, source, notes)
    faults = Faults()
    items = _objects(lines, names, about.keypoints, faults, notes)
    if not about.names and not names:
        names = {kind: str(kind) for kind in sorted({row[1] for row in rows if 0 <= row[1] < MOST_CLASSES})}
    points = [f"keypoint {number}" for number in range(1, (about.keypoints or (0, 0))[0] + 1)]
    for one, other in enumerate(about.flips):
        if one < other < len(points) and about.flips[other] == one:
            points[one], points[other] = f"left {points[one]}", f"right {points[one]}"
    categories = [Category(name, kind + 1, list(points)) for kind, name in sorted(names.items())]
    records = {
        split: [Record(str(path), items[path], relative=True) for path in paths] for split, paths in splits.items()
    }
    notes += finder.notes(source.resolve().name)
    return Annotations(source, "a YOLO set", categories, records, [root], notes, faults)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file with all values as text; empty if it has no keys."""
    text = read_text(path, what="a YAML file")
    parse_yaml(text, str(path))  # bounded in size and depth
    content = yaml.load(text, Loader=yaml.BaseLoader)  # of texts alone
    return content if isinstance(content, dict) else {}


def _from_yaml(path: Path) -> _Description:
    content = _read_yaml(path)
    given = content.get("names")
    pairs = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    try:
        names = {int(key): str(name).strip() for key, name in pairs}
        shape = tuple(int(number) for number in content.get("kpt_shape") or ())
        flips = [int(number) for number in content.get("flip_idx") or ()]
        classes = int(content.get("nc") or 0)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} has invalid names, nc, kpt_shape or flip_idx ({error}); correct the file") from error
    if names and not 0 <= min(names) <= max(names) < MOST_CLASSES:
        raise UserError(f"{path} names class {max(names, key=abs)}; expected numbers from 0 to {MOST_CLASSES - 1}")
    if classes and isinstance(given, list) and classes != len(names):
        raise UserError(f"{path} has nc {classes} and {len(names)} names; correct one of them")
    if shape and (len(shape) != 2 or not 0 < shape[0] <= 1000 or shape[1] not in (2, 3)):
        raise UserError(f"{path} has kpt_shape {list(shape)}; expected the number of keypoints, and 2 or 3")
    base = path.parent / str(content.get("path") or "")
    root = base if base.is_dir() else path.parent
    splits: dict[str, list[str]] = {}
    for key, value in content.items():
        if key.lower() in SPLIT_OF and value and value != "null":
            splits.setdefault(SPLIT_OF[key.lower()], []).extend(map(str, value if isinstance(value, list) else [value]))
    keypoints = (shape[0], shape[1]) if shape else None
    return _Description(root, names, splits, keypoints, flips)


def _from_data(path: Path) -> _Description:
    """Read Darknet's ``obj.data``, whose paths start anywhere."""
    pairs = (line.partition("=") for line in read_text(path, MOST_LABEL_BYTES).splitlines())
    content = {key.strip(): value.strip() for key, _, value in pairs}
    about = _Description(
        path.parent, splits={SPLIT_OF[key]: [value] for key, value in content.items() if key in SPLIT_OF}
    )
    named = re.split(r"[\\/]", content.get("names", ""))[-1]
    if named and (path.parent / named).is_file():
        about.names = _read_names(path.parent / named)
    return about


def _images(
    split: str, names: list[str], about: _Description, finder: ImageFinder, file: Path | None, notes: list[str]
) -> list[Path]:
    """Return the images of a split: of folders, and of lists."""
    found: list[Path] = []
    for name in names:
        parts = [part for part in re.split(r"[\\/]+", name) if part not in ("..", ".")]
        tries = [
            about.root / name,
            finder.roots[-1] / name,
            *(about.root.joinpath(*parts[first:]) for first in range(len(parts))),
        ]
        path = next((path for path in tries if is_file(path) or _is_part(path, finder.roots[-1])), None)
        if path is None and split in ("val", "test"):
            notes.append(f"{file} names {split}: {name}, which does not exist, so there is no such split")
        elif path is None:
            raise UserError(f"{file} names {split}: {name}, which is none of {few(tries[:2])}; correct the path")
        elif path.is_dir():
            found += files_below(path, SUFFIXES)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            lines = [*filter(None, map(str.strip, read_text(path).splitlines()))]
            listed = {line: finder.find(Record(line, folder=path.parent)) for line in lines}
            lost = [line for line, image in listed.items() if image is None]
            found += [image for image in listed.values() if image is not None]
            if 2 * len(lost) > len(listed):
                raise UserError(f"{path} lists {len(listed)} images, of which {len(lost)} are missing: {few(lost)}")
            if lost:
                notes.append(f"left out {len(lost)} images of {path.name}, which are missing: {few(lost)}")
    return list(dict.fromkeys(found))


def _is_part(folder: Path, root: Path) -> bool:
    """Return whether a folder exists, and is none that holds the set with what else is there, such as /."""
    try:
        return folder.is_dir() and folder.resolve() not in root.resolve().parents
    except (OSError, ValueError):
        return False


def _read_labels(images: Iterable[Path], root: Path) -> tuple[Lines, list[str]]:
    """Return the lines of each image's label file, and the names of images without one."""
    lines: Lines = {}
    without: list[str] = []
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files_below(root, (".txt",)):
        by_stem[path.stem].append(path)
    for image in images:
        beside, same = image.with_suffix(".txt"), by_stem[image.stem]
        parts = list(beside.parts)
        if last := max((index for index, part in enumerate(parts[:-1]) if part.lower() == "images"), default=0):
            parts[last] = "labels"
        label = next((path for path in (Path(*parts), beside) if is_file(path)), same[0] if len(same) == 1 else None)
        lines[image] = []
        if label is None:
            without.append(image.name)
            continue
        for line in read_text(label, MOST_LABEL_BYTES, "a label file").splitlines():
            if words := line.split():
                try:
                    kind, *values = map(float, words)
                    lines[image].append((label, int(kind) if kind == int(kind) else -1, values))
                except (ValueError, OverflowError):
                    lines[image].append((label, -1, []))
    return lines, without


def _guess_keypoints(rows: list[Line], source: Path, notes: list[str]) -> tuple[int, int] | None:
    """Return the shape of keypoints that no ``kpt_shape`` describes, where all lines have a visibility for each point."""
    lengths = {len(values) for _, _, values in rows}
    if len(lengths) != 1 or (length := lengths.pop() - 4) < 6:
        return None
    if length % 3 == 0 and all(value in (0, 1, 2) for _, _, values in rows for value in values[6::3]):
        notes.append(f"{source} has no kpt_shape; the lines look like [{length // 3}, 3], and are read as keypoints")
        return length // 3, 3
    if length % 2 == 0 and all(_inside(values) for _, _, values in rows):
        raise UserError(
            f"{source} has labels that look like a box and {length // 2} keypoints inside of it each, or polygons; give "
            f"the YAML file with kpt_shape: [{length // 2}, 2]"
        )
    return None


def _inside(values: list[float]) -> bool:
    x, y, width, height, *others = values
    points = zip(others[::2], others[1::2], strict=True)
    return all(abs(px - x) <= width / 2 + 0.01 and abs(py - y) <= height / 2 + 0.01 for px, py in points)


def _objects(
    lines: Lines, names: dict[int, str], keypoints: tuple[int, int] | None, faults: Faults, notes: list[str]
) -> dict[Path, list[Object]]:
    """Return the objects of each image, in shares of its sides."""
    items: dict[Path, list[Object]] = {}
    confidences, points = 0, math.prod(keypoints or (0,))
    for image, rows in lines.items():
        items[image] = []
        for number, (label, kind, values) in enumerate(rows, start=1):
            where = f"line {number} of {label.name}"
            if not _is_shape(len(values), points) and _is_shape(len(values) - 1, points) and 0 <= values[-1] <= 1:
                values, confidences = values[:-1], confidences + 1
            if kind < 0 or not _is_shape(len(values), points) or not all(map(math.isfinite, values)):
                faults.add("lines that are not a class and four numbers, a polygon or keypoints", where)
            elif kind >= MOST_CLASSES or (names and kind not in names):
                faults.add(f"lines of classes that have no name ({len(names)} have one)", where)
            elif min(values) < -0.1 or max(values[:4] if points else values) > 1.1:
                faults.add("lines with coordinates outside of 0 to 1 (shares of the image's sides)", where)
            else:
                items[image].append(_object(names.get(kind, str(kind)), values, keypoints, where))
    if confidences:
        notes.append(f"{confidences} lines end with a confidence, which is left out")
    return items


def _is_shape(count: int, points: int) -> bool:
    """Return whether so many numbers are a box, a box with keypoints, or a polygon."""
    return count in (4, 4 + points) or (not points and count >= 6 and count % 2 == 0)


def _object(name: str, values: list[float], keypoints: tuple[int, int] | None, where: str) -> Object:
    if len(values) > 4 and not keypoints:
        return Object(name, polygons=[values], where=where)
    x, y, width, height, *points = values
    if points and keypoints and keypoints[1] == 2:  # without visibility
        pairs = zip(points[::2], points[1::2], strict=True)
        points = [number for px, py in pairs for number in (px, py, 2.0 * (px > 0 or py > 0))]
    return Object(name, [x - width / 2, y - height / 2, width, height], keypoints=points, where=where)


def _names(root: Path, folders: Iterable[Path]) -> dict[int, str]:
    """Return the names of classes by number, from a file in a set's folder, or beside its labels."""
    found: dict[Path, dict[int, str]] = {}
    for folder in dict.fromkeys((root, root / "labels", *sorted(folders))):
        for path in (*(folder / name for name in NAME_FILES), *sorted(folder.glob("*.names"))):
            if path.is_file():
                found.setdefault(folder, _read_names(path))
    if len({tuple(names.items()) for names in found.values()}) > 1:
        raise UserError(f"{few(list(found))} name other classes; leave one of the files")
    return next(iter(found.values()), {})


def _read_names(path: Path) -> dict[int, str]:
    lines = read_text(path, MOST_LABEL_BYTES, "a list of names").strip("\n").splitlines()
    return {number: line.strip() for number, line in enumerate(lines[:MOST_CLASSES]) if line.strip()}


def class_names(labels: Path, images: Path) -> list[str]:
    """Return the names of the classes of label images, from a YAML file or ``classes.txt`` beside them; else none.

    The folder above is looked into where it holds the images too.
    """
    for folder in (labels, *([labels.parent] if images.parent == labels.parent else [])):
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            if names := _from_yaml(path).names:
                return [names.get(number, str(number)) for number in range(max(names) + 1)]
        if (path := folder / "classes.txt").is_file():
            return list(_read_names(path).values())
    return []
