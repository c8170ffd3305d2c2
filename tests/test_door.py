"""The one door through which files of others are opened."""

import os
from pathlib import Path

import pytest

from moco_plugin.errors import UserError
from moco_plugin.files import MissingFile, decode_text, read_file, read_text


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
