"""A headless Chromium that loads a page and says what became of it."""

from __future__ import annotations

import os
import shutil
import subprocess
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
    """Returns Chromium's path; without one the test is skipped, but fails in continuous integration."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium to render the report with")
    pytest.skip("no Chromium to render the report with")


def load(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Loads a page.

    Args:
        page: An HTML file.
        profile: Folder for the browser's own files.

    Returns:
        The document after loading, and what was said on the console.
    """
    command = [find_browser(), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]
