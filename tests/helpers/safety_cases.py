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


def annotation_cases() -> dict[str, list[bytes]]:
    """Return annotation files by form (a key of ``ANNOTATIONS``), none of which is what its tool writes."""
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    entities = [
        f'<!DOCTYPE a [<!ENTITY a0 "ha">{laughs}]><annotation><filename>&a11;</filename></annotation>'.encode(),
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]><annotations>&x;</annotations>'.encode(
            "utf-16"
        ),
        b"<annotation>" + b"<object>" * 200_000,
        b'<?xml version="1.0" encoding="no such"?><annotations><image name="a"',
        b"",
    ]
    numbers = ("1e308", "NaN", "-9e8", "1" * 5000, "inf", "text", "")
    masks = ("0, 1000000000", "-5, 5", "9" * 400, "")
    voc = (
        "<annotation><object><name>a</name><bndbox><xmin>{0}</xmin><ymin>{0}</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>"
    )
    cvat = (
        '<annotations><image name="001.jpg"><mask label="a" rle="{0}" left="0" top="0" width="99999" height="99999"/>'
        "</image></annotations>"
    )
    labelme = (
        '{{"imagePath": "001.jpg", "shapes": [{{"label": "a", "shape_type": "polygon", '
        '"points": [[{0}, 1], [1, 1], [2, 2]]}}]}}'
    )
    runs = '{{"size": [{0}, {0}], "counts": {1}}}'
    coco = (
        '{{"images": [{{"id": 1, "file_name": "001.jpg"}}, {{"id": 2, "file_name": "002.jpg"}}], '
        '"categories": [{{"id": 1, "name": "a"}}], "annotations": [{{"image_id": 1, "category_id": 1, '
        '"bbox": [1, 1, 9, 9], "segmentation": {0}}}]}}'
    )
    segmentations = [f"[[{n}, 1, 1, 1, 2, 2]]" for n in numbers[:5]] + [
        runs.format(40000, "[1600000000]"),
        runs.format(48, "[-1, 2305]"),
        runs.format("1e308", "[1]"),
        runs.format(48, '"' + "o" * 5000 + '"'),
        runs.format(48, '"\u00ff"'),
    ]
    return {
        "VOC XML": [*entities, *(voc.format(n).encode() for n in numbers)],
        "CVAT XML": [*entities, *(cvat.format(n).encode() for n in masks)],
        "YOLO labels": [f"{n} 0.5 0.5 {n} {n}\n".encode() for n in ("1000000000", *numbers)] + [b"0 " * 1_000_000],
        "YOLO YAML": [t.replace("seed:", "names:").encode() for t in yaml_cases(Path(MARKER)).values()]
        + [b"train: /\n", b"path: /\ntrain: dev\n"],
        "Labelme": [labelme.format(n).encode() for n in numbers] + [t.encode() for t in json_cases().values()],
        "VIA": [t.encode() for t in json_cases().values()],
        "CSV": [b"image,xmin,ymin,xmax,ymax,label\n001.jpg," + n.encode() + b",1,1,1,a\n" for n in numbers],
        "COCO masks": [coco.format(mask).encode() for mask in segmentations],
    }


ANNOTATIONS = {
    "VOC XML": ("labelImg: Pascal VOC in a folder of its own", "annotations/001.xml"),
    "CVAT XML": ("CVAT: CVAT for images 1.1", "annotations.xml"),
    "YOLO labels": ("labelImg: YOLO beside the images", "001.txt"),
    "YOLO YAML": ("Ultralytics: detect", "data.yaml"),
    "Labelme": ("Labelme: JSON beside the images", "001.json"),
    "VIA": ("VIA: project", "via_project_1Jan2024.json"),
    "CSV": ("Kaggle: CSV of corners", "train.csv"),
    "COCO masks": ("VIA: annotations as COCO", "via_export_coco.json"),
}
"""Forms of annotations: a data set of tests/detectors/samples.py, and the file of it that is replaced."""


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


def _links(path: Path, links: dict[str, str]) -> None:
    """Make folders with links in them."""
    for name, target in links.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).symlink_to(target)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
    "link to the folder above": lambda path: _links(path, {"up": "..", "more": "..", "again": "../."}),
    "folders linked to each other": lambda path: _links(path, {"a/b": "../c", "c/d": "../a", "c/e": "."}),
    "deep folders": lambda path: (path / "/".join("ab" * 300)).mkdir(parents=True),
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
