"""OmniBenchmark: realms as published, at toy size."""

import json
import statistics
from pathlib import Path

import pytest
from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.probes.omnibenchmark import REALMS, read_realm
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


def test_realms_are_those_of_the_benchmark() -> None:
    assert len(REALMS) == len(set(REALMS)) == 21


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
    assert main([*command, "--overwrite"]) == 0
    assert json.loads(out.read_text())["realms"] == result["realms"]


def test_broken_realms(tiny_run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_realm(root, "food") is None

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


def relaid(root: Path, target: Path, layout: str) -> Path:
    """The realms of ``root`` in a published layout: V2's, or V1's with its download tool's lists."""
    for realm in ("bird", "car"):
        for split in ("train", "val", "test"):
            (old,) = [p for p in (root / realm / split, root / realm / f"{realm}.{split}.txt") if p.is_file()]
            folder = target / realm / (f"{split}" if layout == "v2" else f"{realm}.{split}")
            (folder / "images").mkdir(parents=True)
            lines = []
            for line in old.read_text().splitlines():
                path, label = line.split()
                name = Path(path).name
                (folder / "images" / name).write_bytes((root / realm / "images" / name).read_bytes())
                label = "0" if split == "test" and layout == "v2" and realm == "car" else label
                lines.append(f"{f'{split}/images/' if layout == 'v2' else ''}{name} {label}\n")
            file = target / realm / f"{split}.txt" if layout == "v2" else folder / "record.txt"
            file.write_text("".join(lines))
    return target


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_published_layouts(
    layout: str, tiny_run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = relaid(root, tmp_path / layout, layout)
    assert main(arguments(tiny_run, root, "--protocol", layout, "--out", str(tmp_path / "a.json"))) == 0
    plain = json.loads((tmp_path / "a.json").read_text())["realms"]
    capsys.readouterr()
    assert main(arguments(tiny_run, target, "--protocol", layout, "--out", str(tmp_path / "b.json"))) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text())["realms"]
    assert found["bird"] == plain["bird"]
    if layout == "v2":  # the hidden test of car
        assert "as the hidden test has; measured on val" in shown and found["car"]["test_images"] == 20
        assert "chooses by test (--protocol v1)" in shown
    else:
        assert found["car"] == plain["car"] and "hidden test" not in shown
