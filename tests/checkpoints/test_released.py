"""Released checkpoints by name: fetched from a server of our own, and checked."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from moco_plugin.checkpoints.released import RELEASED, Released, cache_path, is_released, resolve
from moco_plugin.errors import UserError

CONTENT = bytes(range(256)) * 40
NAME = "moco_v2_200ep"


class Server(ThreadingHTTPServer):
    """Serves ``content`` at /checkpoints/file.pth.tar; the next replies end after ``breaks`` bytes."""

    daemon_threads = True
    content = CONTENT
    requests = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/checkpoints/file.pth.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path != "/checkpoints/file.pth.tar":
            self.send_error(404)
            return
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.breaks.pop(0) if self.server.breaks else None])

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


def left(tmp_path: Path) -> list[Path]:
    """Files in the cache."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_fetched_once_and_found_again(server: Server, tmp_path: Path) -> None:
    path = resolve(NAME)
    assert path == tmp_path / "cache" / "checkpoints" / "file.pth.tar" and path.read_bytes() == CONTENT
    assert resolve(NAME) == path and server.requests == 1 and left(tmp_path) == [path]


def test_a_path_goes_before_a_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_released(NAME)
    Path(NAME).write_text("mine")
    assert not is_released(NAME) and resolve(NAME) == Path(NAME)
    assert resolve("absent/moco.pth.tar") == Path("absent/moco.pth.tar")  # whoever opens it has the sentence
    assert server.requests == 0
    with pytest.raises(UserError, match=r"no such file, and no released .*did you mean 'moco_v2_800ep'"):
        resolve("moco_v2_800")


def test_an_interrupted_download_starts_again(server: Server, tmp_path: Path) -> None:
    server.breaks = [5000]
    with pytest.raises(UserError, match=rf"{NAME} could not be fetched .*got only 5000 out of 10240 bytes.*try again"):
        resolve(NAME)
    assert not left(tmp_path)
    assert resolve(NAME).read_bytes() == CONTENT and server.requests == 2


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
    server.content = b"<!DOCTYPE html><title>Log in</title>"
    with pytest.raises(UserError, match=f"a web page came in place of the file.*{where}"):
        resolve(NAME)
    monkeypatch.setitem(RELEASED, NAME, Released(server.url + "x"))
    with pytest.raises(UserError, match=rf"fetched from {server.url}x \(HTTP Error 404: Not Found\).*{where}"):
        resolve(NAME)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=rf"{server.url}x \(.*[Cc]onnection refused\).*{where}") as error:
        resolve(NAME)
    assert "\n" not in str(error.value)
    assert not left(tmp_path)
