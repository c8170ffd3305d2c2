"""Mean and standard deviation of each channel of an image set."""

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UserError

MEASURED = 1000  # images, evenly spread over the set


def measure_statistics(images: ImageSet, count: int = MEASURED) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel over the pixels of images.

    Args:
        images: The set; those of its images that cannot be decoded are left out, with a line on stderr.
        count: Images to read, evenly spread over the set.

    Returns:
        Values of pixels in 0 to 1, rounded to four digits; a channel of one value has a standard deviation of 1.

    Raises:
        UserError: None of the images can be decoded.
    """
    pixels, total, squares, damaged = 0, np.zeros(images.channels), np.zeros(images.channels), list[str]()
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    for index in tqdm(chosen.tolist(), desc="mean and std", leave=False, disable=None):
        array, name = images.try_load_array(index)
        if array is None:
            damaged.append(name)
            continue
        values = array.reshape(-1, 1 if array.ndim == 2 else array.shape[2]) / 255
        if values.shape[1] == 1 != images.channels:  # a grey image of an RGB set
            values = np.repeat(values, images.channels, axis=1)
        pixels, total, squares = pixels + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    if not pixels:
        raise UserError(f"none of the {len(chosen)} images of {images.spec} can be decoded")
    if damaged:
        print(f"mean and std: left out {len(damaged)} of {len(chosen)} images, such as {damaged[0]}", file=sys.stderr)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0)).round(4)
    std[std == 0] = 1
    return mean.round(4).tolist(), std.tolist()


def describe_statistics(mean: Sequence[float], std: Sequence[float]) -> str:
    """Return mean and standard deviation formatted for a run's command line."""
    return " ".join(
        f"data.{name}=[{','.join(f'{v:g}' for v in values)}]" for name, values in (("mean", mean), ("std", std))
    )
