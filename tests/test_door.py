"""The one door through which files of others are opened."""

import importlib
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from moco_plugin.errors import UserError
from moco_plugin.files import MissingFile, decode_text, read_file, read_text
from tests.conftest import TINY


def test_only_regular_files_of_bounded_size_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"12345")
    refused = {
        tmp_path / "fifo": "is a pipe; expected a list",
        "/dev/zero": "is a device; expected a list",
        tmp_path: "is a folder; expected a list",
        tmp_path / "link": "is a link to nothing",
        tmp_path / "loop": "too many levels|Too many levels",
        tmp_path / "file" / "x": "Not a directory",
        f"{tmp_path}/a\0b": r"a\\x00b cannot be a path",
        f"{tmp_path}/a\ud800": r"a\\ud800 cannot be a path",
        f"{tmp_path}/{'a' * 300}": r"\.\.\.a+ cannot be read \(File name too long\)",
        tmp_path / "file": "has more than 4 bytes; expected a list",
    }
    for path, message in refused.items():
        with pytest.raises(UserError, match=message):
            read_file(path, 4, "a list")
    with pytest.raises(MissingFile):
        read_file(tmp_path / "none")
    assert read_file(tmp_path / "file", 5) == b"12345"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("chât\r\nété".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "chât\nété"
    assert decode_text("\ufeffa".encode("utf-16-be")) == "a"


OPENING = re.compile(
    r"(?<![\w.])open\(|Image\.open\(|\.read_text\(|\.read_bytes\(|np\.load\(|json\.load\(|cv2\.imread\(|TiffFile\(|ZipFile\("
)
WITHIN = {  # what is opened behind the door, or was written by the process itself
    "files.py": {"return open(path", "with open(path"},
    "data/decode.py": {"Image.open(file, formats=PILLOW_FORMATS)"},
    "data/tiff.py": {"TiffFile(io.BytesIO(data)", "Image.open(io.BytesIO("},
    "sources/zip.py": {"ZipFile(open_file("},
}


def test_files_are_opened_at_the_door_alone() -> None:
    package = Path(__file__).parents[1] / "moco_plugin"
    wrong = []
    for path in (
        package / "files.py",
        package / "safe_yaml.py",
        *package.glob("data/*.py"),
        *package.glob("sources/*.py"),
    ):
        name = path.relative_to(package).as_posix()
        for line in path.read_text().splitlines():
            if OPENING.search(line) and not any(allowed in line for allowed in WITHIN.get(name, ())):
                wrong.append(f"{name}: {line.strip()}")
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("convert", "inspect FILE", "."),
        ("convert", "FILE out=1.safetensors --to timm", "out=1.safetensors"),
        ("convert_to_d2", "FILE out=1.pkl", "out=1.pkl"),
        ("evaluate", "embed --weights FILE --images images=1 --out out=1.npy", "out=1.csv"),
        ("evaluate", "retrieve --weights FILE --k 1 --train images=1 --out out=1.json", "out=1.json"),
        ("report", "run=1", "run=1/report.html"),
        ("pretrain", "method=moco weights=FILE data.root=images=1 out=run=2 schedule.steps=1", "run=2/result.json"),
    ],
)
def test_names_with_an_equals_sign_are_files(
    name: str, arguments: str, written: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epoch=9-step=100.ckpt").symlink_to(tiny_run / "checkpoints" / "last.ckpt")
    shutil.copytree(tiny_run, "run=1")
    for number in range(20):
        path = Path("images=1") / str(number % 2) / f"{number}=.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * number, 99, 50)).save(path)
    given = arguments.replace("FILE", "epoch=9-step=100.ckpt").split()
    tiny = [value for value in TINY if not value.startswith(("data.root", "knn", "schedule"))]
    tool = importlib.import_module(f"moco_plugin.tools.{name}")
    assert tool.main([*tiny, *given] if name == "pretrain" else given) == 0
    assert Path(written).exists()
