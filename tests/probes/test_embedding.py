"""Features in a file, and the pairs of images that are near: through the tool."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import moco_plugin
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.data.images import ImageSet
from moco_plugin.evaluation import features as evaluation_features
from moco_plugin.evaluation.features import extract_feature_set
from moco_plugin.probes import embedding
from moco_plugin.tools.evaluate import main
from tests.conftest import TEST
from tests.helpers.processes import Tool


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures of two classes; one is another's copy, and one is broken."""
    folder = tmp_path_factory.mktemp("photos")
    images = ImageSet(f"{TEST}[0:12]")
    for index in range(12):
        path = folder / ("even" if index % 2 == 0 else "odd, the\nother") / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        image = images.load(index)
        assert isinstance(image, Image.Image)
        image.save(path)
    shutil.copy(folder / "even" / "04.png", folder / "even" / "99.png")
    (folder / "even" / "98.png").write_bytes(b"\x89PNG")
    return folder


def command(run: Path, images: Path | str, *more: Any) -> list[str]:
    return ["embed", "--weights", f"{run}/checkpoints/last.ckpt", "--images", str(images), *map(str, more)]


@pytest.mark.parametrize("processes", [1, 2])
def test_features_of_any_images_with_their_paths(
    processes: int, tiny_run: Path, photos: Path, tool: Tool, tmp_path: Path
) -> None:
    """The same in NumPy's and in Parquet's form, by one process and by two."""
    checkpoint = read_checkpoint(tiny_run / "checkpoints/last.ckpt")
    images = ImageSet(str(photos))
    expected = extract_feature_set(checkpoint.backbone, images, checkpoint.view, normalized=False)
    assert len(expected.features) == 13
    paths = [images.name(index) for index in expected.indices.tolist()]
    shown = tool("evaluate", *command(tiny_run, photos, "--out", tmp_path / "f.npy"), processes=processes)
    found = np.load(tmp_path / "f.npy")
    assert found.dtype == np.float32 and found.shape == (13, 32)
    np.testing.assert_allclose(found, expected.features.numpy(), rtol=1e-4, atol=1e-6)
    rows = rows_of(tmp_path / "f.csv")
    assert [row["path"] for row in rows] == paths
    assert [row["label"] for row in rows] == [Path(path).parent.name for path in paths]
    assert "13 images, 32 features each" in shown.stdout and "98.png cannot be decoded" in shown.stderr
    parquet = pytest.importorskip("pyarrow.parquet")
    tool("evaluate", *command(tiny_run, photos, "--out", tmp_path / "f.parquet"), processes=processes)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["path"].to_pylist() == paths and table["label"].to_pylist() == [row["label"] for row in rows]
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), found)
    assert {path.name for path in tmp_path.iterdir()} == {"f.npy", "f.csv", "f.parquet"}


def test_pairs_of_images(tiny_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = ["--nearest", tmp_path / "nearest.csv", "--k", 3, "--duplicates", tmp_path / "twins.csv"]
    arguments = command(tiny_run, photos, "--out", tmp_path / "f.npy", *tables, "--similarity", 0.999999)
    assert main(arguments) == 0
    assert "near duplicates: 1 pairs of 2 images" in capsys.readouterr().out
    names = [row["path"] for row in rows_of(tmp_path / "f.csv")]
    unit = F.normalize(torch.from_numpy(np.load(tmp_path / "f.npy")), dim=1)
    best = (unit @ unit.T).fill_diagonal_(-2).topk(3)
    near = rows_of(tmp_path / "nearest.csv")
    assert [row["path"] for row in near] == [name for name in names for _ in range(3)]
    assert [float(row["similarity"]) for row in near] == pytest.approx(best.values.flatten().tolist(), abs=1e-4)
    (pair,) = rows_of(tmp_path / "twins.csv")
    assert [Path(pair[name]).name for name in ("path", "duplicate")] == ["04.png", "99.png"]
    assert main(arguments) == 2 and "exists already and was kept" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_from_python(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file; and the same through the disk, and of an image set that is no folder."""
    weights, images = tiny_run / "checkpoints/last.ckpt", f"{TEST}[0:9]"
    memory = moco_plugin.embed(weights, images, None)
    monkeypatch.setattr(evaluation_features, "IN_MEMORY", 0)
    disk = moco_plugin.embed(weights, images, None, batch_size=4)
    assert memory and disk and memory.features.shape == (9, 32) and len(memory.paths) == len(memory.labels or ()) == 9
    torch.testing.assert_close(disk.features, memory.features, rtol=1e-4, atol=1e-5)
    pixels = moco_plugin.embed(weights, images, None, pixels=True)
    assert pixels and pixels.features.shape == (9, 3 * 32 * 32)
    assert pixels.features.min() >= 0 and pixels.features.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out features.txt", "features.txt ends in neither .npy nor .parquet"),
        ("--out f.npy --nearest f.csv", "f.csv would be written twice"),
        ("--out f.npy --duplicates f.txt", "f.txt does not end in .csv"),
        ("--out f.npy --nearest n.csv --k 15", "k is 15 with 13 labelled training images besides the image itself"),
        ("--out f.npy --similarity 1.5", "similarity is 1.5; expected a cosine similarity above 0 and up to 1"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: str, message: str, tiny_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(command(tiny_run, photos, *arguments.split())) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_parquet_without_pyarrow(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    assert main(command(tiny_run, f"{TEST}[0:4]", "--out", tmp_path / "f.parquet")) == 2
    assert "needs pyarrow, which is not installed; pip install pyarrow" in capsys.readouterr().err
