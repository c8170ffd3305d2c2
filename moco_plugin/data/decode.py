"""Decoding of image files to 8-bit RGB."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from moco_plugin.errors import UserError

# Formats of Pillow's that run other programs, or that Pillow recognizes and cannot decode.
_NOT_READ = {"EPS", "PDF", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC"}
MAX_PIXELS = "MOCO_MAX_PIXELS"  # environment variable: most pixels of an image, in place of Pillow's limit

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
    limit = os.environ.get(MAX_PIXELS)
    if limit:
        Image.MAX_IMAGE_PIXELS = int(limit) if limit.isdecimal() else None
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
