"""OmniBenchmark: realms as published, at toy size."""

import json
import statistics
from pathlib import Path

import pytest
from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.probes.omnibenchmark import REALMS, SPLITS, read_realm
from moco_plugin.tools.evaluate import main
from tests.conftest import TRAIN


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two realms of two classes each, in both ways to name the lists and to give the paths."""
    images = ImageSet(TRAIN)
    assert images.array is not None and images.labels is not None
    root = tmp_path / "omnibenchmark"
    for realm, pair, name, base in (("bird", (0, 7), "{split}", ""), ("car", (1, 2), "car.{split}.txt", "car/")):
        (root / realm / "images").mkdir(parents=True)
        chosen = [i for i, label in enumerate(images.labels) if label in pair]
        for split, part in (("train", chosen[:40]), ("val", chosen[40:60]), ("test", chosen[60:90])):
            lines = []
            for i in part:
                Image.fromarray(images.array[i]).save(root / realm / "images" / f"{i}.png")
                lines.append(f"{base}images/{i}.png {100 + images.labels[i]}\n")
            (root / realm / name.format(split=split)).write_text("".join(lines))
    return root


def arguments(run: Path, root: Path, *more: str) -> list[str]:
    return ["omnibenchmark", "--weights", f"{run}/checkpoints/last.ckpt", "--root", str(root), *more]


def test_probe_of_each_realm_and_the_mean(
    tiny_run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "omni.json"
    command = arguments(tiny_run, root, "--out", str(out))
    assert main(command) == 0
    shown, result = capsys.readouterr().out, json.loads(out.read_text())
    parts = {name: json.loads((tmp_path / "omni_realms" / f"{name}.json").read_text()) for name in ("bird", "car")}
    assert result["mean_per_class"] == statistics.fmean(p["mean_per_class"] for p in parts.values())
    assert result["top1"] == statistics.fmean(p["top1"] for p in parts.values()) > 60
    assert result["partial"] and len(result["missing"]) == 19 and "aircraft" in result["missing"]
    assert "missing, 19 of 21 realms: activity, aircraft" in shown
    assert "partial: 2 of 21 realms; the benchmark's MoCo v2 has 34.8" in shown
    for part in parts.values():
        val = part["val_mean_per_class"]
        assert set(val) == {"1e-05", "0.0001", "0.0003", "0.001", "0.01", "0.1", "1"}
        assert val[f"{part['l2']:g}"] == max(val.values())
        assert (part["classes"], part["train_images"], part["test_images"]) == (2, 40, 30)
        assert len(part["weights_sha256"]) == 64

    # as if cut off after the first realm, which is not measured again
    out.unlink()
    (tmp_path / "omni_realms" / "car.json").unlink()
    (tmp_path / "omni_realms" / "bird.json").write_text(json.dumps({**parts["bird"], "top1": 12.5}))
    assert main(command) == 0
    again = json.loads(out.read_text())
    assert again["realms"]["bird"]["top1"] == 12.5
    assert again["realms"]["car"] == result["realms"]["car"]
    out.unlink()
    capsys.readouterr()
    assert main([*command, "--untrained"]) == 2
    assert "is another run's (untrained was False, now True) and was kept" in capsys.readouterr().err
    assert main(arguments(tiny_run, root.rename(tmp_path / "moved"), "--out", str(out))) == 2
    assert f"is another run's (root was {root}, now {tmp_path / 'moved'}) and was kept" in capsys.readouterr().err
    (tmp_path / "moved").rename(root)
    assert main([*command, "--overwrite"]) == 0
    assert json.loads(out.read_text())["realms"] == result["realms"]
    assert "chooses by test (--protocol v1)" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--protocol", "v1"]) == 0
    assert "--protocol v1" not in capsys.readouterr().out


def test_broken_realms(tiny_run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_realm(root, "food") is None and len(REALMS) == len(set(REALMS)) == 21

    def fails(message: str, code: int = 1, folder: Path = root) -> None:
        assert main(arguments(tiny_run, folder)) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error

    val = root / "bird" / "val"
    lines = val.read_text().splitlines()
    image = lines[3].split()[0]
    for line in (image, f"{image} cat", f"{image} -1"):
        val.write_text("\n".join([*lines[:3], "", line, *lines[3:]]))
        fails(f"{val}, line 5: {line!r} is no 'path label'; expected an image's path and its class")
    val.write_text("\n".join(lines))
    test = root / "bird" / "test"
    whole = test.read_text()
    test.write_text(whole + "images/1.png 999\n")
    fails("bird/test has 999", code=2)
    test.write_text("images/nowhere.png 100\n")
    fails(f"{test}: 1 of its 1 images are missing, {root}/bird/images/nowhere.png first")
    test.write_text("\n")
    fails(f"{test} lists no image")
    test.unlink()
    fails(f"{root}/bird has no list of test images; expected a file test, test.txt, test/record.txt")
    fails("is not a folder of realms; expected folders activity, aircraft", folder=tmp_path)


@pytest.mark.parametrize(
    ("list_", "image", "line"),
    [
        ("bird/{}", "bird/images/{}.png", "images/{}.png"),
        ("bird/bird.{}.txt", "bird/images/{}.png", "bird/images/{}.png"),
        ("bird/{}.txt", "bird/{split}/images/{}.png", "{split}/images/{}.png"),  # V2 as published
        ("bird/bird.{}/record.txt", "bird/bird.{split}/images/{}.png", "{}.png"),  # V1 as its tool writes it
    ],
)
def test_layouts_of_realms(
    list_: str, image: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {split: [tmp_path / image.format(n, split=split) for n in range(3)] for split in SPLITS}
    for split, labels in (("train", (7, 9, 9)), ("val", (9, 7, 9)), ("test", (7, 7, 7))):
        for path in (*paths[split], tmp_path / list_.format(split)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        lines = (f"{line.format(n, split=split)} {label}\n" for n, label in enumerate(labels))
        (tmp_path / list_.format(split)).write_text("".join(lines))
    realm = read_realm(tmp_path, "bird")
    assert realm and realm["train"].paths == paths["train"] and realm["val"].labels.tolist() == [9, 7, 9]
    assert realm["test"].paths == paths["val"]  # one class for all images: the hidden test
    assert "as the hidden test has; measured on val" in capsys.readouterr().out
