"""Decoded images of any depth and number of channels, and their scaling to 8 bits."""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from moco_plugin.errors import UserError

MAX_PIXELS = "MOCO_MAX_PIXELS"  # environment variable that overrides MOST_PIXELS
MOST_PIXELS = 178_956_970  # of an image of any format; Pillow's limit
RAISES = f"{MAX_PIXELS}=N in the environment raises the limit"
MOST_CHANNELS = 512
MOST_SCANS = 100  # of a JPEG image; encoders write about 10
MOST_SCANNED = 1 << 30  # scans times pixels, if an image has more than 32 scans
NUMPY = b"\x93NUMPY"
IN_CHANS = "backbone_args.in_chans"
_ROWS = 256  # rows that are scaled at once
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class CannotDecode(Exception):
    """An image file that is broken, of unknown format or too large; the message gives the reason if it helps."""


def check_pixels(width: int, height: int, channels: int = 3, itemsize: int = 1) -> None:
    """Raise CannotDecode if an image is too large to decode, by its header.

    Args:
        width: In pixels.
        height: In pixels.
        channels: Channels, including the pages of a TIFF file.
        itemsize: Bytes per value.
    """
    most, size = most_pixels(), channels * itemsize
    if most and width * height > most:
        found = f"{width} x {height} pixels, more than {most:,}"
    elif most and width * height * size > 8 * most:
        found = f"{width} x {height} pixels of {size} bytes, more than {8 * most:,} bytes"
    else:
        return
    raise CannotDecode(f"{found}; {RAISES}")


def check_scans(scans: int, pixels: int) -> None:
    """Raise CannotDecode for a JPEG image that takes long to decode since it has many scans; 0 pixels are unknown."""
    if scans > MOST_SCANS or (scans > 32 and scans * (pixels or MOST_PIXELS) > MOST_SCANNED):
        raise CannotDecode(f"{scans} scans, which take too long to decode; save it again")


def most_pixels() -> int | None:
    """Return the largest number of pixels of an image, or None for no limit; also set Pillow's limit."""
    if (text := os.environ.get(MAX_PIXELS)) is None:
        return MOST_PIXELS
    most = int(text) if text.isdecimal() and len(text) < 20 else None
    Image.MAX_IMAGE_PIXELS = most and max(most, MOST_PIXELS // 2)  # our message says more
    return most


def upright(image: np.ndarray, orientation: object) -> np.ndarray:
    """Return an image, H x W or H x W x C, with an EXIF orientation (1 to 8) applied."""
    if orientation in SIDEWAYS:
        image = image.swapaxes(0, 1)
    image = image[::-1] if orientation in (3, 4, 7, 8) else image
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


@dataclass
class Pixels:
    """A decoded image.

    Attributes:
        values: H x W x C, integers or floats.
        alpha: Whether the last channel is opacity.
        grey: Whether the channels are colours, which can be converted to grey, rather than bands.
        usual: The values of black and white if no range is given; None for the range of the type.
        missing: Mask of pixels without data, H x W x C, which become black; or None.
    """

    values: np.ndarray
    alpha: bool = False
    grey: bool = True
    usual: tuple[float, float] | None = None
    missing: np.ndarray | None = None

    def as_8_bits(self, name: str, channels: int, value_range: Sequence[float] | None = None) -> np.ndarray:
        """Return the image as input of a network.

        Opacity is dropped unless ``channels`` includes it. Grey is repeated for three channels; colours are converted
        to grey for one.

        Args:
            name: What messages call it.
            channels: C.
            value_range: As for ``decode``: two numbers, or two for each channel.

        Returns:
            uint8, H x W x C, or H x W for one channel.

        Raises:
            UserError: It has other channels or values outside of the range.
        """
        values = self.values
        if self.alpha and values.shape[2] != channels:
            values = values[..., :-1]
        count = values.shape[2]
        if count != channels and not (self.grey and {count, channels} == {1, 3}):
            refuse_channels(values, name, channels)
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * 255
        elif values.dtype != np.uint8 and self.missing is not None:
            missing = self.missing[..., :count]
            present = values[~missing]
            values = np.where(missing, present.min() if present.size else values.dtype.type(0), values)
            values = self._scaled(values, name, value_range)
            values[np.broadcast_to(missing, values.shape)] = 0
        elif values.dtype != np.uint8:
            values = self._scaled(values, name, value_range)
        if (values.shape[2], channels) == (3, 1):
            return np.array(Image.fromarray(np.ascontiguousarray(values)).convert("L"))
        if (values.shape[2], channels) == (1, 3):
            return np.repeat(values, 3, axis=2)
        return np.ascontiguousarray(values[..., 0] if channels == 1 else values)

    def _scaled(self, values: np.ndarray, name: str, value_range: Sequence[float] | None) -> np.ndarray:
        """Scale values to uint8; without a range, floats from 0 to 1 and integers from 0 to 65535 unless ``usual``."""
        usual = self.usual or (0.0, 1.0 if values.dtype.kind == "f" else 65535.0)
        low, high = float(values.min()), float(values.max())
        first, last = np.asarray(value_range or usual, np.float64).reshape(-1, 2).T
        finite = np.isfinite(low) and np.isfinite(high)
        if not finite or (value_range is None and not usual[0] <= low <= high <= usual[1]):
            raise UserError(
                f"{name} has values from {low:g} to {high:g} ({values.dtype}); expected {first[0]:g} to {last[0]:g}, "
                "so give the range, such as data.value_range=[0,4095]"
            )
        image_8 = np.empty(np.broadcast_shapes(values.shape, first.shape), np.uint8)
        for start in range(0, len(values), _ROWS):  # in float64, in blocks to save memory
            part = slice(start, start + _ROWS)
            scaled = (values[part].astype(np.float64) - first) * (255 / (last - first))
            image_8[part] = np.rint(scaled.clip(0, 255))
        return image_8


def read_numpy(data: bytes) -> np.ndarray:
    """Read an array without trusting the size in its header; refuse pickled objects."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in "buif" or (dtype.kind in "iu" and dtype.itemsize > 4):
        raise CannotDecode(f"an array of {dtype}; expected floats, or integers of at most 32 bits")
    count = math.prod(shape)
    if count * dtype.itemsize > len(data) - file.tell():
        raise CannotDecode("it is shorter than its header says")
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")


def numpy_pixels(data: bytes, name: str, channels: int) -> Pixels:
    """Read an array, H x W x C, C x H x W, or H x W."""
    values = with_channels(read_numpy(data), name, channels)
    values = values[..., None] if values.ndim == 2 else values
    check_pixels(values.shape[1], values.shape[0], values.shape[2], values.itemsize)
    return Pixels(values, grey=False)


def with_channels(values: np.ndarray, name: str, channels: int) -> np.ndarray:
    """Return an array as H x W x C, or H x W for one channel.

    Raises:
        UserError: It has other channels.
    """
    if values.ndim == 3 and values.shape[2] != channels == values.shape[0]:
        values = np.moveaxis(values, 0, 2)
    elif values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] != channels:
        refuse_channels(values, name, channels)
    return values[..., 0] if channels == 1 else values


def refuse_channels(values: np.ndarray, name: str, channels: int) -> None:
    """Raise UserError for an image of other channels."""
    shape = " x ".join(map(str, values.shape))
    found = min(values.shape[0], values.shape[2]) if values.ndim == 3 else 0
    advice = f"; set {IN_CHANS}={found}" if 0 < found <= MOST_CHANNELS else ""
    raise UserError(f"{name} is an image of {shape}; expected {channels} channel{'s'[: channels > 1]}{advice}")
