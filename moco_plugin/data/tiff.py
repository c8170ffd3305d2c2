"""Reading of TIFF files as written by GDAL, ImageJ and microscopes."""

import io
import logging
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from moco_plugin.data.pixels import SIDEWAYS, CannotDecode, Pixels, check_pixels, check_scans, upright
from moco_plugin.errors import UserError, reason

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
MOST_PAGES = 4096
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
    names, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    sizes = dict(zip(names, shape, strict=True))
    rows = [axis for axis, count in sizes.items() if axis not in "YXS" and count > 1]
    if series.kind == "shaped" and len(rows) == 1 and sizes["X"] <= MOST_BANDS < min(sizes["Y"], sizes[rows[0]]):
        # tifffile writes H x W x C without a colour model as one page per row
        renamed = {rows[0]: "Y", "Y": "X", "X": rows[0]}
        names = "".join(renamed.get(axis, axis) for axis in names)
        sizes = dict(zip(names, shape, strict=True))
    height, width = sizes.pop("Y", 0), sizes.pop("X", 0)
    others = {axis: count for axis, count in sizes.items() if count > 1}
    count = int(np.prod(list(others.values()), dtype=object)) if others else 1
    across, down = page.tilewidth or 1, page.tilelength or 1
    padded = -(-width // across) * across, -(-height // down) * down
    check_pixels(padded[0], padded[1], count * max(1, page.tiledepth), max(1, page.bitspersample // 8))
    _check_whole(data, series, page)
    colours, bits = int(page.photometric), page.bitspersample
    samples, extra = page.samplesperpixel, [int(kind) for kind in page.extrasamples]
    opacity = bool(extra) and extra[-1] in (1, 2)
    pages = sum(count for axis, count in others.items() if axis != "S")
    plain = page.sampleformat == 1 and pages == 0 and (samples == 3 or colours != 2 or opacity)
    if plain and (colours, samples) in _PILLOWS and (bits <= 8 or (bits, colours) == (12, 1)):
        return None
    kinds = f"{_describe(others)}{width} x {height} pixels, {bits} bits, {_WORDS.get(colours, colours)}"
    what = f"{name} is a TIFF file of {kinds}"
    if len(others) > 1 or not height or not width:
        raise UserError(f"{what}; expected one image; write each image to a separate file")
    kind = None if page.dtype is None else page.dtype.kind
    if colours not in (0, 1, 2) or kind not in ("u", "i", "f") or (colours == 0 and kind != "u"):
        raise UserError(f"{what}, which is not supported; convert it to grey, RGB or bands of 8 or 16 bits")
    values = _values(file, data, series, page, what)
    axes = [axis for axis in names if axis in "YX" or axis in others]
    values = values.reshape([sizes.get(axis, height if axis == "Y" else width) for axis in axes])
    values = np.moveaxis(values, [axes.index("Y"), axes.index("X")], [0, 1]).reshape(height, width, -1)
    if colours == 0:
        values = np.iinfo(values.dtype).max - values
    usual, missing = None, None if values.dtype == np.uint8 else _without_data(values, page)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 4 and values.max() >= 1 << 16:
        usual = 0.0, float(np.iinfo(values.dtype).max)
    tag = page.tags.get(ORIENTATION)
    turn = tag and tag.value
    missing = None if missing is None else upright(missing, turn)
    return Pixels(upright(values, turn), opacity, colours != 1 or count - opacity == 1, usual, missing)


def tiff_size(data: bytes, name: str) -> tuple[int, int]:
    """Return width and height of a TIFF file's image, as stored."""
    page = _image(_open(data), name).keyframe
    turned = (tag := page.tags.get(ORIENTATION)) is not None and tag.value in SIDEWAYS
    return (page.imagelength, page.imagewidth) if turned else (page.imagewidth, page.imagelength)


def _open(data: bytes) -> "TiffFile":
    """Open a file after its chain of pages was checked; open no other files that its metadata name."""
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
            if code == SUBFILES and values > 32:
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


def _describe(others: dict[str, int]) -> str:
    return "".join(f"{count} {_AXES.get(axis, 'pages')} x " for axis, count in others.items())


def _check_whole(data: bytes, series: "TiffPageSeries", page: "TiffPage") -> None:
    """Raise CannotDecode if parts of the image are missing, which tifffile would leave black, or take too long."""
    total = 0
    for part in series.pages:
        if part is None:
            continue
        counts = part.databytecounts
        total += sum(counts)
        if any(offset + count > len(data) for offset, count in zip(part.dataoffsets, counts, strict=False)):
            raise CannotDecode("it is cut off")
        if (
            page.compression == 1
            and page.photometric != 6
            and all(counts)
            and sum(counts) * 8 < page.size * page.bitspersample
        ):
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


def _values(file: "TiffFile", data: bytes, series: "TiffPageSeries", page: "TiffPage", what: str) -> np.ndarray:
    """Return the values of an image as tifffile arranges them."""
    if page.compression in _BYTEWISE:
        if page.fillorder != 1:
            raise UserError(f"{what}, with its bits in reverse order, which is not supported; save it again")
        _unpack(file, data, series, page)
    try:
        return np.asarray(series.asarray())
    except (ValueError, ImportError) as error:
        if "imagecodecs" in str(error):
            raise UserError(
                f"{what}, compressed in a way that needs imagecodecs ({reason(error)}); install it"
            ) from error
        raise


def _unpack(file: "TiffFile", data: bytes, series: "TiffPageSeries", page: "TiffPage") -> None:
    """Decompress the strips or tiles of pages with libtiff, which never decompresses more than the image's size.

    They are appended to the file, so that tifffile finds them uncompressed and does not need imagecodecs.
    """
    values = page.samplesperpixel if page.planarconfig == 1 else 1
    width = page.tilewidth if page.is_tiled else page.imagewidth
    rows = page.tilelength * page.tiledepth if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    row = -(-width * values * page.bitspersample // 8)
    strips = -(-page.imagelength // rows)
    last = rows if page.is_tiled else page.imagelength - rows * (strips - 1)
    end = len(data)
    stream: Any = file.filehandle
    parts: list[Any] = [part for part in series.pages if part is not None]
    for part in parts:
        segments = list(zip(part.dataoffsets, part.databytecounts, strict=True))
        heights = [
            last if not page.is_tiled and index % strips == strips - 1 else rows for index in range(len(segments))
        ]
        offsets, counts = [0] * len(segments), [0] * len(segments)
        batch: list[int] = []
        for index, (_, count) in enumerate(segments):
            batch += [index] if count else []  # GDAL omits empty tiles
            full = len(batch) * rows * row >= _BLOCK or (batch and heights[index] != rows) or index + 1 == len(segments)
            if not batch or not full:
                continue
            packed = [data[slice(segments[i][0], sum(segments[i]))] for i in batch]
            total = sum(heights[i] for i in batch)
            content = _unpack_rows(packed, page.compression, row, rows, total)
            if page.predictor == 3:
                content = _undo_float_predictor(content, values, page.bitspersample // 8, file.byteorder)
            stream.seek(end)
            stream.write(content.tobytes())
            for i in batch:
                offsets[i], counts[i] = end, heights[i] * row
                end += counts[i]
            batch = []
        part.dataoffsets, part.databytecounts = tuple(offsets), tuple(counts)
    for part in parts:
        part.keyframe.compression = 1
        part.keyframe.predictor = 1 if page.predictor == 3 else page.predictor


def _unpack_rows(packed: list[bytes], compression: int, row: int, rows: int, height: int) -> np.ndarray:
    """Decompress rows of bytes, H x ``row``, which libtiff reads as strips of an 8-bit grey image."""
    count = len(packed)
    tags = 9
    data_start = 8 + 2 + 12 * tags + 4 + 8 * count
    offsets = np.cumsum([data_start, *(len(part) for part in packed)])[:-1]
    place = 8 + 2 + 12 * tags + 4
    directory = [
        (256, row),
        (257, height),
        (258, 8),
        (259, compression),
        (262, 1),
        (273, int(offsets[0]) if count == 1 else place),
        (277, 1),
        (278, rows),
        (279, len(packed[0]) if count == 1 else place + 4 * count),
    ]
    content = struct.pack("<2sHIH", b"II", 42, 8, tags)
    for code, value in directory:
        content += struct.pack("<HHII", code, 4, count if code in (273, 279) else 1, value)
    content += struct.pack(f"<I{2 * count}I", 0, *offsets.tolist(), *(len(part) for part in packed))
    with Image.open(io.BytesIO(content + b"".join(packed)), formats=["TIFF"]) as image:
        return np.asarray(image)


def _undo_float_predictor(rows: np.ndarray, values: int, itemsize: int, order: str) -> np.ndarray:
    """Undo TIFF's floating-point predictor: byte differences, with exponents first."""
    summed = rows.reshape(len(rows), -1, values).cumsum(axis=1, dtype=np.uint8)
    planes = summed.reshape(len(rows), itemsize, -1).swapaxes(1, 2)
    return np.ascontiguousarray(planes[..., ::-1] if order == "<" else planes)


def _without_data(values: np.ndarray, page: "TiffPage") -> np.ndarray | None:
    """Return a mask of pixels with GDAL's nodata value; None if there are none."""
    tag = page.tags.get(NODATA)
    try:
        nodata = np.nan if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None
    missing = np.isnan(values) if np.isnan(nodata) else values == nodata
    return missing if tag is not None and missing.any() else None
