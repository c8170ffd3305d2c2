"""Decoding of image files to 8-bit RGB."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps

from moco_plugin.errors import UserError

# Formats of Pillow's that run other programs, or that Pillow recognizes and cannot decode.
_NOT_READ = {"EPS", "PDF", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC"}
MAX_PIXELS = "MOCO_MAX_PIXELS"  # environment variable: most pixels of an image, in place of Pillow's limit
_JPEG_CHANNELS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_JPEG_DIVISORS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

with contextlib.suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()  # HEIC, where its plug-in is installed
Image.init()
PILLOW_FORMATS = tuple(sorted(set(Image.OPEN) - _NOT_READ))
SUFFIXES = tuple(
    sorted(suffix for suffix, name in Image.registered_extensions().items() if name in {*PILLOW_FORMATS, "MPO"})
)


class CannotDecode(Exception):
    """An image file that is broken, of no known format or too large; the text says why where that helps."""


def decode(source: Path | IO[bytes], name: str, value_range: Sequence[float] | None = None) -> Image.Image:
    """Decode an image file to RGB, upright by its EXIF orientation; of several frames the first.

    Images of more than 8 bits are scaled: from ``value_range``, if given; else integers by their bit depth (32-bit
    integers that fit into 16 bits are taken for 16-bit ones), and floats from 0 to 1.

    Args:
        source: The file.
        name: What messages call it.
        value_range: The values that become 0 and 255; those outside are clipped. For deep images alone.

    Raises:
        CannotDecode: The file is broken, of no known format, or larger than Pillow's limit.
        UserError: The file is not there or cannot be read, or its values are outside of the range.
    """
    _pixel_limit()
    try:
        with Image.open(source, formats=PILLOW_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                return Image.fromarray(_to_8_bits(image, name, value_range)).convert("RGB")
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise CannotDecode(
            f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; {MAX_PIXELS}=N in the environment raises the limit"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); check the path and its permissions") from error
    except Exception as error:  # decoders raise almost anything
        raise CannotDecode("") from error


def decode_array(
    source: Path | bytes,
    name: str,
    value_range: Sequence[float] | None = None,
    shrink: Callable[[int, int], int] | None = None,
) -> np.ndarray:
    """Decode an image file like ``decode``, JPEG files by OpenCV, in half the time.

    Args:
        source: The file, or what it holds.
        name: What messages call it.
        value_range: As for ``decode``.
        shrink: Takes the two sides of a JPEG image and returns 1, 2, 4 or 8, what the decoder divides them by.

    Returns:
        uint8, H x W x 3, or H x W for a grey JPEG image.

    Raises:
        CannotDecode: As ``decode``.
        UserError: As ``decode``.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        data = b""  # ``decode`` says why
    width, height, channels = _jpeg_header(data)
    small = width * height <= (_pixel_limit() or 0)  # Pillow says what is wrong with others
    whole = data.endswith(b"\xff\xd9")  # OpenCV may decode a part of a truncated file
    if channels in _JPEG_CHANNELS and small and whole:
        flags = _JPEG_CHANNELS[channels] | _JPEG_DIVISORS[shrink(width, height) if shrink else 1]
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if array is not None:
            return array
    return np.array(decode(io.BytesIO(source) if isinstance(source, bytes) else source, name, value_range))


def _pixel_limit() -> int | None:
    """Give Pillow the limit of the environment, if there is one; return what holds now."""
    if limit := os.environ.get(MAX_PIXELS):
        Image.MAX_IMAGE_PIXELS = int(limit) if limit.isdecimal() else None
    return Image.MAX_IMAGE_PIXELS


def _jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Return width, height (as stored) and channels of a JPEG image; zeros for other files."""
    place = 2
    while data.startswith(b"\xff\xd8") and place + 10 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return width, height, data[place + 9]
        place += 2 + length
    return 0, 0, 0


def _to_8_bits(image: Image.Image, name: str, value_range: Sequence[float] | None) -> np.ndarray:
    """Return the values of a grey image of integers (I...) or floats (F), H x W, as uint8."""
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if value_range is not None:
        first, last = value_range
    elif image.mode == "F":
        first, last = 0.0, 1.0
    elif image.mode != "I" or image.format in ("PNG", "PPM") or high < 1 << 16:
        first, last = 0.0, 65535.0
    else:
        first, last = 0.0, float(np.iinfo(np.int32).max)
    if not (np.isfinite(low) and np.isfinite(high)) or (value_range is None and not first <= low <= high <= last):
        raise UserError(
            f"{name} has values from {low:g} to {high:g} (Pillow's mode {image.mode}); expected {first:g} to {last:g}, "
            "so give the range, such as data.value_range=[0,4095]"
        )
    scaled = (values.astype(np.float64) - first) * (255 / (last - first))
    image_8: np.ndarray = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return image_8
