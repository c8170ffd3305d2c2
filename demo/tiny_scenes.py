"""Scenes of the tiny data sets, with objects that are numbered in each split."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.demo.scenes import MAX_OBJECTS, MIN_OBJECTS, SceneObject, background, compose_scene
from moco_plugin.errors import UserError

MAX_SIDE = 96  # pixels that photos of objects are reduced to
MAX_PHOTOS = 400

Objects = tuple[list[np.ndarray], np.ndarray]
"""Images of objects, and the class index of each."""


@dataclass(frozen=True)
class Looks:
    """Images of objects (see ``compose_scene``), grouped by their look.

    The number of groups is 1, 2, 5 or 10, which divide the numbers of classes of VOC (20), COCO (80) and LVIS (1230): with
    classes assigned round-robin, each class has one look.
    """

    groups: tuple[tuple[np.ndarray, ...], ...]


@dataclass
class TinyScene:
    """A scene: its picture (uint8, H x W x 3) and its objects, whose labels count the objects of the split from 0."""

    image: np.ndarray
    objects: list[SceneObject]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]


def group_looks(images: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray | None) -> Looks:
    """Group object images by their labels; without labels, in one group."""
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    classes = np.unique(labels).tolist()
    count = max(number for number in (1, 2, 5, 10) if number <= len(classes))
    groups: list[list[np.ndarray]] = [[] for _ in range(count)]
    for image, label in zip(images, labels.tolist(), strict=True):
        groups[classes.index(label) % count].append(image)
    return Looks(tuple(map(tuple, groups)))


def read_photos(folder: str | Path) -> tuple[Objects, Objects, list[str]]:
    """Read photos of objects with a transparent background, PNG files in a folder for each kind of object.

    Returns:
        The objects for training (RGBA, H x W x 4, and the index of the kind of each), others for testing, and the kinds.

    Raises:
        UserError: No kind has two such photos.
    """
    files = ImageSet(str(folder))
    labels = np.zeros(len(files), np.int64) if files.labels is None else files.labels
    chosen = np.unique(np.linspace(0, len(files) - 1, MAX_PHOTOS).round().astype(int))
    photos = [(read_photo(files.paths[i]), int(labels[i])) for i in chosen if files.paths[i].suffix == ".png"]
    found = [(photo, label) for photo, label in photos if photo is not None]
    counts = np.bincount([label for _, label in found], minlength=1)
    kinds = [int(label) for label in np.flatnonzero(counts > 1)]
    if not kinds:
        raise UserError(
            f"{folder} contains no kind of object with two photos; expected PNG files with transparency, "
            "in a folder for each kind"
        )
    splits: tuple[list, list] = ([], [])
    for index, kind in enumerate(kinds):
        for position, photo in enumerate(photo for photo, label in found if label == kind):
            splits[position % 2].append((photo, index))
    train, test = (([photo for photo, _ in split], np.array([index for _, index in split])) for split in splits)
    names = files.classes or ["object"]
    return train, test, [names[kind] for kind in kinds]


def read_photo(path: Path) -> np.ndarray | None:
    """Return a photo cropped to its opaque part (RGBA, H x W x 4), or None if all or nothing is opaque."""
    try:
        with Image.open(path) as image:
            photo = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # errors of Pillow
        return None
    box = photo.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()
    if box is None or np.asarray(photo.getchannel("A")).min() >= 128:
        return None
    photo = photo.crop(box)
    photo.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    return np.asarray(photo)


def compose_split(
    looks: Looks, count: int, size: int, seed: Sequence[int], canvas_bands: Sequence[Sequence[int]] = ()
) -> list[TinyScene]:
    """Compose the scenes of one split.

    Object n of the split has the look of group n modulo the number of groups, so classes assigned round-robin all occur:
    20 of them in seven scenes.

    Args:
        looks: The objects to choose from.
        count: Number of scenes.
        size: Height in pixels; also the width, unless there are bands.
        seed: Seed of all random choices.
        canvas_bands: Colours (0 to 255) of horizontal bands, top to bottom, as background of scenes that are twice
            as wide as high.
    """
    scenes = []
    number = 0
    for index in range(count):
        for attempt in itertools.count():  # until there is a place for every object
            random = np.random.default_rng([*seed, index, attempt])
            numbers = range(number, number + int(random.integers(MIN_OBJECTS, MAX_OBJECTS + 1)))
            chosen = [looks.groups[n % len(looks.groups)] for n in numbers]
            images = [group[random.integers(len(group))] for group in chosen]
            canvas = _bands(size, canvas_bands, random) if canvas_bands else None
            image, objects = compose_scene(images, numbers, size, random, order=range(len(images)), canvas=canvas)
            if len(objects) == len(images):
                break
        scenes.append(TinyScene(image, objects))
        number = numbers.stop
    return scenes


def _bands(size: int, colours: Sequence[Sequence[int]], random: np.random.Generator) -> np.ndarray:
    canvas: np.ndarray = background(size, random, width=2 * size)
    for rows, colour in zip(band_rows(size, len(colours)), colours, strict=True):
        canvas[rows] = 0.3 * canvas[rows] + 0.7 * np.array(colour)
    return canvas


def band_rows(size: int, count: int) -> list[slice]:
    """Return the rows of ``count`` horizontal bands of a scene ``size`` pixels high, top to bottom."""
    edges = np.linspace(0, size, count + 1).round().astype(int).tolist()
    return [slice(top, bottom) for top, bottom in itertools.pairwise(edges)]
