"""The Dockerfile: its syntax, and the wheel from what it copies."""

import shutil
import subprocess
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from tests.helpers.wheel import build_wheel

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
ROOT = Path(__file__).parents[1]
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "CMD", "COMMENT"}


@pytest.fixture
def steps(tmp_path: Path) -> list[dict[str, str]]:
    shutil.copy(ROOT / "Dockerfile", tmp_path)  # the parser opens it for writing
    found: list[dict[str, str]] = DockerfileParser(str(tmp_path)).structure
    return found


def test_instructions(steps: list[dict[str, str]]) -> None:
    instructions = [step["instruction"] for step in steps]
    assert set(instructions) <= KNOWN
    first = next(step for step in steps if step["instruction"] != "COMMENT")
    assert first["value"].startswith("BASE=")  # before the first FROM, so that FROM may use it
    bases = [step["value"] for step in steps if step["instruction"] == "FROM"]
    assert bases == ["python:3.11-slim AS build", "${BASE}"]
    for step in steps:
        if step["instruction"] == "RUN":
            checked = subprocess.run(["bash", "-n", "-c", step["value"]], capture_output=True, text=True)
            assert checked.returncode == 0, checked.stderr
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (command,) = (step["value"] for step in steps if step["instruction"] == "CMD")
    assert command.split('"')[1] in scripts["scripts"]
    installed = next(step["value"] for step in steps if "*.whl)[" in step["value"])
    assert "index-url" not in (ROOT / "Dockerfile").read_text()  # pip's settings name the index
    extras = installed.partition("*.whl)[")[2].partition("]")[0].split(",")
    assert set(extras) <= set(scripts["optional-dependencies"])


def test_wheel_is_built_from_what_is_copied(steps: list[dict[str, str]], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for step in steps:
        if step["instruction"] != "COPY" or step["value"].startswith("--from"):
            continue
        *names, target = step["value"].split()
        for name in names:
            assert (ROOT / name).exists(), name
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source)
    assert build_wheel(source, tmp_path).is_file()
