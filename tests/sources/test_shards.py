"""Tar shards: the same images as the folder they were made from, from disk and from a server."""

import gzip
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from moco_plugin.data.datasets import TrainImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.order import EpochOrder
from moco_plugin.errors import UsageError, UserError
from moco_plugin.sources import shard_index
from moco_plugin.sources.shards import is_shards
from moco_plugin.tools.make_shards import main
from tests.conftest import TRAIN
from tests.helpers.image_sets import assert_same, names_of


class Server(ThreadingHTTPServer):
    """Serves a folder on a free port."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.ranges = True
        self.failures = 0  # how many of the next range requests fail
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms an answer
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, wanted = self.server.folder / self.path[1:], self.headers["Range"]
        self.server.asked.append(f"{self.command} {self.path} {wanted}")
        if wanted and self.server.failures:
            self.server.failures -= 1
            return self.answer(503, b"")
        if not path.is_file():
            return self.answer(404, b"")
        data = path.read_bytes()
        if not wanted or not self.server.ranges:
            return self.answer(200, data)
        start, _, stop = wanted.removeprefix("bytes=").partition("-")
        self.answer(206, data[int(start) : int(stop) + 1 if stop else None])

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "shards") as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_index, "PAUSES", (0.01, 0.01, 0.01))
    return tmp_path / "cache" / "moco_plugin" / "shards"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of noise in two classes."""
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "photos" / ("cat" if number < 5 else "dog") / f"{number:02d}.{'png' if number % 2 else 'JPG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Path:
    """Their shards of five, five and two images."""
    assert main([str(photos), str(tmp_path / "shards" / "photos"), "--images-per-shard", "5"]) == 0
    return tmp_path / "shards"


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return path


def third_party(photos: Path, path: Path) -> Path:
    """A tar as others write it: folders in names, text as class, members that are no images."""
    members: dict[str, bytes] = {"readme.md": b"not an image"}
    for file in sorted(photos.rglob("*.*")):
        key = f"train/{'long' * 40}/{file.stem}"
        members |= {
            f"{key}{file.suffix}": file.read_bytes(),
            f"{key}.cls": file.parent.name.encode(),
            f"{key}.json": b"{}",
        }
    return write_tar(path, members)


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scans: list[str] = []
    scan: Callable[[str, int], object] = shard_index.scan_shard
    monkeypatch.setattr(shard_index, "scan_shard", lambda url, size: scans.append(url) or scan(url, size))
    return scans


def test_shards_contain_the_images_of_the_folder(photos: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = count_scans(monkeypatch)
    assert sorted(file.name for file in packed.glob("*.tar")) == [f"photos-000{n}.tar" for n in range(3)]
    assert_same(ImageSet(str(packed)), ImageSet(str(photos)))
    assert_same(ImageSet(f"{packed}/photos-{{0000..0002}}.tar"), ImageSet(str(photos)))
    assert ImageSet(f"{packed}/photos-0001.tar").classes == ("cat", "dog")  # also where one of them is missing
    part = ImageSet(f"{packed}[4:7]")
    assert [part.load(i) for i in range(len(part))] == [ImageSet(str(photos)).load(i) for i in (4, 5, 6)]
    assert part.labels.tolist() == [0, 1, 1]
    assert part.name(1) == f"{packed}/photos-0001.tar member 00000005.png"
    assert scans == []  # the indexes are beside the shards
    with pytest.raises(UserError, match=r"selects no image; .* contains 12"):
        ImageSet(f"{packed}[12:]")


def test_packing_again_gives_the_same_bytes_and_overwrites_only_with_the_option(photos: Path, packed: Path) -> None:
    def content() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in packed.iterdir()}

    before = content()
    arguments = [str(photos), str(packed / "photos"), "--images-per-shard", "5"]
    assert main(arguments) == 2 and content() == before
    os.utime(photos / "cat" / "00.JPG", (0, 0))
    assert main([*arguments, "--overwrite"]) == 0 and content() == before
    assert main([*arguments[:-1], "20", "--overwrite"]) == 0
    assert sorted(content()) == ["photos-0000.tar", "photos-0000.tar.index.json"]
    assert main([TRAIN, str(packed / "x")]) == 2  # no image files


def test_index_made_from_headers_is_the_one_packed(photos: Path, packed: Path) -> None:
    expected = ImageSet(str(packed))
    for file in packed.glob("*.json"):
        file.unlink()
    found = ImageSet(str(packed))
    assert [found.source.read(i) for i in range(12)] == [expected.source.read(i) for i in range(12)]
    assert found.classes == ("0", "1")  # the names are in the index only
    assert found.labels.tolist() == expected.labels.tolist()


def test_tar_of_others_and_its_cached_index(
    photos: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = count_scans(monkeypatch)
    path = third_party(photos, tmp_path / "others" / "train.tar")
    for _ in range(2):
        assert_same(ImageSet(str(path)), ImageSet(str(photos)))
    assert scans == [str(path)]  # the second time from the cache
    (cached,) = cache.iterdir()
    for broken in ("{", "[]", json.dumps({**json.loads(cached.read_text()), "offsets": [1 << 40] * 12})):
        cached.write_text(broken)
        assert_same(ImageSet(str(path)), ImageSet(str(photos)))
    assert len(scans) == 4
    write_tar(path, {"a.png": (photos / "cat" / "01.png").read_bytes()})
    changed = ImageSet(str(path))
    assert len(scans) == 5 and len(changed) == 1
    assert changed.labels is None and changed.load(0) == ImageSet(str(photos)).load(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_place_or_the_number_of_workers(
    photos: Path, packed: Path, server: Server, workers: int
) -> None:
    def batches(root: str, workers: int) -> list[torch.Tensor]:
        images = ImageSet(root)
        images.load(0)  # a connection that is open when the loader processes start
        train = TrainImages(images, lambda image, _: (torch.from_numpy(image), 0), seed=3)
        found = []
        for epoch in range(2):
            order = EpochOrder(len(images), 3, batch_size=4)
            order.set_epoch(epoch)
            found += [batch for batch, _, _ in DataLoader(train, 4, sampler=order, num_workers=workers)]
            assert images.load(1) == ImageSet(str(photos)).load(1)  # and still works after them
        return found

    expected = batches(str(photos), 0)
    for root in (str(packed), f"{server.url}/photos-{{0000..0002}}.tar"):
        # png and jpg follow each other, decoded alike on all sides
        assert all(torch.equal(a, b) for a, b in zip(batches(root, workers), expected, strict=True))


def test_server_sends_ranges_of_shards(photos: Path, packed: Path, server: Server, cache: Path) -> None:
    images = ImageSet(f"{server.url}/photos-{{0000..0002}}.tar")
    assert_same(images, ImageSet(str(photos)))
    asked = [line for line in server.asked if line.startswith("GET") and line.split()[1].endswith(".tar")]
    assert asked and all("bytes=" in line for line in asked)
    server.asked.clear()
    assert_same(ImageSet(f"{server.url}/photos-{{0000..0002}}.tar"), ImageSet(str(photos)))
    assert not [line for line in server.asked if ".json" in line]  # from the cache
    assert_same(pickle.loads(pickle.dumps(images)), ImageSet(str(photos)))


def test_servers_with_faults(photos: Path, packed: Path, server: Server) -> None:
    third_party(photos, packed / "train.tar")
    assert_same(ImageSet(f"{server.url}/train.tar"), ImageSet(str(photos)))  # without an index
    with pytest.raises(UserError, match=r"there is no http.*/absent.tar, or its server cannot be reached"):
        ImageSet(f"{server.url}/absent.tar")
    images = ImageSet(f"{server.url}/photos-0000.tar")
    server.failures = 3
    assert images.load(1) == ImageSet(str(photos)).load(1)
    server.failures = 4
    with pytest.raises(UserError, match=r"http.*/photos-0000.tar cannot be read \(503.*tried 4 times"):
        images.load(1)  # not a corrupt image
    server.failures, server.ranges = 0, False
    for read in (lambda: images.load(0), lambda: ImageSet(f"{server.url}/photos-0000.tar")):
        with pytest.raises(UserError, match=r"photos-0000.tar sends whole files only"):
            read()


def test_corrupt_image_in_a_shard_is_named(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "01.png").write_bytes((photos / "cat" / "01.png").read_bytes()[:60])
    path = third_party(photos, tmp_path / "train.tar")
    assert ImageSet(str(path)).try_load(1) == (None, f"{path} member train/{'long' * 40}/01.png")


def test_shards_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    image = (photos / "cat" / "01.png").read_bytes()

    def error(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            ImageSet(str(path))
        return str(caught.value)

    path = third_party(photos, tmp_path / "train.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        member = [m for m in archive.getmembers() if m.name.endswith("png")][3]
    # inside an image, inside a header, where a header should be
    for size in (member.offset_data + 100, member.offset_data - 200, member.offset_data - 512):
        path.write_bytes(whole[:size])
        assert f"{path} is truncated or not a tar archive" in error(path)
    path.write_bytes(b"something else")
    assert "not a tar archive" in error(path)
    path.write_bytes(gzip.compress(whole))
    assert f"{path} is compressed" in error(path)
    assert "is compressed" in error(write_tar(tmp_path / "a.tar.gz", {"a.png": image}, "w:gz"))
    assert "contains no image; expected members such as 0001.jpg" in error(
        write_tar(tmp_path / "b.tar", {"a.txt": b""})
    )
    assert f"{tmp_path}/photos-7.tar cannot be read (No such file" in error(tmp_path / "photos-{7..9}.tar")
    assert "names no shard" in error(tmp_path / "photos-{9..7}.tar")
    with pytest.raises(UsageError, match="cannot be opened"):
        ImageSet("unknown://host/a.tar")


def test_index_of_another_shard_is_refused(photos: Path, packed: Path) -> None:
    assert is_shards(str(packed)) and not is_shards(str(photos))
    (packed / "photos-0002.tar.index.json").replace(packed / "photos-0000.tar.index.json")
    with pytest.raises(UserError, match=r"photos-0000.tar.index.json is of a shard of \d+ bytes, and .* has \d+"):
        ImageSet(str(packed))
    (packed / "cover.jpg").write_bytes(b"")
    assert not is_shards(str(packed))  # but a folder of images


def test_names_with_dots_are_webdatasets(photos: Path, tmp_path: Path) -> None:
    image = (photos / "cat" / "01.png").read_bytes()
    members = {
        "img.v1.000.png": image,
        "img.v1.000.cls": b"3",
        "img.v1.001.png": image,
        "img.v1.001.cls": b"5",
        "b/0.PNG": image,
        "b/0.mask.png": image,  # the same sample's second image
        "b/0.json": b'{"label": 3, "caption": "x"}',
        "b/._0.png": b"",
    }
    images = ImageSet(str(write_tar(tmp_path / "dots.tar", members)))
    names = [name.split(" member ")[1] for name in names_of(images)]
    assert names == ["img.v1.000.png", "img.v1.001.png", "b/0.PNG"]
    assert images.labels.tolist() == [0, 1, 0] and images.classes == ("3", "5")
