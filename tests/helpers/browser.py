"""A headless Chromium that loads a page, and a parser that reads it."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]


def find_browser() -> str:
    """Return Chromium's path; without one the test is skipped, but fails in continuous integration."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium to render the report with")
    pytest.skip("no Chromium to render the report with")


def load(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Load a page.

    Args:
        page: An HTML file.
        profile: Folder for the browser's own files.

    Returns:
        The document after loading, and what was said on the console.
    """
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
