"""A headless Chromium that loads a page, and a parser that reads it."""

import json
import os
import queue
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr""".split()


def find_browser() -> str:
    """Return Chromium's path; without one the test is skipped, but fails in continuous integration."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium to render the report with")
    pytest.skip("no Chromium to render the report with")


def load(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document of an HTML file after loading, and its console; ``profile`` gets the browser's own files."""
    command = [find_browser(), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


VOID = {"meta", "link", "img", "source", "br"}


class Reader(HTMLParser):
    """Checks that every element is closed in order, and keeps what tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class _Site(SimpleHTTPRequestHandler):
    """Serves a folder, a page with a script, and takes what the script posts."""

    page: bytes
    answers: queue.Queue[Any]

    def do_GET(self) -> None:
        if self.path != "/probe":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.page)

    def do_POST(self) -> None:
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def ask(site: Path, script: str, profile: Path, seconds: float = 60) -> Any:
    """Serve a folder and return what an asynchronous JavaScript function of this body returns in a page of it."""
    page = (
        f"<body><script>(async () => {{{script}}})().then(a => fetch('/', {{method: 'POST', body: JSON.stringify(a)}}))"
    )
    answers: queue.Queue[Any] = queue.Queue()
    handler = type("Site", (_Site,), {"page": f"{page}</script></body>".encode(), "answers": answers})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/probe"
        command = [find_browser(), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", url]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return answers.get(timeout=seconds)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
