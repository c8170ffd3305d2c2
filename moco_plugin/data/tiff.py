"""Reading of TIFF files as written by GDAL, ImageJ and microscopes."""

import io
import itertools
import logging
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from moco_plugin.data.pixels import CannotDecode, Pixels, check_pixels, check_scans, upright
from moco_plugin.errors import UserError, reason

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
MOST_PAGES, MOST_SUBFILES = 4096, 32
MOST_STRIPS = 1 << 20  # or tiles, of a page
MOST_LZMA = 1 << 28  # bytes, at about 20 MB a second
ORIENTATION, NODATA, SUBFILES = 274, 42113, 330
MOST_BANDS = 16  # of an array that tifffile wrote as pages of rows
_KEPT = {"imagej", "shaped", "stk"}  # formats that tifffile reads whole; others open further files or drop pages
_BYTEWISE = (5, 8, 32946, 32773, 34925, 50000)  # LZW, deflate (two codes), PackBits, LZMA, zstd: codecs of plain bytes
_BLOCK = 1 << 26  # bytes that libtiff unpacks at once
_SPARE = 1 << 20  # bytes that values and strips may share
_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # of types of values; others 1
_EXIF = (34665, 34853, 40965)  # pages of metadata
_AXES = {"S": "samples", "C": "channels", "Z": "depths", "T": "times"}
_PILLOWS = {(0, 1), (1, 1), (2, 3), (2, 4), (3, 1), (5, 4), (6, 3), (8, 3)}  # colour models and samples: grey to CIELAB
_WORDS = {0: "white is 0", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}


def tiff_pixels(data: bytes, name: str) -> Pixels | None:
    """Read a TIFF file of one image, with bands as samples, planes or pages of equal size.

    Reduced copies and masks are ignored.

    Returns:
        The image, or None if Pillow can read it: at most 8 bits (12 if grey) and a known colour model.

    Raises:
        CannotDecode: The file is broken or too large.
        UserError: It contains several images, or a kind of image that is not supported.
    """
    file = _open(data)
    series = _image(file, name)
    page = series.keyframe
    axes, shape = _axes(series), series.get_shape(squeeze=False)
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    others = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis not in "YX" and size > 1]
    count = int(np.prod([size for _, size in others], dtype=object))
    across, down = page.tilewidth or 1, page.tilelength or 1
    padded = -(-width // across) * across, -(-height // down) * down
    check_pixels(*padded, count * max(1, page.tiledepth), max(1, page.bitspersample // 8))
    _check_whole(data, series, page)
    colours, bits, samples = int(page.photometric), page.bitspersample, page.samplesperpixel
    opacity = len(page.extrasamples) > 0 and int(page.extrasamples[-1]) in (1, 2)
    pillows = (colours, samples) in _PILLOWS and (samples < 4 or colours != 2 or opacity)
    pages = any(axis != "S" for axis, _ in others)
    if pillows and not pages and page.sampleformat == 1 and (bits <= 8 or (bits, colours) == (12, 1)):
        return None
    sizes = "".join(f"{size} {_AXES.get(axis, 'pages')} x " for axis, size in others)
    what = f"{name} is a TIFF file of {sizes}{width} x {height} pixels, {bits} bits, {_WORDS.get(colours, colours)}"
    if len(others) > 1:
        raise UserError(f"{what}; expected one image; write each image to a separate file")
    kind = None if page.dtype is None else page.dtype.kind
    if colours not in (0, 1, 2) or kind not in ("u", "i", "f") or (colours == 0 and kind != "u"):
        raise UserError(f"{what}, which is not supported; convert it to grey, RGB or bands of 8 or 16 bits")
    if page.compression in _BYTEWISE:
        _unpack(file, data, series, page)
    try:
        values = np.asarray(series.asarray()).reshape(shape)
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise UserError(f"{what}, compressed in a way that needs imagecodecs ({reason(error)}); install it") from error
    values = np.moveaxis(values, [axes.index("Y"), axes.index("X")], [0, 1]).reshape(height, width, -1)
    if colours == 0:
        values = np.iinfo(values.dtype).max - values
    usual, missing = None, None if values.dtype == np.uint8 else _without_data(values, page)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 4 and values.max() >= 1 << 16:
        usual = 0.0, float(np.iinfo(values.dtype).max)
    turn = page.tags.valueof(ORIENTATION)
    missing = None if missing is None else upright(missing, turn)
    return Pixels(upright(values, turn), opacity, colours != 1 or count - opacity == 1, usual, missing)


def _open(data: bytes) -> "TiffFile":
    """Open a file, but no other files that its metadata name.

    Raises:
        CannotDecode: Its pages form a cycle, are broken, or are more than ``MOST_PAGES``; or its values overlap.
    """
    import tifffile  # slow to import, and rarely needed

    _check_directories(data)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs many lines about broken files
    others: Any = {f"is_{flag}": False for flag in tifffile.TIFF.FILE_FLAGS - _KEPT}
    return tifffile.TiffFile(io.BytesIO(data), **others)


def _check_directories(data: bytes) -> None:
    """Raise CannotDecode if the pages form a cycle, are broken or too many, or if values or strips share bytes."""
    order, big = "<>"[data[:1] == b"M"], data[2:4].strip(b"\0") == b"+"
    count_format, entry, offset_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    seen: set[int] = set()
    total = 0
    waiting = [*struct.unpack_from(order + offset_format, data, 8 if big else 4)]
    while waiting:
        offset = waiting.pop()
        if not offset:
            continue
        if offset in seen or len(seen) >= MOST_PAGES:
            raise CannotDecode(f"more than {MOST_PAGES} pages" if offset not in seen else "its pages form a cycle")
        seen.add(offset)
        (count,) = struct.unpack_from(order + count_format, data, offset)
        start = offset + struct.calcsize(count_format)
        if count > 1000 or start + count * entry > len(data):
            raise CannotDecode("it is cut off or damaged")
        for place in range(start, start + count * entry, entry):
            code, kind, values = struct.unpack_from(order + "HH" + offset_format, data, place)
            total += values * _SIZES.get(kind, 1)
            if code in (273, 324) and values > MOST_STRIPS:
                raise CannotDecode(f"{values} strips or tiles, more than {MOST_STRIPS}")
            if code == SUBFILES and values > MOST_SUBFILES:
                raise CannotDecode(f"a page of {values} smaller ones")
            if code in _EXIF or (code == SUBFILES and values == 1):
                waiting += struct.unpack_from(order + offset_format, data, place + (12 if big else 8))
        if total > len(data) + _SPARE:
            raise CannotDecode("its values overlap")
        waiting += struct.unpack_from(order + offset_format, data, start + count * entry)


def _image(file: "TiffFile", name: str) -> "TiffPageSeries":
    """Return the single image of a file, ignoring smaller copies and masks."""
    series = file.series
    whole = [part for part in series if not (part.keyframe.is_reduced or part.keyframe.is_mask)] or series[:1]
    if len(whole) != 1:
        sizes = dict.fromkeys(f"{part.keyframe.imagewidth} x {part.keyframe.imagelength}" for part in whole)
        raise UserError(
            f"{name} is a TIFF file of {len(file.pages)} pages of different kinds ({', '.join([*sizes][:4])} pixels); "
            "expected one image; write each image to a separate file"
        )
    return whole[0]


def _axes(series: "TiffPageSeries") -> str:
    """Return a letter for each axis: Y, X, S (samples) and others for pages."""
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    large = [axis for axis, size in zip(axes, shape, strict=True) if size > MOST_BANDS]
    if (
        series.kind == "shaped"
        and len(large) == 2
        and large[1] == "Y"
        and large[0] != "S"
        and axes.count(large[0]) == 1
    ):
        # tifffile writes H x W x C without a colour model as one page per row
        return axes.translate(str.maketrans(f"{large[0]}YX", f"YX{large[0]}"))
    return axes


def _pages(series: "TiffPageSeries") -> list[Any]:
    return [page for page in series.pages if page is not None]


def _check_whole(data: bytes, series: "TiffPageSeries", page: "TiffPage") -> None:
    """Raise CannotDecode if parts of the image are missing, which tifffile would leave black, or take too long."""
    size = -(-page.size * page.bitspersample // 8) if page.compression == 1 and page.photometric != 6 else 0
    total = 0
    for part in _pages(series):
        counts = part.databytecounts
        total += sum(counts)
        ends = (offset + count for offset, count in zip(part.dataoffsets, counts, strict=False))
        if max(ends, default=0) > len(data) or (all(counts) and sum(counts) < size):
            raise CannotDecode("it is cut off")
    if total > len(data) + _SPARE:
        raise CannotDecode("its strips or tiles overlap")
    if page.compression == 34925 and total > MOST_LZMA:
        raise CannotDecode(f"{total:,} bytes of LZMA, more than {MOST_LZMA:,}; save it with another compression")
    if page.compression in (6, 7):
        strips = zip(page.dataoffsets, page.databytecounts, strict=False)
        scans = max((data.count(b"\xff\xda", start, start + count) for start, count in strips), default=0)
        check_scans(scans, page.imagewidth * page.imagelength)
    if len(series.pages) == 1 and series.dataoffset is not None and series.dataoffset + series.nbytes > len(data):
        raise CannotDecode("it is cut off")


def _unpack(file: "TiffFile", data: bytes, series: "TiffPageSeries", page: "TiffPage") -> None:
    """Decompress the strips or tiles of pages with libtiff, which never decompresses more than the image's size.

    They are appended to the file, so that tifffile finds them uncompressed and does not need imagecodecs.
    """
    values = page.samplesperpixel if page.planarconfig == 1 else 1
    width = page.tilewidth if page.is_tiled else page.imagewidth
    rows = page.tilelength * page.tiledepth if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    row = -(-width * values * page.bitspersample // 8)
    strips = len(page.dataoffsets) if page.is_tiled else -(-page.imagelength // rows)  # of a plane
    last = rows if page.is_tiled else page.imagelength - rows * (strips - 1)
    step = max(1, _BLOCK // (rows * row))
    stream: Any = file.filehandle
    end = len(data)
    for part in _pages(series):
        segments = list(zip(part.dataoffsets, part.databytecounts, strict=True))
        offsets, counts = [0] * len(segments), [0] * len(segments)
        for _, group in itertools.groupby(range(len(segments)), lambda i: (i // strips, i % strips // step)):
            chosen = [i for i in group if segments[i][1]]  # GDAL omits empty tiles
            heights = [last if i % strips == strips - 1 else rows for i in chosen]
            packed = [data[offset : offset + count] for offset, count in (segments[i] for i in chosen)]
            if not packed:
                continue
            content = _unpack_rows(packed, page, row, rows, sum(heights))
            if page.predictor == 3:
                content = _undo_float_predictor(content, values, page.bitspersample // 8, file.byteorder)
            stream.seek(end)
            stream.write(content.data)
            for i, height in zip(chosen, heights, strict=True):
                offsets[i], counts[i] = end, height * row
                end += counts[i]
        part.dataoffsets, part.databytecounts = tuple(offsets), tuple(counts)
    for part in _pages(series):
        part.keyframe.compression, part.keyframe.fillorder = 1, 1
        part.keyframe.predictor = 1 if page.predictor == 3 else page.predictor


def _unpack_rows(packed: list[bytes], page: "TiffPage", row: int, rows: int, height: int) -> np.ndarray:
    """Decompress rows of bytes, H x ``row``, which libtiff reads as strips of an 8-bit grey image."""
    count, sizes = len(packed), list(map(len, packed))
    end = 8 + 2 + 12 * 10 + 4  # of the directory of ten tags
    offsets = (end + 8 * count + np.cumsum([0, *sizes[:-1]])).tolist()
    where, how_large = (offsets[0], sizes[0]) if count == 1 else (end, end + 4 * count)
    tags = {256: row, 257: height, 258: 8, 259: page.compression, 262: 1, 266: page.fillorder, 273: where, 277: 1}
    content = struct.pack("<2sHIH", b"II", 42, 8, 10)
    for code, value in {**tags, 278: rows, 279: how_large}.items():
        content += struct.pack("<HHII", code, 4, count if code in (273, 279) else 1, value)
    content += struct.pack(f"<I{2 * count}I", 0, *offsets, *sizes) + b"".join(packed)
    with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
        return np.asarray(image)


def _undo_float_predictor(rows: np.ndarray, values: int, itemsize: int, order: str) -> np.ndarray:
    """Undo TIFF's floating-point predictor: byte differences, with exponents first."""
    summed = rows.reshape(len(rows), -1, values).cumsum(axis=1, dtype=np.uint8)
    planes = summed.reshape(len(rows), itemsize, -1).swapaxes(1, 2)
    return np.ascontiguousarray(planes[..., ::-1] if order == "<" else planes)


def _without_data(values: np.ndarray, page: "TiffPage") -> np.ndarray | None:
    """Return a mask of pixels with GDAL's nodata value; None if there are none."""
    try:
        nodata = float(page.tags.valueof(NODATA, "").strip("\0 "))
    except (AttributeError, ValueError):
        return None
    missing = np.isnan(values) if np.isnan(nodata) else values == nodata
    return missing if missing.any() else None
