"""Pascal VOC's label images: PNG files with a palette."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

VOID = 255  # label of pixels that count for nothing


def write_palette_png(path: Path, array: np.ndarray, palette: Sequence[int]) -> None:
    """Write class numbers (uint8, H x W) as an image with a palette of three values per number."""
    picture = Image.fromarray(array).convert("P")
    picture.putpalette(list(palette))
    picture.save(path)


def voc_palette() -> list[int]:
    """Return VOC's 256 colours, three values each: the bits of a class number spread over red, green and blue."""
    colours = []
    for index in range(256):
        for channel in range(3):
            bits = (index >> (3 * i + channel) & 1 for i in range(8))
            colours.append(sum(bit << (7 - i) for i, bit in enumerate(bits)) & 255)
    return colours
