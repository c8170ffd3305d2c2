"""Released checkpoints by name: fetched from a server of our own, broken off, resumed and checked."""

import errno
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from moco_plugin.checkpoints import released
from moco_plugin.checkpoints.released import RELEASED, Released, cache_path, is_released, resolve
from moco_plugin.errors import UserError

CONTENT = bytes(range(256)) * 40
NAME = "moco_v2_200ep"


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /checkpoints/file.pth.tar; misbehaves as told, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = True  # whether it can go on in the middle
        self.breaks: list[int] = []  # after how many bytes each of the next replies breaks off
        self.asked: list[str | None] = []  # the range of each request
        self.content_type = "application/octet-stream"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/checkpoints/file.pth.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Range"])
        if self.path != "/checkpoints/file.pth.tar":
            self.send_error(404)
            return
        start = int(re.findall(r"\d+", self.headers["Range"])[0]) if self.headers["Range"] else 0
        start = start if self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that NAME is fetched from, into a cache of the test's own."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        digits = hashlib.md5(CONTENT).hexdigest()[:8]
        monkeypatch.setitem(RELEASED, NAME, Released(server.url, digits))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def parts(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_the_table_is_what_the_authors_publish() -> None:
    assert {name: released.md5 for name, released in RELEASED.items()} == {
        "moco_v1_200ep": "b251726a",
        "moco_v2_200ep": "59fd9945",
        "moco_v2_800ep": "a04e12f8",
        "moco_v3_r50_100ep": None,
        "moco_v3_r50_300ep": None,
        "moco_v3_r50_1000ep": None,
        "moco_v3_vit_s": None,
        "moco_v3_vit_b": None,
    }
    urls = [released.url for released in RELEASED.values()]
    host = "https://dl.fbaipublicfiles.com"
    assert urls[1] == f"{host}/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar"
    assert urls[-1] == f"{host}/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar"


def test_fetched_once_and_found_again(server: Server, tmp_path: Path) -> None:
    path = resolve(NAME)
    assert path == tmp_path / "cache" / "checkpoints" / "file.pth.tar" and path.read_bytes() == CONTENT
    assert resolve(NAME) == path and server.asked == [None] and not parts(tmp_path)


def test_a_path_goes_before_a_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_released(NAME)
    Path(NAME).write_text("mine")
    assert not is_released(NAME) and resolve(NAME) == Path(NAME)
    assert resolve("absent/moco.pth.tar") == Path("absent/moco.pth.tar")  # whoever opens it has the sentence
    assert server.asked == []


def test_a_misspelt_name_is_offered_the_right_one() -> None:
    with pytest.raises(UserError, match=r"no such file, and no released .*did you mean 'moco_v2_800ep'"):
        resolve("moco_v2_800")


def test_broken_off_and_taken_up_at_once(server: Server, tmp_path: Path) -> None:
    server.breaks = [3000, 1000]
    assert resolve(NAME).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-", "bytes=4000-"] and not parts(tmp_path)


def test_what_an_earlier_run_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.breaks = [5000, 0]  # the second attempt brings nothing, so the run gives up
    with pytest.raises(UserError, match=rf"{NAME} could not be fetched .*was interrupted after 5000 of 10240 bytes"):
        resolve(NAME)
    assert parts(tmp_path)[0].read_bytes() == CONTENT[:5000] and not cache_path(server.url).exists()
    server.asked.clear()
    assert resolve(NAME).read_bytes() == CONTENT and server.asked == ["bytes=5000-"]


def test_killed_between_the_last_byte_and_the_end(server: Server, tmp_path: Path) -> None:
    part = cache_path(server.url).with_name("file.pth.tar.part")
    part.parent.mkdir(parents=True)
    for left, asked in ((CONTENT, 1), (CONTENT + b"more", 2)):  # whole; or of something else
        part.write_bytes(left)
        server.asked.clear()
        path = resolve(NAME)
        assert path.read_bytes() == CONTENT and len(server.asked) == asked and not part.exists()
        path.unlink()


def test_a_server_that_cannot_go_on_in_the_middle(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks = [4000]
    assert resolve(NAME).read_bytes() == CONTENT and server.asked == [None, "bytes=4000-"]
    cache_path(server.url).unlink()
    server.breaks = [4000, 4000, 4000]  # never gets further: an end, not a loop
    with pytest.raises(UserError, match="was interrupted after 4000 of 10240 bytes"):
        resolve(NAME)
    assert len(server.breaks) == 1


def test_wrong_checksum(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASED, NAME, Released(server.url, "0123abcd"))
    found = hashlib.md5(CONTENT).hexdigest()[:8]
    message = rf"is removed: its MD5 begins with {found}, the published one with 0123abcd; get it again"
    with pytest.raises(UserError, match=message):
        resolve(NAME)
    path = cache_path(server.url)
    assert not path.exists()
    path.write_bytes(b"put there by hand, and wrong")
    with pytest.raises(UserError, match="is removed"):
        resolve(NAME)


def test_no_checksum_is_said(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(RELEASED, "moco_v3_vit_s", Released(server.url))
    assert resolve("moco_v3_vit_s").read_bytes() == CONTENT
    assert f"published no checksum; its SHA-256 is {hashlib.sha256(CONTENT).hexdigest()}" in caplog.text
    caplog.clear()
    assert resolve("moco_v3_vit_s").read_bytes() == CONTENT and not caplog.text
    cache_path(server.url).write_bytes(b"something else")
    with pytest.raises(UserError, match="changed since it was fetched"):
        resolve("moco_v3_vit_s")


def test_absent_page_and_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = rf"put it at {re.escape(str(tmp_path))}/cache/"
    server.content_type = "text/html; charset=utf-8"  # as a log-in page has it
    with pytest.raises(UserError, match=f"a web page came in place of the file.*{where}"):
        resolve(NAME)
    monkeypatch.setitem(RELEASED, NAME, Released(server.url + "x"))
    with pytest.raises(UserError, match=rf"fetched from {server.url}x \(the server replied 404 Not Found\).*{where}"):
        resolve(NAME)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=rf"{server.url}x \(.*[Cc]onnection refused\).*{where}") as error:
        resolve(NAME)
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_disk_that_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(released, "open", full, raising=False)
    with pytest.raises(UserError, match=rf"{NAME} could not be fetched .*No space left on device"):
        resolve(NAME)
    assert not cache_path(server.url).exists()
