"""Reader of YOLO sets: Ultralytics' and Roboflow's YAML files, Darknet's ``obj.data``, and folders of labels."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from moco_plugin.data.decode import SUFFIXES
from moco_plugin.detectors.images import ImageFinder, files_below, is_file
from moco_plugin.detectors.records import SPLIT_OF, Annotations, Category, Object, Record, by_folder, few
from moco_plugin.errors import UserError
from moco_plugin.files import read_text
from moco_plugin.safe_yaml import parse_yaml

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
MOST_CLASSES = 10_000
MOST_LABEL_BYTES = 16 << 20


class _Texts(yaml.SafeLoader):
    """Loads all values as text: a class may be called ``yes`` or ``007``."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Line(NamedTuple):
    file: Path
    number: int  # from 1
    kind: int  # the class; -1 if it is not a number
    values: list[float]  # after the class


@dataclass
class _Description:
    """Content of a YAML file or ``obj.data``."""

    root: Path
    names: dict[int, str] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)
    keypoints: tuple[int, ...] = ()  # number of keypoints, and of the values of each
    flips: list[int] = field(default_factory=list)


def describes_yolo(root: Path) -> Path | None:
    """Return the YAML file or ``obj.data`` of a folder that describes a YOLO set."""
    if data := sorted(root.glob("*.data")):
        return data[0]
    files = sorted((*root.glob("*.yaml"), *root.glob("*.yml")))
    keys = {path: len(_read_yaml(path).keys() & {"names", "train"}) for path in files}
    return max(filter(keys.get, keys), key=keys.__getitem__, default=None)


def read_yolo(source: Path, images: Path | None) -> Annotations:
    """Read a YOLO set.

    Args:
        source: A YAML file, ``obj.data``, a list of images, or a folder of images and labels with or without them.
        images: Folder of the images, if they are elsewhere.

    Raises:
        UserError: A named file does not exist, labels have no known form, or names are contradictory.
    """
    file, root = (describes_yolo(source), source) if source.is_dir() else (source, source.parent)
    data = Annotations(source, "a YOLO set", [root])
    if file is None:
        about = _Description(root)
    elif file.suffix.lower() == ".txt":
        about = _Description(root, splits={"": [file.name]})
    else:
        about = _from_data(file) if file.suffix == ".data" else _from_yaml(file)
    finder = ImageFinder([images or about.root, about.root, root])
    files = {
        split: _images(split, names, about.root, finder, file, data.notes) for split, names in about.splits.items()
    }
    if not files:
        files = by_folder(images or root, files_below(images or root, SUFFIXES))
    lines = _read_labels([path for paths in files.values() for path in paths], root, data.notes)
    rows = [row for part in lines.values() for row in part]
    names = about.names or _names(root, {row.file.parent for row in rows})
    if not names:
        data.notes.append(
            f"{source} names no classes (names in a YAML file, or classes.txt): they are called by number"
        )
    shape = about.keypoints or _guess_keypoints(rows, source, data.notes)
    for split, paths in files.items():
        data.splits[split] = [Record(str(path), relative=True) for path in paths]
        for path, record in zip(paths, data.splits[split], strict=True):
            for row in lines[path]:
                data.add(record, _object(row, names, shape), f"line {row.number} of {row.file.name}")
    if count := sum(_has_confidence(row.values, shape) for row in rows):
        data.notes.append(f"{count} lines end with a confidence, which is ignored")
    if not names:
        names = {kind: str(kind) for kind in sorted({row.kind for row in rows if 0 <= row.kind < MOST_CLASSES})}
    points = [f"keypoint {index}" for index in range(1, shape[0] + 1)] if shape else []
    for one, other in enumerate(about.flips):
        if one < other < len(points) and about.flips[other] == one:
            points[one], points[other] = f"left {points[one]}", f"right {points[one]}"
    data.categories = [Category(name, kind + 1, list(points)) for kind, name in sorted(names.items())]
    data.notes += finder.notes(data.name)
    return data


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file with all values as text; empty if it has no keys."""
    content = parse_yaml(read_text(path, what="a YAML file"), str(path), _Texts)
    return content if isinstance(content, dict) else {}


def _from_yaml(path: Path) -> _Description:
    content = _read_yaml(path)
    given = content.get("names")
    pairs = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    try:
        names = {int(key): str(name).strip() for key, name in pairs}
        shape = tuple(map(int, content.get("kpt_shape") or ()))
        flips = [*map(int, content.get("flip_idx") or ())]
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
    splits: dict[str, list[str]] = {}
    for key, value in content.items():
        if (split := SPLIT_OF.get(str(key).lower())) and value and value != "null":
            splits.setdefault(split, []).extend(map(str, value if isinstance(value, list) else [value]))
    return _Description(base if base.is_dir() else path.parent, names, splits, (*shape,), flips)


def _from_data(path: Path) -> _Description:
    """Read Darknet's ``obj.data``; its paths may be relative to any folder."""
    pairs = (line.partition("=") for line in read_text(path, MOST_LABEL_BYTES).splitlines())
    content = {key.strip(): value.strip() for key, _, value in pairs}
    splits = {SPLIT_OF[key]: [value] for key, value in content.items() if key in SPLIT_OF}
    names = path.parent / re.split(r"[\\/]", content.get("names", ""))[-1]
    return _Description(path.parent, _read_names(names) if names.is_file() else {}, splits)


def _images(
    split: str, names: list[str], root: Path, finder: ImageFinder, file: Path | None, notes: list[str]
) -> list[Path]:
    """Return the images of a split: of folders, and of lists."""
    found: list[Path] = []
    for name in names:
        parts = [part for part in re.split(r"[\\/]+", name) if part not in ("..", ".")]
        tries = [root / name, finder.roots[-1] / name, *(root.joinpath(*parts[i:]) for i in range(len(parts)))]
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
    """Return whether a folder exists and is not above the set's, such as /."""
    try:
        return folder.is_dir() and folder.resolve() not in root.resolve().parents
    except (OSError, ValueError):
        return False


def _read_labels(images: Iterable[Path], root: Path, notes: list[str]) -> dict[Path, list[_Line]]:
    """Return the lines of each image's label file, and add the images without one to the notes."""
    lines: dict[Path, list[_Line]] = {}
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
        for number, line in enumerate(read_text(label, MOST_LABEL_BYTES, "a label file").splitlines(), start=1):
            if words := line.split():
                try:
                    kind, *values = map(float, words)
                    lines[image].append(_Line(label, number, int(kind) if kind == int(kind) else -1, values))
                except (ValueError, OverflowError):
                    lines[image].append(_Line(label, number, -1, []))
    if without:
        notes.append(f"{len(without)} images have no label file and are taken to have no objects: {few(without)}")
    return lines


def _guess_keypoints(rows: list[_Line], source: Path, notes: list[str]) -> tuple[int, ...]:
    """Return the shape of keypoints without ``kpt_shape``, if all lines have a visibility for each point; else ()."""
    lengths = {len(row.values) for row in rows}
    if len(lengths) != 1 or (length := lengths.pop() - 4) < 6:
        return ()
    if length % 3 == 0 and all(value in (0, 1, 2) for row in rows for value in row.values[6::3]):
        notes.append(f"{source} has no kpt_shape; the lines look like [{length // 3}, 3], and are read as keypoints")
        return length // 3, 3
    if length % 2 == 0 and all(_inside(row.values) for row in rows):
        raise UserError(
            f"{source} has labels that look like a box and {length // 2} keypoints inside of it each, or polygons; give "
            f"the YAML file with kpt_shape: [{length // 2}, 2]"
        )
    return ()


def _inside(values: list[float]) -> bool:
    x, y, width, height, *others = values
    points = zip(others[::2], others[1::2], strict=True)
    return all(abs(px - x) <= width / 2 + 0.01 and abs(py - y) <= height / 2 + 0.01 for px, py in points)


def _object(row: _Line, names: dict[int, str], shape: tuple[int, ...]) -> Object | str:
    """Return the object of a line, in shares of the image's sides, or the reason for which it is left out."""
    values = row.values[:-1] if _has_confidence(row.values, shape) else row.values
    if row.kind < 0 or not _is_shape(len(values), shape) or not all(map(math.isfinite, values)):
        return "lines that are not a class and four numbers, a polygon or keypoints"
    if row.kind >= MOST_CLASSES or (names and row.kind not in names):
        return f"lines of classes that have no name ({len(names)} have one)"
    if min(values) < -0.1 or max(values[:4] if shape else values) > 1.1:
        return "lines with coordinates outside of 0 to 1 (shares of the image's sides)"
    name = names.get(row.kind, str(row.kind))
    if len(values) > 4 and not shape:
        return Object(name, polygons=[values])
    x, y, width, height, *points = values
    if points and shape[1] == 2:  # without visibility
        pairs = zip(points[::2], points[1::2], strict=True)
        points = [number for px, py in pairs for number in (px, py, 2.0 * (px > 0 or py > 0))]
    return Object(name, [x - width / 2, y - height / 2, width, height], keypoints=points)


def _is_shape(count: int, shape: tuple[int, ...]) -> bool:
    """Return whether so many numbers are a box, a box with keypoints, or a polygon."""
    return count == 4 or (count == 4 + math.prod(shape) if shape else count >= 6 and count % 2 == 0)


def _has_confidence(values: list[float], shape: tuple[int, ...]) -> bool:
    return not _is_shape(len(values), shape) and _is_shape(len(values) - 1, shape) and 0 <= values[-1] <= 1


def _names(root: Path, folders: Iterable[Path]) -> dict[int, str]:
    """Return the names of classes by number, from a file in a set's folder or beside its labels."""
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
    """Return the names of the classes of label images, from a YAML file or ``classes.txt`` beside them.

    The folder above is searched if it contains the images, too.
    """
    for folder in (labels, *([labels.parent] if images.parent == labels.parent else [])):
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            if names := _from_yaml(path).names:
                return [names.get(number, str(number)) for number in range(max(names) + 1)]
        if (path := folder / "classes.txt").is_file():
            return list(_read_names(path).values())
    return []
