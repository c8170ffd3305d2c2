"""Pictures of one object at a random place and size on a textured background, in which pixels know little."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moco_plugin.data.images import ImageSet
from moco_plugin.data.source import ArraySource
from moco_plugin.demo.images import get_fashion_mnist
from moco_plugin.demo.scenes import compose_scene
from moco_plugin.demo.tiny_scenes import read_photo
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path
from moco_plugin.sources.idx import read_idx

SIDE = 64  # pixels
UNLABELLED, BANK, QUERIES = 40_000, 5_000, 2_000
LEAST_PHOTOS = 10  # of a category
STAMPS = Path("/usr/share/tuxpaint/stamps")


@dataclass
class Sets:
    """Pictures (uint8, N x SIDE x SIDE x 3) to train on without labels, and two sets with labels.

    Attributes:
        placed: To train on.
        bank: With labels.
        queries: To classify.
        plain: Fashion-MNIST's own pictures of the same objects (uint8, N x 28 x 28); None for the stamps.
    """

    placed: ImageSet
    bank: ImageSet
    queries: ImageSet
    plain: ImageSet | None = None


def read_sets(name: str, cache: Path) -> Sets:
    """Compose the sets "fashion" or "stamps", or read them from a folder that has them already.

    Objects of the queries are in no other set. Fashion-MNIST's classes are its own, those of the stamps of Tux Paint
    the folders with ``LEAST_PHOTOS`` photos and more, half of which make queries.

    Raises:
        UserError: The objects are not installed.
    """
    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: folder / f"{part}.npz" for part in ("placed", "bank", "queries")}
    if not all(file.is_file() for file in files.values()):
        trained, tested = {"fashion": _fashion, "stamps": _stamps}[name](cache)
        for number, (part, objects, count) in enumerate(
            (("placed", trained, UNLABELLED), ("bank", trained, BANK), ("queries", tested, QUERIES))
        ):
            images, labels = place_objects(*objects, count, number)
            with atomic_path(files[part]) as temporary, open(temporary, "wb") as file:
                np.savez(file, images=images, labels=labels)
    plain = None
    if name == "fashion":
        plain = ImageSet(f"{get_fashion_mnist(cache)}/train-images-idx3-ubyte.gz[:{UNLABELLED}]")
    return Sets(*(_open(f"{name} {part}", file) for part, file in files.items()), plain)


def _open(name: str, file: Path) -> ImageSet:
    content = np.load(file)
    images = ImageSet(name, files=([], ()))
    images.source = ArraySource(name, content["images"], content["labels"])
    images.labels = images.source.labels
    return images


def place_objects(
    objects: list[np.ndarray] | np.ndarray, labels: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` pictures of one object each, taken in turn, and their labels."""
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    which = np.arange(count) % len(objects)
    for index, number in enumerate(which):
        random = np.random.default_rng([seed, index])
        pictures[index], _ = compose_scene(objects, labels, SIDE, random, order=[int(number)])
    return pictures, labels[which]


def _fashion(cache: Path) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    folder = get_fashion_mnist(cache)
    return tuple(
        (
            read_idx(folder / f"{part}-images-idx3-ubyte.gz"),
            read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64),
        )
        for part in ("train", "t10k")
    )


def _stamps(cache: Path) -> tuple[tuple[list[np.ndarray], np.ndarray], ...]:
    photos: dict[str, list[np.ndarray]] = {}
    for path in sorted(STAMPS.rglob("*.png")):
        photo = read_photo(path)
        if photo is not None:
            photos.setdefault("/".join(path.relative_to(STAMPS).parts[:2]), []).append(photo)
    kept = [
        found for category, found in sorted(photos.items()) if len(found) >= LEAST_PHOTOS and "symbols" not in category
    ]
    if not kept:
        raise UserError(f"{STAMPS} holds no photos; run `apt-get install tuxpaint-stamps-default` on Debian or Ubuntu")
    splits = []
    for part in range(2):
        objects = [(photo, label) for label, found in enumerate(kept) for photo in found[part::2]]
        order = np.random.default_rng(part).permutation(len(objects))
        splits.append(([objects[i][0] for i in order], np.array([objects[i][1] for i in order])))
    return tuple(splits)
