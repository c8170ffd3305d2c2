"""Hostile and broken files of every kind that the project reads from others, for test_safety.py and fuzz.py."""

import gzip
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import torch

MARKER = "code-ran"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


def yaml_cases(marker: Path) -> dict[str, str]:
    """Return YAML texts by name; one that runs code would create ``marker``."""
    run = f"!!python/object/apply:os.system ['touch {marker}']"
    return {
        "code": f"seed: {run}\nMODEL: {run}\n",
        "object": "seed: !!python/object/new:subprocess.Popen [[touch, x]]\n",
        "bomb": BOMB,
        "merge bomb": "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
        "deep": f"seed: {'[' * 3000}{']' * 3000}\n",
        "deep mapping": f"seed: {'{a: ' * 3000}1{'}' * 3000}\n",
        "itself": "seed: &a [*a]\n",
        "digits": f"seed: {'9' * 5000}\n",
        "text": "just some text\n",
        "number key": "1: 2\n",
        "date": "seed: 2020-13-45\n",
        "large": "seed: 1\n#" + "x" * (1 << 19),
        "bytes": "seed: \x00\n",
        "interpolation": "seed: ${seed}\n",
        "base loop": "_base_: self.yaml\n_BASE_: self.yaml\n",
        "base list": "_base_: [1, 2]\n_BASE_: [1, 2]\n",
        "base number": "_base_: 5\n_BASE_: 5\n",
        "wrong type": "data: 5\nMODEL: 5\n",
        "empty data": "data:\nMODEL:\n",
    }


def json_cases() -> dict[str, str]:
    """Return JSON texts by name, none of them what is expected anywhere."""
    return {
        "deep": "[" * 100_000,
        "deep object": '{"a":' * 100_000,
        "list": "[]",
        "number": "1",
        "text": "no json",
        "digits": "9" * 10_000,
        "null": "null",
        "wrong": json.dumps({"trials": 5, "task": [], "images": 1, "annotations": None, "categories": {}}),
        "empty": "",
        "binary": "\x00\x01",
    }


TUPLES = b")" + b"2\x86" * 60  # nested tuples that take 2^60 steps to hash


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickle_cases(marker: Path) -> dict[str, bytes]:
    """Return pickles by name; one that runs code would create ``marker``."""

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {marker}",)

    def zoo(model: object, **about: object) -> bytes:
        return pickle.dumps({"model": model, "__author__": "x", **about}, 2)

    return {
        "code": pickle.dumps({"model": Code()}, 2),
        "nested tuples": b"\x80\x02}" + TUPLES + b"K\x01s.",
        "nested tuples, author": b"\x80\x02}(" + text("model") + b"}" + text("__author__") + TUPLES + b"u.",
        "nested tuples, config": b"\x80\x02}("
        + (text("state_dict") + b"}" + text("hyper_parameters") + b"}" + text("config") + b"}(")
        + (text("backbone") + TUPLES + text("method") + TUPLES + b"usssu."),
        "lists as pixel_mean": zoo({"pixel_mean": [[1.0], ["a"]], "stem.conv1.weight": [1, 2]}),
        "metadata": zoo({}, moco_plugin={"pixel_mean": ["a", None], "timm_name": 5}),
        "number": pickle.dumps(5, 2),
        "itself": b"\x80\x02]q\x00h\x00a.",
        "empty": b"",
    }


def weight_cases() -> dict[str, bytes]:
    """Return weight files by name: pickles whose content decides their cost, and archives of two kinds at once."""
    copied = b"cbuiltins\nlist\nq\x010](" + b"N" * 10**6 + b"eq\x000" + b"]("
    encoded = b"c_codecs\nencode\nq\x010" + text("a" * 60_000) + text("latin1") + b"\x86q\x000]("
    keys = (b"\x8a\x0b" + ((2**61 - 1) * (count + 1)).to_bytes(11, "little") + b"N" for count in range(10**5))
    stream, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(16)}, stream)
    torch.save({"w": torch.zeros(16)}, legacy, _use_new_zipfile_serialization=False)
    archive = stream.getvalue()
    return {
        "copies": b"\x80\x02" + copied + b"h\x01h\x00\x85R" * 10**5 + b"e.",
        "encoded copies": b"\x80\x02" + encoded + b"h\x01h\x00R" * 10**5 + b"e.",
        "collisions": b"\x80\x02}(" + b"".join(keys) + b"u.",
        "tar and zip": _tar_header(b"PK\3\4") + archive,
        "tar and legacy": _tar_header(b"\x80\x02X\xf9\1\0\0") + b"0" + legacy.getvalue()[2:],
        "two directories": _two_directories(archive, 0),
        "two directories, second": _two_directories(archive, 1),
    }


def _tar_header(start: bytes) -> bytes:
    """Return the header of an empty tar member whose name begins so."""
    header = bytearray(start.ljust(512, b"\0"))
    header[257:263], header[148:156] = b"ustar\0", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _two_directories(archive: bytes, which: int) -> bytes:
    """Return a zip archive with a second central directory, which gives its weights 2 GB."""
    begin, end = archive.index(b"PK\1\2"), archive.index(b"PK\6\6")
    first = archive[begin:end]
    entry = first.index(b"/data/0") - 7 - 46
    second = first[: entry + 20] + struct.pack("<II", 1 << 31, 1 << 31) + first[entry + 28 :]
    tail = bytearray(archive[end:])
    place = tail.index(b"PK\5\6") + 16
    tail[place : place + 4] = struct.pack("<I", begin + len(first) * which)
    return archive[:begin] + first + second + bytes(tail)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
}


def idx_cases() -> dict[str, bytes]:
    """Return gzipped idx files by name."""
    head = b"\x00\x00\x08\x03"
    return {
        "false header": gzip.compress(head + struct.pack(">III", 1000, 1700, 1700) + bytes(100)),
        "huge header": gzip.compress(head + struct.pack(">III", *[2**32 - 1] * 3)),
        "bomb": gzip.compress(head + struct.pack(">III", 1, 2, 2) + bytes(300 << 20), 9),
        "short": gzip.compress(head[:3]),
        "no gzip": b"\x1f\x8b\x08\x00broken",
    }


def lists() -> dict[str, bytes]:
    """Return image lists by name."""
    return {
        "binary": bytes(range(256)) * 50,
        "missing": b"nowhere.jpg\n",
        "long line": b"x" * 1_000_000,
        "many words": b"a b c d e\n" * 100,
        "itself": b"list.txt\n",
    }
