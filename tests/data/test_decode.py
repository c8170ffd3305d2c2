"""Image files: deep, hidden, linked, rotated, large and broken."""

import io
import os
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from moco_plugin.data import decode as module
from moco_plugin.data.decode import CannotDecode, decode, decode_array, decode_labels
from moco_plugin.data.images import ImageSet
from moco_plugin.data.listing import image_files
from moco_plugin.errors import UserError
from tests.helpers.image_sets import save_images

PHOTO = load_sample_images().images[0]
RAMP = np.tile(np.arange(205, dtype=np.uint8), (3, 1))  # mean 102
DEEP = {
    "16.png": RAMP.astype(np.uint16) * 257,
    "16.tif": RAMP.astype(np.uint16) * 257,
    "big_endian.tif": (RAMP.astype(np.uint16) * 257).astype(">u2"),
    "16.pgm": RAMP.astype(np.uint16) * 257,
    "32_of_16.tif": RAMP.astype(np.int32) * 257,
    "32.tif": RAMP.astype(np.int32) * 8421504,
    "float.tif": RAMP.astype(np.float32) / 255,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_look_as_in_8_bits(name: str, tmp_path: Path) -> None:
    Image.fromarray(DEEP[name]).save(tmp_path / name)
    image = ImageSet(str(tmp_path)).load(0)
    assert image is not None and image.mode == "RGB"
    assert np.abs(np.asarray(image, dtype=int) - RAMP[..., None]).max() <= 1
    assert np.asarray(image).mean() == pytest.approx(102, abs=0.5)


def test_range_is_given_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "12_bits.png"
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(path)
    image = ImageSet(str(tmp_path), [0, 4080]).load(0)
    assert np.abs(np.asarray(image, dtype=int)[..., 0] - RAMP).max() <= 1
    for values, shown in (
        (RAMP.astype(np.float32), "from 0 to 204"),
        (-RAMP.astype(np.int32) * 70000, r"from -1.428e\+07 to 0"),
    ):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(
            UserError, match=rf"a.tif has values {shown} \((float32|int32)\); expected 0 to .*value_range"
        ):
            decode(tmp_path / "a.tif", str(tmp_path / "a.tif"))
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="from nan to nan"):
        decode(tmp_path / "a.tif", "a.tif", [0, 1])


def test_hidden_linked_and_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "photos"
    names = "cat/a.jpg cat/b.jfif dog/c.gif dog/d.avif dog/e.jpe".split()
    save_images(root, *names)
    for name in (".hidden/x.jpg", "__MACOSX/._a.jpg", ".ipynb_checkpoints/a.jpg", "cat/._a.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "dog" / "notes.TXT").write_text("")
    (root / "dog" / "list.json").write_text("")
    (root / "cat" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "cat")
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "moved.jpg").symlink_to("nowhere")
    images = ImageSet(str(root))
    assert [path.relative_to(root).as_posix() for path in images.paths] == names
    assert images.classes == ("cat", "dog") and all(images.load(i) is not None for i in range(5))
    assert (
        capsys.readouterr().err
        == f"{root}: 5 images; left out 4 other files (1 .json, 1 .txt, 1 broken link, 1 special file)\n"
    )
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "one").symlink_to(root / "cat")
    assert [path.name for path in image_files(linked)] == ["a.jpg", "b.jfif", "c.gif", "d.avif", "e.jpe"]


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif", "a").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("factor", [1, 257], ids=["8 bits", "16 bits"])
def test_orientation(factor: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    image = RAMP if factor == 1 else RAMP.astype(np.uint16) * factor
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode_array(tmp_path / "a.png", "a", channels=1), np.rot90(RAMP, -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".npy", ".tif", ".planes.tif"])
def test_pixel_limit(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, PHOTO)
    elif suffix == ".planes.tif":
        tifffile.imwrite(path, np.moveaxis(PHOTO, 2, 0).astype(np.uint16), photometric="minisblack")
    else:
        Image.fromarray(PHOTO).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("MOCO_MAX_PIXELS", "1000")
    found = "640 x 427 pixels, more than 1,000; MOCO_MAX_PIXELS=N in the environment raises the limit"
    images = ImageSet(str(tmp_path))
    assert images.try_load(0) == (None, f"{path} ({found})")
    monkeypatch.setenv("MOCO_MAX_PIXELS", "300000")
    assert images.load(0) is not None


def test_errors_of_missing_and_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 100)).save(path)
    for name in ("none.png", "none.jpg"):
        with pytest.raises(UserError, match=rf"{name} cannot be read \(No such file"):
            decode(tmp_path / name, name)

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module.Image, "open", broken)
    assert ImageSet(str(tmp_path)).try_load(0) == (None, str(path))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"exif": 6}, {"exif": 7}])
def test_jpeg_arrays_are_pillows(mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    if orientation := options.get("exif"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"exif": exif}
    path = tmp_path / "a.jpg"
    Image.fromarray(PHOTO).resize((90, 61)).convert(mode).save(path, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    for source in (path, path.read_bytes()):
        array = decode_array(source, "a")
        assert array.ndim == (2 if mode == "L" else 3) and array.shape[:2] == expected.shape[:2]
        assert np.array_equal(array if mode != "L" else np.repeat(array[..., None], 3, axis=2), expected)


def test_jpeg_arrays_of_other_sizes_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PHOTO).save(path)
    assert decode_array(path, "a", shrink=lambda width, height: 4).shape == (107, 160, 3)
    data = path.read_bytes()
    assert np.array_equal(decode_array(data + b"trailer", "a"), decode_array(data, "a"))
    for broken in (data[:-1], data[: len(data) // 2], data[:3], b"", b"\xff\xd8\xff\xc0"):
        with pytest.raises(CannotDecode):
            decode_array(broken, "a")


def encoded(suffix: str, array: np.ndarray, *options: int) -> bytes:
    colours = np.ascontiguousarray(array[..., ::-1] if array.ndim == 3 else array)
    return cv2.imencode(suffix, colours, options)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".jp2"])
@pytest.mark.parametrize("grey", [False, True])
def test_16_bits_a_channel(suffix: str, grey: bool) -> None:
    image = PHOTO[:60, :80, 0] if grey else PHOTO[:60, :80]
    options = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000) if suffix == ".jp2" else ()
    expected = np.repeat(image[..., None], 3, axis=2) if grey else image
    for factor, value_range in ((257, None), (16, [0, 4080])):
        data = encoded(".pgm" if suffix == ".ppm" and grey else suffix, image.astype(np.uint16) * factor, *options)
        assert np.array_equal(decode_array(data, "a", value_range), expected)
        assert np.array_equal(np.asarray(decode(data, "a", value_range)), expected)


def test_netpbm_says_its_depth() -> None:
    values = (np.arange(6).reshape(1, 6) * 819).astype(">u2")  # to 4095
    array = decode_array(b"P5 # a comment\n6 1\n4095\n" + values.tobytes(), "a", channels=1)
    assert array.tolist() == [[0, 51, 102, 153, 204, 255]]


def test_many_scans_are_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    scan = data[data.rfind(b"\xff\xda") : -2]
    with pytest.raises(CannotDecode, match="110 scans, which take too long"):
        decode_array(data[:-2] + 100 * scan + data[-2:], "a")


def test_files_of_many_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {}
    for kind in ("JPEG", "GIF", "PPM", "PNG", "JPEG2000", "AVIF"):
        Image.effect_noise((64, 64), 80).save(file := io.BytesIO(), kind)
        images[kind] = file.getvalue()
        decode_array(images[kind], "a")
    monkeypatch.setattr("moco_plugin.data.decode.MOST_READS", 20_000)
    monkeypatch.setattr("moco_plugin.data.decode.MOST_SLOW", 100)
    gif, png, jpeg = images["GIF"], images["PNG"], images["JPEG"]
    comments = gif[:781] + 5000 * b"!\xfe\1a\0" + gif[781:]  # after the colours
    chunks = png[:33] + 5000 * (b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")) + png[33:]
    segments = jpeg[:2] + 200_000 * b"\xff\xe5\0\2" + jpeg[2:]
    plain = b"P2 #" + 30_000 * b"x" + b"\n200 200 255\n" + 40_000 * b"1 "
    for data in (comments, chunks, segments, plain):
        with pytest.raises(CannotDecode, match="parts that take too long"):
            decode_array(data, "a")
    for kind in ("JPEG2000", "AVIF"):
        with pytest.raises(CannotDecode, match=f"bytes of {kind}, more than 100"):
            decode_array(images[kind], "a")


def test_check_finds_images_that_are_cut_off(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "a.gif", "a.npy"):
        path = tmp_path / name
        if name == "a.npy":
            np.save(path, PHOTO)
        else:
            Image.fromarray(PHOTO).save(path)
        assert decode_array(path, name).shape == (427, 640, 3)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CannotDecode):
            decode_array(path, name)


def test_labels(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) // 2
    deep = labels.astype(np.uint16) + 1000
    palette = Image.fromarray(labels).convert("P")
    cases = {
        "grey.png": (Image.fromarray(labels), labels),
        "palette.png": (palette, np.array(palette)),
        "1.png": (Image.fromarray(labels > 2), labels > 2),
        "deep.png": (Image.fromarray(deep), deep),
        "deep.tif": (Image.fromarray(deep), deep),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        decoded = decode_labels(tmp_path / name)
        assert decoded.dtype.kind in "ui" and np.array_equal(decoded, expected), name
    for image in (Image.fromarray(np.full((2, 2), np.nan, np.float32)), Image.new("RGB", (2, 2))):
        image.save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"label image .*a\.tif is an array of 2 x 2"):
            decode_labels(tmp_path / "a.tif")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    """Pillow passes it to another program, regardless of the file's name."""
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(CannotDecode):
        decode(page, "a.jpg")


def test_splits_and_kaggles_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    save_images(root, *"train/n1/a.JPEG train/n2/b.JPEG val/v_1.JPEG val/v_2.JPEG".split())
    assert len(ImageSet(str(root))) == 4
    assert len(ImageSet(str(tmp_path))) == 4
    said = f"{root} contains the splits train, val; all images are used; give {root}/train for one split"
    assert capsys.readouterr().err.count(said) == 2
    assert ImageSet(str(root / "val")).labels is None
    rows = "ImageId,PredictionString\nv_2,n1 85 1 499 272\nv_1,n2 1 2 3 4 n2 5 6 7 8\n"
    (tmp_path / "LOC_val_solution.csv").write_text(rows)
    val = ImageSet(str(root / "val"))
    assert val.classes == ("n1", "n2") == ImageSet(str(root / "train")).classes
    assert val.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("flags", "bits"), [(0x40, 10), (0x60, 12)])
def test_range_of_a_format_of_which_8_bits_are_read(flags: int, bits: int) -> None:
    Image.new("RGB", (64, 48), "red").save(stream := io.BytesIO(), "AVIF")
    data = bytearray(stream.getvalue())
    decode_array(bytes(data), "a.avif", (0, 100))
    data[data.index(b"av1C") + 6] |= flags
    with pytest.raises(UserError, match=f"a.avif is an AVIF or HEIC image of {bits} bits, of which 8 are read"):
        decode_array(bytes(data), "a.avif", (0, 1023))
