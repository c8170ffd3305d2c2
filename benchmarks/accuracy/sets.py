"""Pictures of one object each at a random place and size, in which raw pixels know little."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moco_plugin.data.images import ImageSet
from moco_plugin.data.source import ArraySource
from moco_plugin.demo.images import get_fashion_mnist
from moco_plugin.demo.objects import place_objects
from moco_plugin.demo.scenes import compose_scene
from moco_plugin.demo.tiny_scenes import read_photo
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path
from moco_plugin.sources.idx import load_idx_images

UNLABELLED, BANK, QUERIES = 40_000, 5_000, 2_000
STAMPS = Path("/usr/share/tuxpaint/stamps")
LEAST_PHOTOS = 10  # of a category of the stamps
SIDE = 64  # pixels of their pictures

Pictures = tuple[np.ndarray, np.ndarray]
"""Images (uint8, N x H x W or N x H x W x 3) and labels (int64, N)."""


@dataclass
class Sets:
    """Pictures to train on, labelled ones, and others to classify; their objects are in neither of the two."""

    placed: ImageSet
    bank: ImageSet
    queries: ImageSet


def read_sets(name: str, folder: Path) -> Sets:
    """Make the sets "fashion" (Fashion-MNIST's objects on black, as in the demo) or "stamps", or read them from a folder.

    The photographs of the stamps of Tux Paint are put on textured backgrounds. Their classes are the folders with
    ``LEAST_PHOTOS`` photos and more; half of a folder's photos make the queries.

    Raises:
        UserError: The objects are not installed.
    """
    files = {part: folder / name / f"{part}.npz" for part in ("placed", "bank", "queries")}
    if not all(file.is_file() for file in files.values()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        made = {"fashion": _fashion, "stamps": _stamps}[name](folder)
        for file, (images, labels) in zip(files.values(), made, strict=True):
            with atomic_path(file) as temporary, open(temporary, "wb") as opened:
                np.savez(opened, images=images, labels=labels)
    return Sets(*(_open(f"{name} {part}", file) for part, file in files.items()))


def _open(name: str, file: Path) -> ImageSet:
    content = np.load(file)
    images = ImageSet(name, files=([], ()))
    images.source = ArraySource(name, content["images"], content["labels"])
    images.labels = images.source.labels
    return images


def _fashion(folder: Path) -> list[Pictures]:
    mnist = get_fashion_mnist(folder)
    made = []
    for seed, (part, count) in enumerate((("train", UNLABELLED), ("train", BANK), ("t10k", QUERIES))):
        images, labels, _ = load_idx_images(f"{mnist}/{part}-images-idx3-ubyte.gz[:{count}]")
        assert labels is not None
        made.append((place_objects(images, seed), labels))
    return made


def _stamps(folder: Path) -> list[Pictures]:
    photos: dict[str, list[np.ndarray]] = {}
    for path in sorted(STAMPS.rglob("*.png")):
        category = "/".join(path.relative_to(STAMPS).parts[:2])
        if "symbols" not in category and (photo := read_photo(path)) is not None:
            photos.setdefault(category, []).append(photo)
    kept = [found for _, found in sorted(photos.items()) if len(found) >= LEAST_PHOTOS]
    if not kept:
        raise UserError(
            f"{STAMPS} contains no photos; run `apt-get install tuxpaint-stamps-default` on Debian or Ubuntu"
        )
    made = []
    for seed, (half, count) in enumerate(((0, UNLABELLED), (0, BANK), (1, QUERIES))):
        objects = [(photo, label) for label, found in enumerate(kept) for photo in found[half::2]]
        random = np.random.default_rng(half)
        made.append(_compose([objects[i] for i in random.permutation(len(objects))], count, seed))
    return made


def _compose(objects: list[tuple[np.ndarray, int]], count: int, seed: int) -> Pictures:
    """Return pictures of the objects in turn, each on a background of its own."""
    images, labels = zip(*objects, strict=True)
    chosen = np.arange(count) % len(objects)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for index, number in enumerate(chosen.tolist()):
        random = np.random.default_rng([seed, index])
        pictures[index], _ = compose_scene(images, labels, SIDE, random, order=[number])
    return pictures, np.array(labels)[chosen]
