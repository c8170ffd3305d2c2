"""Images of one, four and thirteen channels, from file to converted checkpoint."""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.data.decode import decode_array
from moco_plugin.data.images import ImageSet
from moco_plugin.data.pixels import CannotDecode
from moco_plugin.data.source import ArraySource
from moco_plugin.data.statistics import measure_statistics
from moco_plugin.data.views import Views
from moco_plugin.errors import UserError
from tests.conftest import TRAIN
from tests.helpers.processes import Tool

PHOTO = load_sample_images().images[0][:200, :300]
SIZE = 64
TIFF = partial(tifffile.imwrite, photometric="minisblack")


def bands(channels: int) -> np.ndarray:
    """A photograph with its colours repeated, each repetition shifted, H x W x C (H x W for one)."""
    parts = [np.roll(PHOTO, 7 * turn, axis=1) for turn in range(-(-channels // 3))]
    array = np.concatenate(parts, axis=2)[..., :channels]
    return array[..., 0] if channels == 1 else array


KINDS: dict[str, Callable[..., Any]] = {
    "npy": np.save,
    "npy, channels first": lambda file, array: np.save(file, np.moveaxis(array, 2, 0)),
    "npy, Fortran": lambda file, array: np.save(file, np.asfortranarray(array)),
    "planar tiff": lambda file, array: TIFF(file, np.moveaxis(array, 2, 0), planarconfig="separate"),
    "deflated tiff": lambda file, array: TIFF(file, array, planarconfig="contig", compression="zlib"),
    "tiff of pages": lambda file, array: TIFF(file, np.moveaxis(array, 2, 0)),
}


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    KINDS[kind](file, array)
    return file.getvalue()


@pytest.mark.parametrize("channels", [2, 4, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_bands(kind: str, channels: int) -> None:
    array = bands(channels)
    assert np.array_equal(decode_array(encoded(array, kind), "a", channels=channels), array)
    deep = array.astype(np.uint16) * 10
    scaled = decode_array(encoded(deep, kind), "a", [0, 2550], channels=channels)
    assert np.array_equal(scaled, array)


def test_each_channel_has_its_range() -> None:
    array = bands(2).astype(np.float32)
    array[..., 1] = 100 + 2 * array[..., 1]
    scaled = decode_array(encoded(array, "npy"), "a", [0, 255, 100, 610], channels=2)
    assert np.array_equal(scaled, bands(2))
    with pytest.raises(UserError, match=r"a has values from 0 to 6\d\d \(float32\); expected 0 to 1, .*value_range"):
        decode_array(encoded(array, "npy"), "a", channels=2)


@pytest.mark.parametrize("suffix", [".png", ".npy", ".tif", ".jpg"])
def test_one_channel_is_grey(suffix: str, tmp_path: Path) -> None:
    grey = bands(1)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, grey)
    else:
        Image.fromarray(grey).save(path, quality=95)
    image = ImageSet(str(tmp_path), channels=1).load(0)
    assert isinstance(image, Image.Image) and image.mode == "L"
    assert np.abs(np.asarray(image).astype(int) - grey).mean() < 2
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    colour = ImageSet(str(tmp_path), channels=1).load(1)
    assert np.array_equal(np.asarray(colour), np.asarray(Image.fromarray(PHOTO).convert("L")))


def test_four_channels_of_a_png_and_refusal_of_others(tmp_path: Path) -> None:
    Image.fromarray(bands(4)).save(tmp_path / "rgba.png")
    image = ImageSet(str(tmp_path), channels=4).load(0)
    assert isinstance(image, torch.Tensor) and np.array_equal(image.permute(1, 2, 0).numpy(), bands(4))
    TIFF(tmp_path / "a.tif", bands(13), planarconfig="contig")
    sentence = r"a\.tif is an image of 200 x 300 x 13; expected 3 channels; set backbone_args\.in_chans=13"
    with pytest.raises(UserError, match=sentence):
        ImageSet(str(tmp_path)).load(0)
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png is an image of 200 x 300 x 3; expected 4 channels.*in_chans=3"):
        ImageSet(str(tmp_path), channels=4).load(1)
    with pytest.raises(UserError, match=r"image 1 is an image of 28 x 28 x 1; expected 4 channels.*in_chans=1"):
        ImageSet(f"{TRAIN}[0:2]", channels=4).load(1)


def test_hostile_arrays(tmp_path: Path) -> None:
    huge = encoded(bands(4), "npy").replace(b"(200, 300, 4)", b"(2000000000, 300, 4)")
    objects = io.BytesIO()
    np.save(objects, np.array([[{"a": 1}]]), allow_pickle=True)
    for data in (huge, objects.getvalue(), encoded(bands(4), "npy")[:5000], b"\x93NUMPY", b"II*\0" + 40 * b"\xff"):
        with pytest.raises(CannotDecode):
            decode_array(data, "a", channels=4)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "moco_v3"])
def test_engines_make_the_same_views(name: str, channels: int) -> None:
    image = bands(channels)
    for turn in range(8):
        pairs = {}
        for engine in ("reference", "fast", "device"):
            views = Views(name, SIZE, engine, channels=channels, vf_prob=0.5, rr_prob=0.2)
            arrays, plans, _ = views.collate([(*views(image, Random(f"0 {turn}")), "")])
            pairs[engine] = [view[0].numpy().astype(int) for view in views.finish(arrays, plans)]
        for engine in ("fast", "device"):
            for one, other in zip(pairs["reference"], pairs[engine], strict=True):
                assert one.shape == other.shape == (SIZE, SIZE, channels)
                assert np.abs(one - other).mean() <= 2


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_colours_change_in_the_first_three_channels_alone(engine: str) -> None:
    options = {"cj_prob": 1.0, "cj_strength": 1.0, "random_gray_scale": 0.5, "gaussian_blur": 0.0}
    plain = {"cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0}
    image = bands(5)
    for turn in range(6):
        views = [Views("moco_v2", SIZE, engine, channels=5, **arguments) for arguments in (options, plain)]
        (changed, _), (unchanged, _) = (each(image, Random(str(turn)))[0] for each in views)
        assert np.array_equal(changed[..., 3:], unchanged[..., 3:])
        assert not np.array_equal(changed[..., :3], unchanged[..., :3])
        rgb = Views("moco_v2", SIZE, engine, **options)(np.ascontiguousarray(image[..., :3]), Random(str(turn)))[0][0]
        assert np.abs(changed[..., :3].astype(int) - rgb).mean() <= 1


def test_statistics() -> None:
    images = ImageSet(TRAIN, channels=1)
    images.source = ArraySource("a", np.array([[[0, 255]], [[0, 51]]], np.uint8), None)
    mean, std = measure_statistics(images)
    assert mean == [0.3] and std == [pytest.approx(np.std([0, 1, 0, 0.2]), abs=1e-4)]


def test_statistics_name_what_they_leave_out(tool: Tool, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    shown = tool("image_statistics", str(tmp_path))
    assert shown.stdout == "data.mean=[1,0,0.2] data.std=[1,1,1]\n"
    assert f"left out 1 of 2 images, such as {tmp_path}/b.png" in shown.stderr


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of four deep channels of two photographs, as arrays and TIFF files."""
    folder = tmp_path_factory.mktemp("tiles")
    random = np.random.default_rng(0)
    for number in range(40):
        photo = load_sample_images().images[number % 2]
        y, x = random.integers(0, 427 - 80), random.integers(0, 640 - 80)
        tile = np.dstack([photo, photo[..., 0]])[y : y + 80, x : x + 80].astype(np.uint16) * 40
        path = folder / ("test" if number >= 32 else "train") / ("temple", "flower")[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        if number % 4 < 2:
            np.save(path / f"{number}.npy", tile)
        else:
            TIFF(path / f"{number}.tif", tile, planarconfig="contig")
    return folder


def test_from_tiles_to_a_timm_folder(tiles: Path, tmp_path: Path, tool: Tool) -> None:
    run = tmp_path / "run"
    training = f"method=moco data.root={tiles}/train backbone_args.in_chans=4 data.value_range=[0,10200] out={run}"
    tool("pretrain", *training.split(), "data.image_size=32", "data.batch_size=16", "schedule.epochs=2")
    weights = run / "checkpoints" / "last.ckpt"
    view = read_checkpoint(weights).view
    images = ImageSet(f"{tiles}/train", [0, 10200], 4)
    assert (view.mean, view.std) == measure_statistics(images) and view.value_range == [0, 10200]
    tool("convert", str(weights), str(tmp_path / "timm"), "--to", "timm")
    sets = ("--train", f"{tiles}/train", "--test", f"{tiles}/test")
    measured = []
    for source in (weights, tmp_path / "timm"):
        out = tmp_path / f"{source.stem}.json"
        tool("evaluate", "knn", "--weights", str(source), *sets, "--workers", "2", "--out", str(out))
        measured.append(json.loads(out.read_text())["top1"])
    assert measured[0] == measured[1]
    picture = tmp_path / "neighbours.png"
    tool("evaluate", "retrieve", "--weights", str(weights), *sets, "--k", "1", "--picture", str(picture))
    assert picture.is_file()
    for protocol in ("linear", "finetune"):
        rest = ["schedule.milestones=[0.5]"] if protocol == "linear" else []
        tool("evaluate", protocol, "--weights", str(weights), *sets, "schedule.epochs=1", *rest)
    tool("report", str(run))
    error = tool("convert_to_d2", weights, tmp_path / "d2.pkl", code=1).stderr
    assert "detectron2 reads RGB images, and this network takes images of 4 channels" in error
    assert not (tmp_path / "d2.pkl").exists()
