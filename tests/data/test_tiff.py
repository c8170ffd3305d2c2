"""TIFF files as GDAL, ImageJ and microscopes write them, and hostile ones."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.datasets import load_sample_images

from moco_plugin.data.decode import CannotDecode, decode_array
from moco_plugin.errors import UserError

PHOTO = load_sample_images().images[0][100:170, 200:290]
GREY, DEEP = PHOTO[..., 0], PHOTO.astype(np.uint16) * 257
FLOAT = (PHOTO / 255).astype(np.float32)
PLANES = np.moveaxis(DEEP, 2, 0)
GREY_3 = np.repeat(GREY[..., None], 3, axis=2)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def opencv(array: np.ndarray, compression: int, predictor: int = 1) -> bytes:
    array = np.ascontiguousarray(array[..., ::-1] if array.ndim == 3 else array)
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
    return cv2.imencode(".tif", array, options)[1].tobytes()


def pillow(*images: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:], **options)
    return file.getvalue()


def pages(*arrays: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for array, options in arrays:
            writer.write(array, **{"metadata": None, **options})
    return file.getvalue()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize(("compression", "predictor"), [(None, False), ("zlib", False), ("zlib", True)])
def test_storage(byteorder: Any, tile: Any, compression: Any, predictor: bool) -> None:
    options = {"byteorder": byteorder, "tile": tile, "compression": compression, "predictor": predictor}
    rgb = {"photometric": "rgb", **options}
    images = {
        "8 bits": tiff(PHOTO, **rgb),
        "16 bits": tiff(DEEP, **rgb),
        "planes": tiff(PLANES, planarconfig="separate", **rgb),
        "planes of 8 bits": tiff(np.moveaxis(PHOTO, 2, 0), planarconfig="separate", **rgb),
        "without a colour model": tiff(DEEP, photometric="minisblack", planarconfig="contig", **options),
        "pages": tiff(PLANES, photometric="minisblack", **options),
        "alpha": tiff(np.dstack([DEEP, DEEP[..., :1]]), extrasamples=["unassalpha"], **rgb),
        "BigTIFF": tiff(DEEP, bigtiff=True, **rgb),
    }
    for name, data in images.items():
        assert np.array_equal(decode_array(data, "a"), PHOTO), name
    in_range = tiff(PHOTO.astype(np.uint16) * 16, **rgb)
    assert np.array_equal(decode_array(in_range, "a", [0, 4080]), PHOTO)
    white = tiff(65535 - DEEP[..., 0], photometric="miniswhite", **options)
    assert np.array_equal(decode_array(white, "a", channels=1), GREY)
    assert np.array_equal(decode_array(tiff(DEEP[..., 0], **options), "a"), GREY_3)
    if not tile:
        strips = tiff(DEEP[..., 0], rowsperstrip=7, **options)
        assert np.array_equal(decode_array(strips, "a", channels=1), GREY)


ARRANGED = {
    "rows": tiff(DEEP, photometric="minisblack"),
    **{f"LZW {p}": opencv(DEEP, 5, p) for p in (1, 2)},
    **{f"LZW float {p}": opencv(FLOAT, 5, p) for p in (1, 2, 3)},
    "PackBits": opencv(DEEP, 32773),
    "LZW pages": pillow(*(Image.fromarray(PHOTO[..., c]) for c in range(3)), compression="tiff_lzw"),
    "ImageJ": tiff(PLANES, imagej=True),
    "ImageJ's channels": tiff(PLANES, imagej=True, metadata={"axes": "CYX"}),
    "ImageJ's colours": tiff(PHOTO, imagej=True, photometric="rgb"),
    "OME": tiff(PLANES, ome=True, metadata={"axes": "CYX"}),
    "reduced copy": pages((DEEP, {"photometric": "rgb"}), (DEEP[::2, ::2], {"photometric": "rgb", "subfiletype": 1})),
    "mask": pages((DEEP, {"photometric": "rgb"}), (GREY > 9, {"subfiletype": 4})),
    "pyramid": pages(
        (DEEP, {"photometric": "rgb", "subifds": 1}), (DEEP[::2, ::2], {"photometric": "rgb", "subfiletype": 1})
    ),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_arrangements(name: str) -> None:
    assert np.array_equal(decode_array(ARRANGED[name], "a"), PHOTO)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bits_in_reverse_order(compression: Any) -> None:
    data = bytearray(tiff(DEEP[..., 0], compression=compression, extratags=[(255, 3, 1, 2, True)], rowsperstrip=20))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for start, count in zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True):
            bits = np.unpackbits(np.frombuffer(data[start : start + count], np.uint8)[:, None], axis=1)
            data[start : start + count] = np.packbits(bits[:, ::-1], axis=1).tobytes()
    place = data.index(struct.pack("<HHI", 255, 3, 1))
    data[place : place + 2] = struct.pack("<H", 266)  # FillOrder, which tifffile does not write
    assert np.array_equal(decode_array(bytes(data), "a", channels=1), GREY)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(orientation: int) -> None:
    tags = {"photometric": "rgb", "extratags": [(274, 3, 1, orientation, True)]}
    assert np.array_equal(decode_array(tiff(DEEP, **tags), "a"), decode_array(tiff(PHOTO, **tags), "a"))


def test_colour_models() -> None:
    for mode, tolerance in {"P": 0, "CMYK": 2, "1": 0, "LA": 0}.items():
        image = Image.fromarray(PHOTO).convert(mode)
        expected = np.asarray(image.convert("RGB"), dtype=int)
        for compression in (None, "tiff_lzw"):
            assert np.abs(decode_array(pillow(image, compression=compression), "a") - expected).max() <= tolerance


@pytest.mark.parametrize("nodata", [-9999, np.nan])
def test_pixels_without_data_are_black(nodata: float) -> None:
    values, expected = FLOAT.copy(), PHOTO.copy()
    values[:3], expected[:3] = nodata, 0
    data = tiff(values, photometric="rgb", extratags=[(42113, 2, 0, str(nodata), True)])
    assert np.array_equal(decode_array(data, "a"), expected)


FIVE = np.concatenate([PLANES, PLANES[:2]])
REFUSED = {
    "5 pages": (tiff(FIVE, photometric="minisblack"), "70 x 90 x 5; expected 3 channels; set backbone_args.in_chans=5"),
    "5 slices": (tiff(FIVE, imagej=True), "70 x 90 x 5; expected 3 channels"),
    "a fourth band": (
        tiff(np.dstack([DEEP, DEEP[..., :1]]), photometric="rgb", extrasamples=["unspecified"]),
        "70 x 90 x 4; expected 3 channels",
    ),
    "hyperstack": (
        tiff(np.zeros((2, 3, 2, 20, 30), np.uint16), imagej=True),
        "2 times x 3 depths x 2 channels x 30 x 20 pixels, 16 bits, grey; expected one image",
    ),
    "stack of stacks": (
        tiff(np.zeros((2, 3, 20, 30), np.uint16), photometric="minisblack"),
        "2 pages x 3 pages x 30 x 20 pixels, 16 bits, grey; expected one image",
    ),
    "sizes": (
        pages((DEEP, {"photometric": "rgb"}), (DEEP[:20], {"photometric": "rgb"})),
        r"2 pages of different kinds \(90 x 70, 90 x 20 pixels\); expected one image",
    ),
    "photographs": (
        pillow(Image.fromarray(PHOTO), Image.fromarray(PHOTO)),
        "2 pages x 3 samples x 90 x 70 pixels, 8 bits, RGB; expected one image",
    ),
    "complex": (tiff(PHOTO.astype(np.complex64)), "64 bits, RGB, which is not supported"),
    "JPEG pages": (
        pillow(*(Image.fromarray(PHOTO[..., c]) for c in range(3)), compression="jpeg"),
        "in a way that needs imagecodecs",
    ),
    "not a number": (tiff(np.full((2, 2), np.nan, np.float32)), "values from nan to nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_files_are_described(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(UserError, match=f"a.tif (is|has) .*{message}"):
        decode_array(data, "a.tif", [0, 1] if "nan" in message else None)


def header(
    width: int,
    height: int,
    compression: int = 8,
    samples: int = 1,
    body: bytes = b"x",
    bits: int = 16,
    strips: int = 1,
    more: tuple[tuple[int, int, int], ...] = (),
) -> bytes:
    """Return a file; several strips are the same bytes. ``more`` are code, count and value of further tags."""
    start = 122 + 12 * len(more)
    tables = struct.pack(f"<{strips}I", *strips * [start + 8 * strips]) + struct.pack(
        f"<{strips}I", *strips * [len(body)]
    )
    places = (start, start + 4 * strips) if strips > 1 else (start, len(body))
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: places[0], 277: samples}
    tags |= {278: height // strips, 279: places[1]}
    rows = [(code, strips if code in (273, 279) else 1, value) for code, value in tags.items()]
    content = struct.pack("<2sHIH", b"II", 42, 8, len(rows) + len(more))
    for code, count, value in (*rows, *more):
        content += struct.pack("<HHII", code, 4, count, value)
    return content + struct.pack("<I", 0) + (tables if strips > 1 else b"") + body


def test_bounds_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    many = io.BytesIO()
    Image.fromarray(GREY).save(many, "JPEG", progressive=True)
    jpeg = many.getvalue()
    jpeg = jpeg[:-2] + 110 * jpeg[jpeg.rfind(b"\xff\xda") : -2] + jpeg[-2:]
    monkeypatch.setattr("moco_plugin.data.tiff.MOST_LZMA", 10)
    cases = {
        "MOCO_MAX_PIXELS": header(16, 65536, more=((322, 1, 1 << 20), (323, 1, 16))),  # tiles of 65536 x the width
        "strips or tiles overlap": header(64, 64, strips=64, body=bytes(1 << 16)),
        "2097152 strips": header(64, 64, more=((324, 1 << 21, 0),)),
        "values overlap": header(64, 64, more=((40000, 1 << 19, 0),)),
        "scans, which take too long": header(90, 70, compression=7, bits=8, body=jpeg),
        "bytes of LZMA": header(64, 64, compression=34925, body=bytes(20)),
    }
    for message, data in cases.items():
        with pytest.raises(CannotDecode, match=message):
            decode_array(data, "a", channels=1)


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, samples in ((60000, 1), (1 << 31, 1), (10000, 60000), (10000, 300)):
        with pytest.raises(CannotDecode, match="MOCO_MAX_PIXELS"):
            decode_array(header(width, width, samples=samples), "a", channels=samples)
    with pytest.raises(CannotDecode, match="cut off"):
        decode_array(header(100, 100, compression=1), "a", channels=1)
    bomb = zlib.compress(bytes(1 << 28), 9)
    assert decode_array(header(100, 100, body=bomb), "a", channels=1).shape == (100, 100)
    circle = bytearray(tiff(DEEP, photometric="rgb", metadata=None))
    offset = struct.unpack_from("<I", circle, 4)[0]
    struct.pack_into("<I", circle, offset + 2 + 12 * struct.unpack_from("<H", circle, offset)[0], offset)
    with pytest.raises(CannotDecode, match="cycle"):
        decode_array(bytes(circle), "a")
    with pytest.raises(CannotDecode, match="pages"):
        decode_array(tiff(np.zeros((4100, 1, 1), np.uint16), metadata=None, photometric="minisblack"), "a")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("image", [PHOTO, DEEP], ids=["8 bits", "16 bits"])
def test_cut_off(compression: Any, image: np.ndarray) -> None:
    data = tiff(image, photometric="rgb", compression=compression, rowsperstrip=10)
    for length in (9, len(data) // 3, len(data) // 2, len(data) - 7):
        with pytest.raises(CannotDecode):
            decode_array(data[:length], "a")
