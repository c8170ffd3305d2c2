"""The documentation: the site builds strictly, the README is short, and what its examples name exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from moco_plugin.schema import find_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_site_builds_strictly(tmp_path: Path) -> None:
    """A broken link, a missing page or an undocumented name in the API page is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert {"images", "detection", "hardware", "health", "api"} <= pages
    assert "Momentum Contrast" in (tmp_path / "site/api/index.html").read_text()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_examples_name_what_exists(page: Path) -> None:
    text = page.read_text()
    for tool in set(re.findall(r"tools/(\w+)\.py", text)):
        assert (ROOT / "tools" / f"{tool}.py").is_file(), tool
    for name in set(re.findall(r"tools/pretrain\.py --config (\w+)", text)):
        assert find_config(name, "pretrain").is_file()
    for link in set(re.findall(r"\]\(((?:docs/)?[\w./]+\.md)", text)):
        assert (page.parent / link).is_file(), link


def test_python_examples_compile() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, str(page), "exec")
