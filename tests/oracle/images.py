"""The images of the oracle's runs in every kind of source, and as an independent reader sees them."""

import gzip
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from moco_plugin.tools.make_shards import main as make_shards
from tests.oracle.evaluation_sets import enlarged, write_idx

COUNTS = {"train": 133, "knn": 40, "test": 20}
CLASSES = ("cat", "dog")
Picture = Image.Image | list[Image.Image]  # one image, or the channels of one that is neither grey nor RGB


def make_source(folder: Path, kind: str, channels: int) -> None:
    """Write the three sets of images below ``folder``; see ``spec``."""
    for part, count in COUNTS.items():
        arrays = [_draw(part, number, channels, (28, 28) if kind == "idx" else None) for number in range(count)]
        labels = [number % 2 for number in range(count)]
        if kind == "idx":
            pixels = [array if array.ndim == 2 else array[..., 0] for array in arrays]
            write_idx(folder / part / "train-images-idx3-ubyte.gz", np.stack(pixels))
            write_idx(folder / part / "train-labels-idx1-ubyte.gz", np.array(labels, np.uint8))
            continue
        suffix = {"npy": ".npy", "tiff": ".tif"}.get(kind, ".jpg")
        for number, (array, label) in enumerate(zip(arrays, labels, strict=True)):
            path = folder / part / CLASSES[label] / f"{number:03}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "npy":
                np.save(path, array)
            elif kind == "tiff":
                tifffile.imwrite(path, array, photometric="rgb" if channels == 3 else "minisblack")
            else:
                Image.fromarray(array).save(path, quality=92)
        if kind == "csv":
            rows = [f"{p.relative_to(folder)},{p.parent.name}" for p in _shuffled(folder / part)]
            (folder / f"{part}.csv").write_text("".join(f"{row}\n" for row in rows))
        elif kind == "zip":
            with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
                for path in _shuffled(folder / part):
                    archive.write(path, path.relative_to(folder / part))
        elif kind == "shards":
            size = "--images-per-shard=50"
            assert make_shards([str(folder / part), str(folder / f"{part}-shards" / "set"), size]) == 0


def spec(folder: Path, kind: str, part: str) -> str:
    """Return what a user types for a set."""
    if (kind, part) == ("several", "train"):
        return f"[{folder}/train/dog, {folder}/train/cat]"
    ends = {"csv": ".csv", "zip": ".zip", "shards": "-shards", "idx": "/train-images-idx3-ubyte.gz"}
    return f"{folder / part}{ends.get(kind, '')}"


@cache
def read_set(folder: Path, kind: str, part: str, channels: int) -> tuple[list[Picture], list[int]]:
    """Return the images of a set in its order, and their labels."""
    if kind == "idx":
        with gzip.open(spec(folder, kind, part)) as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        images = [Image.fromarray(image) for image in pixels]
        return [i if channels == 1 else i.convert("RGB") for i in images], [n % 2 for n in range(len(images))]
    if kind == "csv":
        rows = [row.split(",")[0] for row in (folder / f"{part}.csv").read_text().split()]
        paths = [folder / row for row in rows]
    else:
        paths = sorted(p for p in (folder / part).rglob("*") if p.is_file())
        if (kind, part) == ("several", "train"):  # in the order that is given
            paths.sort(key=lambda path: path.parent.name, reverse=True)
    return [_read(path, channels) for path in paths], [CLASSES.index(path.parent.name) for path in paths]


def _read(path: Path, channels: int) -> Picture:
    if path.suffix == ".jpg":
        return Image.open(path).convert("RGB" if channels == 3 else "L")
    array = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
    if channels == 4:
        return [Image.fromarray(array[..., channel].copy()) for channel in range(4)]
    return Image.fromarray(array)


def _shuffled(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return [paths[i] for i in np.random.default_rng(1).permutation(len(paths))]


def _draw(part: str, number: int, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """Draw a smooth image, its colours by class; H x W, or H x W x C."""
    generator = np.random.default_rng([len(part), number])
    width, height = size or (72 + number % 7, 66 + number % 5)
    coarse = generator.integers(0, 230, (5, 5 + number % 3, channels), dtype=np.uint8)
    coarse[..., number % 2 % channels] += 25
    image = enlarged(coarse, (width, height))
    return image if channels > 1 else image[..., 0]
