"""Pictures of Fashion-MNIST's objects at random places and sizes, on which raw pixels are weak features."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from moco_plugin.files import atomic_folder, check_output

SIDE = 40  # pixels
SCALES = (0.4, 1.3)  # of the object images: 11 to 36 pixels for 28


def place_objects(images: np.ndarray, seed: int, side: int = SIDE) -> np.ndarray:
    """Put each object image at a random size and place on black.

    Args:
        images: uint8, N x H x W, on black, at most ``side / SCALES[1]`` pixels wide and high.
        seed: Seed of the places and sizes; a picture depends only on it and its index.
        side: Side of the pictures in pixels.

    Returns:
        uint8, N x ``side`` x ``side``.
    """
    pictures = np.zeros((len(images), side, side), np.uint8)
    for index, (image, picture) in enumerate(zip(images, pictures, strict=True)):
        random = np.random.default_rng([seed, index])
        scale = random.uniform(*SCALES)
        height, width = (round(scale * length) for length in image.shape)
        top, left = random.integers(side - height + 1), random.integers(side - width + 1)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        picture[top : top + height, left : left + width] = np.asarray(resized)
    return pictures


def make_objects(
    output: Path,
    train: tuple[np.ndarray, np.ndarray | None],
    test: tuple[np.ndarray, np.ndarray | None],
    overwrite: bool = False,
) -> Path:
    """Write pictures and their labels as idx files with the names of Fashion-MNIST's, whole or not at all.

    Args:
        output: Folder to make.
        train: Object images (uint8, N x H x W) and their labels (N), or None.
        test: Others.
        overwrite: Replace the folder.

    Returns:
        ``output``.
    """
    check_output(output, overwrite)
    with atomic_folder(output) as temporary:
        for seed, (part, (images, labels)) in enumerate({"train": train, "t10k": test}.items()):
            write_idx(temporary / f"{part}-images-idx3-ubyte", place_objects(images, seed))
            if labels is not None:
                write_idx(temporary / f"{part}-labels-idx1-ubyte", labels.astype(np.uint8))
    return output


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes in the format of MNIST."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())
