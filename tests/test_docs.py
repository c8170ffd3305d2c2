"""The documentation: the site builds strictly, the README is short, and what its examples name exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moco_plugin.schema import find_config
from tests.helpers.browser import ask

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# Loads pages at 1400 pixels, and returns the code that is cut and the first results of searches.
LOOK = """
const found = {cut: [], results: {}};
const load = url => new Promise(done => {
  const frame = Object.assign(document.createElement('iframe'), {width: 1400, height: 900, src: url});
  frame.onload = () => done(frame);
  document.body.append(frame);
});
for (const page of PAGES) {
  const frame = await load(page);
  for (const code of frame.contentDocument.querySelectorAll('pre > code'))
    if (code.scrollWidth > code.clientWidth + 1) found.cut.push(page + ': ' + code.textContent.slice(0, 80));
  frame.remove();
}
for (const word of WORDS) {
  const frame = await load('/?q=' + encodeURIComponent(word));
  let links = [];
  for (let i = 0; i < 150 && !links.length; i++) {
    await new Promise(done => setTimeout(done, 100));
    links = [...frame.contentDocument.querySelectorAll('.md-search-result__item a')];
  }
  found.results[word] = links.map(link => new URL(link.href).pathname);
  frame.remove();
}
return found;
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, a missing page or a name that is not documented is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_site_has_every_page(site: Path) -> None:
    pages = {path.parent.name for path in site.glob("*/index.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} == pages
    assert "Momentum Contrast" in (site / "api/index.html").read_text()
    assert "<!-- reference" not in (site / "settings/index.html").read_text()
    home = (site / "index.html").read_text()
    assert "import LightlyDataset" in re.sub("<[^>]+>", "", (site / "lightly/index.html").read_text())  # by a snippet
    assert "pictures/demo.png" in home and "67.0" in home and home.count("tools/pretrain.py") >= 1


def test_search_finds_and_code_is_not_cut(site: Path, tmp_path: Path) -> None:
    pages = [f"/{path.parent.name}/" for path in sorted(site.glob("*/index.html"))]
    expected = {
        "wandb": "/loggers/",
        "license": "/citation/",
        "trainer.logger": "/loggers/",
        "schedule.steps": "/settings/",
        "hf_prob": "/settings/",
        "data.batch_size": "/settings/",
        "sbatch": "/distributed/",
        "ffmpeg": "/collecting/",
        "duplicates": "/features/",
    }
    script = LOOK.replace("PAGES", json.dumps(["/", *pages])).replace("WORDS", json.dumps(list(expected)))
    found = ask(site, script, tmp_path / "profile", seconds=240)
    assert found["cut"] == []
    assert {word: page for word, page in expected.items() if page not in found["results"][word][:8]} == {}


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
