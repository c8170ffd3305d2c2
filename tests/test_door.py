"""Input files are opened by one module, within bounds."""

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
        tmp_path / "link": "is a broken link",
        tmp_path / "loop": "too many levels|Too many levels",
        tmp_path / "file" / "x": "Not a directory",
        f"{tmp_path}/a\0b": r"a\\x00b is not a valid path",
        f"{tmp_path}/a\ud800": r"a\\ud800 is not a valid path",
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
    r"(?<![\w.])(?:open|memmap)\(|\.open\(|\.read_text\(|\.read_bytes\(|torch\.load\(|json\.loads?\(|cv2\.imread\(|loadmat\(|"
    r"np\.(?:load|fromfile|memmap|loadtxt|genfromtxt)\(|(?:Tiff|Zip|Tar)File\(|safe_open\(|pickle\.loads?\(|ElementTree\.(?:parse|fromstring)\(|"
    r"csv\.(?:Dict)?[rR]eader\(|(?:safetensors\.torch\.load_file)\("
)
WITHIN = {  # of files that were opened or read there, that the product wrote, or of the system
    "files.py": {"return open(path", "with open(path", "json.loads(text)", "json.loads(json.dumps(value"},
    "typed.py": set(),
    "errors.py": {"os.open(os.devnull"},
    "__init__.py": {"Path(__file__).read_text("},
    "data/decode.py": {"Image.open(file, formats=PILLOW_FORMATS)"},
    "data/tiff.py": {"TiffFile(io.BytesIO(data)", "Image.open(io.BytesIO("},
    "data/listing.py": {"csv.reader(read_text(", "csv.reader([line])"},
    "detectors/tables.py": {"csv.reader(lines"},  # of a text that was read
    "runs/logs.py": {"csv.DictReader(read_text(", 'open(temporary, "w"'},
    "sources/zip.py": {"ZipFile(open_file("},
    "sources/idx.py": {"gzip.open(stored)"},
    "sources/shard_index.py": {
        "filesystem.open(path",  # fsspec's, of addresses; local files are checked before
        'tarfile.open(fileobj=stream, mode="r:")',
        "json.loads(text)",  # of an index, which was read
    },
    "weight_files/load.py": {
        "pickle.load(stream)",  # the product's own process wrote it
        "safe_open(path",  # behind open_file
        "json.loads(header",  # of bounded size
    },
    "weight_files/unpickle.py": {"ZipFile(sys.stdin.buffer)"},  # in a process with limits, of what open_file opened
    # written by the product a moment ago
    "checkpoints/formats.py": {
        'open(path, "r+b")',
        "json.loads(file.read(size))",
        'open(path, "wb")',
        "load_file(path)",
    },
    "evaluation/features.py": {"np.memmap(file"},  # a temporary file
    "pages/curves.py": {"Image.open(buffer)"},
    "probes/embedding.py": {'open(files[0], "wb")', 'open(path, "w"'},
    "runs/callbacks.py": {'open(temporary, "wb")'},
    "runs/run_folder.py": {"(folder / LOCK).read_text("},  # of a lock that was opened
    "sources/shard_writer.py": {'tarfile.open(shard, "w"'},
    "detectors/predict.py": {'self.path.open("a")'},
    "transfer/to_detectron2.py": {'open(path, "wb")'},
    "transfer/trainer.py": {'open(Path(output, "stdout.txt"), "a")'},
    "transfer/components/voc_semantic.py": {"loadmat(file)"},
    # the system's and installed packages' own
    "pretraining/sizing.py": {".read_text()"},
}


def test_only_files_py_opens_files() -> None:
    root = Path(__file__).parents[1]
    package = root / "moco_plugin"
    wrong, used = [], set()
    for path in (*package.rglob("*.py"), *root.glob("tools/*.py")):
        name = path.relative_to(package if package in path.parents else root).as_posix()
        for line in path.read_text().splitlines():
            if OPENING.search(line.partition("  #")[0]):
                allowed = {part for part in WITHIN.get(name, ()) if part in line}
                used |= {(name, part) for part in allowed}
                wrong += [] if allowed else [f"{name}: {line.strip()}"]
    assert wrong == []
    assert {(name, part) for name, parts in WITHIN.items() for part in parts} <= used


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
