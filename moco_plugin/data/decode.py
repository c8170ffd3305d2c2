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
from moco_plugin.files import open_file, read_file

PILLOW_FORMATS = (  # others of Pillow's start programs (EPS), are known by no first bytes, or are read wrongly (FITS)
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM", "ICO", "PCX", "PSD"),
    *("DDS", "QOI", "SGI", "SUN", "TGA"),
)
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
PILLOW_FORMATS = tuple(name for name in PILLOW_FORMATS if name in Image.OPEN)
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
    source = io.BytesIO(read_file(source, what="an image")) if isinstance(source, Path) else source
    with _decoding(name) as limit:
        try:
            with Image.open(source, formats=PILLOW_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    return Image.fromarray(_deep_grey(image, name, value_range)).convert("RGB")
                ImageOps.exif_transpose(image, in_place=True)
                return image.convert("RGB")
        except UnidentifiedImageError:
            data = _whole(source)
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
    data = source if isinstance(source, bytes) else read_file(source, what="an image")
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
            if is_bands(data) and (channels != 1 or not is_tiff(data)):
                return decode_bands(data, name, channels, value_range, limit)
            return _decode_channels(io.BytesIO(data), name, channels, value_range)
    return np.array(decode(io.BytesIO(data), name, value_range))


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file, upright by its EXIF orientation, from its header.

    Raises:
        CannotDecode: The file is broken, of no known format, or larger than Pillow's limit.
        UserError: The file is missing or cannot be read.
    """
    with open_file(path, "an image") as file, _decoding(str(path)), Image.open(file, formats=PILLOW_FORMATS) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def decode_labels(path: Path, name: str) -> np.ndarray:
    """Decode a label image: the values of a grey one, the indices of one with a palette, 0 and 1 of one of 1 bit.

    Args:
        path: The file.
        name: What messages call it.

    Returns:
        H x W, uint8, uint16 or int32, upright by its EXIF orientation.

    Raises:
        CannotDecode: As ``decode``.
        UserError: As ``decode``, or it has several channels, or numbers with fractions.
    """
    data = read_file(path, what="a label image")
    with _decoding(name), Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
        ImageOps.exif_transpose(image, in_place=True)
        labels = np.array(image)
        if labels.ndim != 2 or labels.dtype.kind == "f":
            raise UserError(
                f"label image {name} is of mode {image.mode}; expected one whole number per pixel, grey or a palette's"
            )
        return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


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
