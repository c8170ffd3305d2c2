"""Decoding of image files of all supported formats."""

import contextlib
import importlib
import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from moco_plugin.data.pixels import (
    NUMPY,
    RAISES,
    CannotDecode,
    Pixels,
    check_pixels,
    check_scans,
    most_pixels,
    numpy_pixels,
    read_numpy,
    upright,
)
from moco_plugin.data.tiff import ORIENTATION, TIFF, tiff_pixels
from moco_plugin.errors import UserError
from moco_plugin.files import read_file, shown

__all__ = ["SUFFIXES", "CannotDecode", "decode", "decode_array", "decode_labels", "decode_pixels", "stored_as"]

_FORMATS = (  # Pillow's other formats run programs (EPS), have no signature, or are decoded wrongly (FITS, SGI)
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM", "ICO", "PCX", "PSD"),
    *("DDS", "QOI", "SUN", "TGA"),
)
MOST_READS = 1 << 24  # by Pillow of a file, and bytes of its header that are read in small parts
MOST_SLOW = 3 << 26  # bytes of JPEG 2000, AVIF, HEIC and plain-text PPM, which take about 0.1 s per MB
MOST_SEGMENTS = 100_000  # before the first scan of a JPEG file
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_CHANNELS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_JPEG_DIVISORS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_PNG_END = b"IEND\xaeB`\x82"
_NETPBM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3 + rb"\s")
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000
_MODES = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}  # what Pillow's modes are converted to; others to RGB

with contextlib.suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()  # HEIC, where its plug-in is installed
Image.init()
PILLOW_FORMATS = tuple(name for name in _FORMATS if name in Image.OPEN)
_suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in {*PILLOW_FORMATS, "MPO"}}
SUFFIXES = tuple(sorted(_suffixes | {".npy"}))


def decode(source: Path | bytes, name: str, value_range: Sequence[float] | None = None) -> Image.Image:
    """Decode an image file to RGB, upright by its EXIF orientation; of several frames the first.

    Images of more than 8 bits are scaled: from ``value_range``, if given; else integers by their bit depth (32-bit
    integers that fit into 16 bits are taken for 16-bit ones), and floats from 0 to 1.

    Args:
        source: The file, or its content.
        name: What messages call it.
        value_range: The values that become 0 and 255; those outside are clipped. Only for images of more than 8 bits.

    Raises:
        CannotDecode: The file is broken, of no known format, or has too many pixels.
        UserError: The file cannot be read, has values outside of the range or other than three channels, or contains
            several images (TIFF).
    """
    return Image.fromarray(decode_array(source, name, value_range)).convert("RGB")


def decode_array(
    source: Path | bytes,
    name: str,
    value_range: Sequence[float] | None = None,
    shrink: Callable[[int, int], int] | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Decode an image file like ``decode``.

    Args:
        source: The file, or its content.
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
    with _decoding():
        if data.startswith(_JPEG) and (array := _jpeg(data, shrink, channels)) is not None:
            return array
        if value_range is not None and (bits := _bits_lost(data)):
            raise UserError(
                f"{name} is an AVIF or HEIC image of {bits} bits, of which 8 are read; expected no value_range, "
                "or a PNG or TIFF file"
            )
        return _read(data, name, channels).as_8_bits(name, channels, value_range)


def decode_pixels(data: bytes, name: str) -> Pixels:
    """Decode an image file with its full bit depth and all channels, upright; NumPy arrays must have three channels.

    Raises:
        CannotDecode: As ``decode``.
        UserError: The file contains several images, or a kind of image that is not supported.
    """
    with _decoding():
        if data.startswith(_JPEG) and (array := _jpeg(data, None, 3)) is not None:
            return Pixels(array if array.ndim == 3 else array[..., None])
        return _read(data, name, 3)


def decode_labels(path: str | Path) -> np.ndarray:
    """Decode a label image: grey values, palette indices, or 0 and 1 of a 1-bit image.

    Args:
        path: The file.

    Returns:
        H x W, of an integer type, with the EXIF orientation applied.

    Raises:
        UserError: As ``decode``, or the image is broken, has several channels, or values that are not integers.
    """
    data, name = read_file(path, what="a label image"), shown(path)
    try:
        with _decoding():
            if data.startswith(NUMPY):
                labels = read_numpy(data)
            elif data.startswith(TIFF) and (pixels := tiff_pixels(data, name)) is not None:
                labels = pixels.values.squeeze()
            else:
                with _opened(data) as image:
                    labels = upright(np.array(image), image.getexif().get(ORIENTATION))
    except CannotDecode as error:
        raise UserError(f"label image {name} cannot be decoded ({error}); repair or remove it") from error
    if labels.ndim != 2 or labels.dtype.kind == "f":
        found = f"an array of {' x '.join(map(str, labels.shape))} {labels.dtype}"
        raise UserError(f"label image {name} is {found}; expected H x W integers, grey or with a palette")
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


def stored_as(path: Path) -> tuple[str, int]:
    """Return Pillow's mode of an image file, empty where Pillow does not read it, and its EXIF orientation, 1 to 8.

    Raises:
        CannotDecode: The file is broken or has too many pixels.
        UserError: The file is missing or cannot be read.
    """
    data = read_file(path, what="an image")
    with _decoding():
        try:
            with _opened(data) as image:
                return image.mode, int(image.getexif().get(ORIENTATION, 1))
        except UnidentifiedImageError:
            if data.startswith((NUMPY, *TIFF)):
                return "", 1
            raise


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Convert errors of decoders to CannotDecode."""
    try:
        yield
    except (UserError, CannotDecode):
        raise
    except Exception as error:  # decoders raise many kinds of exceptions
        raise CannotDecode("") from error


def _opened(data: bytes) -> Image.Image:
    """Open an image with Pillow, which reads the header only, and check its size."""
    file = _Counted(io.BytesIO(data))
    most_pixels()
    try:
        image = Image.open(file, formats=PILLOW_FORMATS)
    except Image.DecompressionBombError as error:
        raise CannotDecode(f"too many pixels; {RAISES}") from error
    check_pixels(*image.size)
    slow = image.format in ("JPEG2000", "AVIF", "HEIF") or [tile[0] for tile in image.tile] == ["ppm_plain"]
    if slow and len(data) > MOST_SLOW:
        raise CannotDecode(f"{len(data):,} bytes of {image.format}, more than {MOST_SLOW:,}")
    file.header = False
    return image


class _Counted:
    """A file of which Pillow may read so many parts: its parsers and some decoders are Python, and slow for many."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left, self.header = file, MOST_READS, True

    def read(self, size: int = -1) -> bytes:
        self.left -= 1 + (size if self.header and 0 < size < 1 << 16 else 0)
        if self.left < 0:
            raise CannotDecode("a header or parts that take too long to read; save it again")
        return self.file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _jpeg(data: bytes, shrink: Callable[[int, int], int] | None, channels: int) -> np.ndarray | None:
    """Decode a JPEG file with OpenCV, in half of Pillow's time; return None for files that are left to Pillow."""
    width, height, stored, single = _jpeg_header(data)
    check_pixels(width, height)
    scans = 1 if single else data.count(b"\xff\xda")
    check_scans(scans, width * height)
    whole = data.endswith(_JPEG_END)  # OpenCV may decode truncated files partially
    if not whole or stored not in _JPEG_CHANNELS or (channels != 3 and channels != stored):
        return None
    flags = _JPEG_CHANNELS[stored] | _JPEG_DIVISORS[shrink(width, height) if shrink else 1]
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _jpeg_header(data: bytes) -> tuple[int, int, int, bool]:
    """Return stored width, height and channels of a JPEG file, and whether it has a single scan; zeros for others."""
    place, frame, header = 2, 0, (0, 0, 0)
    for _ in range(MOST_SEGMENTS):
        if place + 10 > len(data) or data[place] != 0xFF:
            break
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == 0xDA:  # a scan
            return *header, frame in (0xC0, 0xC1) and data[place + 4] == header[2]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            frame, header = marker, (width, height, data[place + 9])
        place += 2 + length
    return *header, False


def _read(data: bytes, name: str, channels: int) -> Pixels:
    """Decode a file of any format with its full bit depth, upright."""
    if data.startswith(NUMPY):
        return numpy_pixels(data, name, channels)
    if data.startswith(TIFF) and (pixels := tiff_pixels(data, name)) is not None:
        return pixels
    with _opened(data) as image:
        deep = _deep(image, data, name)
        if deep is not None:
            deep.values = upright(deep.values, image.getexif().get(ORIENTATION) if _may_turn(image, data) else None)
            return deep
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            opaque = "transparency" not in image.info
            image = image.convert(_MODES.get(image.mode, "RGB" if image.mode != "P" or opaque else "RGBA"))
        values = np.array(image)
        return Pixels(values if values.ndim == 3 else values[..., None], alpha=image.mode in ("LA", "RGBA"))


def _bits_lost(data: bytes) -> int:
    """Return the bits of an AVIF or HEIC image of more than 8, all of which Pillow turns into 8; else 0."""
    if data[4:8] != b"ftyp":
        return 0
    avif, heic = data.find(b"av1C"), data.find(b"hvcC")
    if 0 <= avif < len(data) - 6:
        return (0, 0, 10, 12)[data[avif + 6] >> 5 & 3]
    return 8 + (data[heic + 21] & 7) if 0 <= heic < len(data) - 21 and data[heic + 21] & 7 else 0


def _may_turn(image: Image.Image, data: bytes) -> bool:
    """Return whether to look for an orientation; Pillow decodes all pixels of a PNG file to find it."""
    return image.format != "PNG" or b"eXIf" in data or b"Raw profile" in data or b"exif" in data


def _deep(image: Image.Image, data: bytes, name: str) -> Pixels | None:
    """Return an image of more than 8 bits at full depth, as stored; None for other images."""
    if image.format == "PNG" and data[24] == 16 and data[25] & 2 | data[25] & 4:
        if data.rfind(_PNG_END) < 0:
            raise CannotDecode("it is cut off")
        return _by_opencv(data, data[25] & 2 == 0)
    if image.format == "JPEG2000":
        start = data.find(_CODESTREAM)
        depth = data[start + 42]
        if start < 0 or depth & 0x7F < 8:
            return None
        if depth & 0x80 or depth & 0x7F > 15:
            sign = "signed" if depth & 0x80 else "unsigned"
            raise UserError(
                f"{name} is a JPEG 2000 image of {(depth & 0x7F) + 1} bits, {sign}; save it as PNG or TIFF of 16 bits"
            )
        return _by_opencv(data, image.mode in ("I;16", "I", "LA", "L"), (0.0, float((2 << (depth & 0x7F)) - 1)))
    if image.format == "PPM" and (header := _NETPBM.match(data)) and int(header[4]) > 255:
        if header[1] in b"23":
            raise UserError(f"{name} is a plain-text PGM or PPM file; save it as a binary one")
        return _by_opencv(data, header[1] == b"5", (0.0, float(header[4])))
    if not image.mode.startswith(("I", "F")):
        return None
    # of TIFF files, tiff_pixels leaves those of 12 bits to Pillow
    return Pixels(np.array(image)[..., None], usual=(0.0, 4095.0) if image.format == "TIFF" else None)


def _by_opencv(data: bytes, grey: bool, usual: tuple[float, float] | None = None) -> Pixels:
    """Decode a 16-bit image with OpenCV, since Pillow reduces several channels to 8 bits."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None or values.dtype != np.uint16:
        raise CannotDecode("")
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[2] > 2:
        order = [2, 1, 0, 3] if values.shape[2] == 4 else [2, 1, 0]
        values = values[..., [0, 3] if grey and values.shape[2] == 4 else [0] if grey else order]
    return Pixels(np.ascontiguousarray(values), alpha=values.shape[2] in (2, 4), usual=usual)
