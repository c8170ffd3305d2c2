"""Decoding of image files to 8-bit RGB."""

import contextlib
import importlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from moco_plugin.data.bands import (
    MAX_PIXELS,
    CannotDecode,
    decode_bands,
    is_bands,
    is_tiff,
    to_8_bits,
    too_large,
    usual_range,
    with_channels,
)
from moco_plugin.errors import UserError

# Formats of Pillow's that run other programs, or that Pillow recognizes and cannot decode.
_NOT_READ = {"EPS", "PDF", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC"}
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
    sorted(
        {suffix for suffix, name in Image.registered_extensions().items() if name in {*PILLOW_FORMATS, "MPO"}}
        | {".npy"}
    )
)


def decode(source: Path | IO[bytes], name: str, value_range: Sequence[float] | None = None) -> Image.Image:
    """Decode an image file to RGB, upright by its EXIF orientation; of several frames the first.

    Images of more than 8 bits are scaled: from ``value_range``, if given; else integers by their bit depth (32-bit
    integers that fit into 16 bits are taken for 16-bit ones), and floats from 0 to 1.

    Args:
        source: The file.
        name: What messages call it.
        value_range: The values that become 0 and 255; those outside are clipped. Only for images of more than 8 bits.

    Raises:
        CannotDecode: The file is broken, of no known format, or larger than Pillow's limit.
        UserError: The file is missing or cannot be read, its values are outside of the range, or it has other than
            three channels.
    """
    with _decoding(name) as limit:
        try:
            with Image.open(source, formats=PILLOW_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    return Image.fromarray(_deep_grey(image, name, value_range)).convert("RGB")
                ImageOps.exif_transpose(image, in_place=True)
                return image.convert("RGB")
        except UnidentifiedImageError:
            data = source.read_bytes() if isinstance(source, Path) else _whole(source)
            return Image.fromarray(decode_bands(data, name, 3, value_range, limit))


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[int | None]:
    """Turn decoders' errors into CannotDecode or UserError; yield the largest number of pixels."""
    try:
        yield _pixel_limit()
    except (UserError, CannotDecode):
        raise
    except Image.DecompressionBombError as error:
        raise CannotDecode(too_large(2 * (Image.MAX_IMAGE_PIXELS or 0))) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); check the path and its permissions") from error
    except Exception as error:  # decoders raise almost anything
        raise CannotDecode("") from error


def _whole(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def decode_array(
    source: Path | bytes,
    name: str,
    value_range: Sequence[float] | None = None,
    shrink: Callable[[int, int], int] | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Decode an image file like ``decode``, JPEG files by OpenCV, in half the time.

    Args:
        source: The file, or what it holds.
        name: What messages call it.
        value_range: As for ``decode``.
        shrink: Takes the two sides of a JPEG image and returns 1, 2, 4 or 8, what the decoder divides them by.
        channels: 3 for RGB. With 1, images are turned grey; with others, files must have as many.

    Returns:
        uint8, H x W x ``channels``; H x W for one channel, and for a grey JPEG image.

    Raises:
        CannotDecode: As ``decode``.
        UserError: As ``decode``.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        data = b""  # ``decode`` says why
    width, height, stored = _jpeg_header(data)
    small = width * height <= (_pixel_limit() or 0)  # Pillow says what is wrong with others
    whole = data.endswith(b"\xff\xd9")  # OpenCV may decode a part of a truncated file
    if stored in _JPEG_CHANNELS and (channels == 3 or stored == channels) and small and whole:
        flags = _JPEG_CHANNELS[stored] | _JPEG_DIVISORS[shrink(width, height) if shrink else 1]
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if array is not None:
            return array
    if channels != 3:
        with _decoding(name) as limit:
            data = data or (source if isinstance(source, bytes) else source.read_bytes())
            if is_bands(data) and (channels != 1 or not is_tiff(data)):
                return decode_bands(data, name, channels, value_range, limit)
            return _decode_channels(io.BytesIO(data), name, channels, value_range)
    return np.array(decode(io.BytesIO(source) if isinstance(source, bytes) else source, name, value_range))


def _pixel_limit() -> int | None:
    """Set Pillow's pixel limit from the environment; return the limit."""
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


def _decode_channels(file: IO[bytes], name: str, channels: int, value_range: Sequence[float] | None) -> np.ndarray:
    """Decode by Pillow: grey for one channel; else the file must have as many."""
    with Image.open(file, formats=PILLOW_FORMATS) as image:
        if image.mode.startswith(("I", "F")) and channels == 1:
            return _deep_grey(image, name, value_range)
        ImageOps.exif_transpose(image, in_place=True)
        if channels == 1:
            return np.array(image.convert("L"))
        array = np.array(image.convert("RGBA") if image.mode == "P" and channels == 4 else image)
        return with_channels(array, name, channels)


def _deep_grey(image: Image.Image, name: str, value_range: Sequence[float] | None) -> np.ndarray:
    """Return the values of a grey image of integers (I...) or floats (F), H x W, as uint8."""
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    usual = usual_range(values)
    if image.mode == "I" and image.format not in ("PNG", "PPM") and values.max() >= 1 << 16:
        usual = 0.0, float(np.iinfo(np.int32).max)
    return to_8_bits(values, name, value_range, usual)
