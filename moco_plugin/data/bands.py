"""Image files that Pillow does not read: NumPy arrays and multi-band TIFF."""

import io
import math
from collections.abc import Sequence

import numpy as np

from moco_plugin.errors import UserError

MAX_PIXELS = "MOCO_MAX_PIXELS"  # environment variable: most pixels of an image, in place of Pillow's limit
MOST_CHANNELS = 512
_NUMPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
IN_CHANS = "backbone_args.in_chans"


class CannotDecode(Exception):
    """An image file that is broken, of no known format or too large; the text says why where that helps."""


def too_large(limit: int) -> str:
    """Return why an image of more pixels is not decoded."""
    return f"more than {limit:,} pixels; {MAX_PIXELS}=N in the environment raises the limit"


def is_tiff(data: bytes) -> bool:
    """Return whether a file is a TIFF file, by its first bytes."""
    return data.startswith(_TIFF)


def is_bands(data: bytes) -> bool:
    """Return whether ``decode_bands`` reads a file, by its first bytes."""
    return data.startswith(_NUMPY) or is_tiff(data)


def decode_bands(
    data: bytes, name: str, channels: int, value_range: Sequence[float] | None, limit: int | None
) -> np.ndarray:
    """Decode a NumPy array or a TIFF file of any number of bands.

    Args:
        data: The file. H x W x C, C x H x W, or H x W.
        name: What messages call it.
        channels: C.
        value_range: As for ``decode``: two numbers, or two for each channel.
        limit: Most pixels, H times W; None for no limit.

    Returns:
        uint8, H x W x C, or H x W for one channel.

    Raises:
        CannotDecode: The file is broken, of no known format, or larger than the limit.
        UserError: It has other channels or values outside of the range.
    """
    if data.startswith(_NUMPY):
        values = _read_numpy(data)
    elif is_tiff(data):
        values = _read_tiff(data, name, limit)
    else:
        raise CannotDecode("")
    values = with_channels(values, name, channels)
    if limit and values.shape[0] * values.shape[1] > limit:
        raise CannotDecode(too_large(limit))
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return 255 * values.astype(np.uint8)
    return to_8_bits(values, name, value_range, usual_range(values))


def _read_numpy(data: bytes) -> np.ndarray:
    """Read an array without trusting the size in its header; pickled objects are refused."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in "buif" or (dtype.kind == "i" and dtype.itemsize > 4):
        raise CannotDecode(f"an array of {dtype}; expected numbers of at most 32 bits")
    count = math.prod(shape)
    if count * dtype.itemsize > len(data) - file.tell():
        raise CannotDecode("")
    values = np.frombuffer(data, dtype, count, file.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def _read_tiff(data: bytes, name: str, limit: int | None) -> np.ndarray:
    """Read the first image of a TIFF file; bands may also be pages of one size."""
    import tifffile  # slow to import, and for few sets

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        shape = file.series[0].shape
        if limit and math.prod(shape) > MOST_CHANNELS * limit:
            raise CannotDecode(too_large(limit))
        try:
            return np.asarray(file.series[0].asarray())
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise UserError(f"{name} is a compressed TIFF ({error}); install imagecodecs") from error
            raise


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
        shape = " x ".join(map(str, values.shape))
        found = min(values.shape[0], values.shape[2]) if values.ndim == 3 else 0
        advice = f"; set {IN_CHANS}={found}" if 0 < found <= MOST_CHANNELS else ""
        raise UserError(f"{name} is an image of {shape}; expected {channels} channel{'s'[: channels > 1]}{advice}")
    return values[..., 0] if channels == 1 else values


def usual_range(values: np.ndarray) -> tuple[float, float]:
    """Return the values of an array that become black and white: 0 to 1 of floats, 0 to 65535 of integers."""
    return (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 65535.0)


def to_8_bits(
    values: np.ndarray, name: str, value_range: Sequence[float] | None, usual: tuple[float, float]
) -> np.ndarray:
    """Scale to uint8.

    Args:
        values: H x W, or H x W x C.
        name: What messages call the image.
        value_range: The values that become 0 and 255, those outside are clipped; two numbers, or two per channel.
        usual: The range where none is given.

    Raises:
        UserError: Values are not finite or, where no range is given, outside of the usual one.
    """
    low, high = float(values.min()), float(values.max())
    if value_range is not None:
        first, last = np.asarray(value_range, np.float64).reshape(-1, 2).T
    else:
        first, last = (np.array([bound]) for bound in usual)
    finite = np.isfinite(low) and np.isfinite(high)
    if not finite or (value_range is None and not usual[0] <= low <= high <= usual[1]):
        raise UserError(
            f"{name} has values from {low:g} to {high:g} ({values.dtype}); expected {first[0]:g} to {last[0]:g}, "
            "so give the range, such as data.value_range=[0,4095]"
        )
    scaled = (values.astype(np.float64) - first) * (255 / (last - first))
    image_8: np.ndarray = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return image_8
