"""What is in the wheel: code, tools as console commands, configs that are found by name."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.wheel import build_wheel

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")


# Builds from a copy of the tree as a clone has it, without an index.
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
INSTALL = ("install", "-q", "--no-deps", "--no-index")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("moco_plugin", "tools", "demo", "benchmarks", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build_wheel(source, source / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that contains only the wheel; its dependencies are found in the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *INSTALL, str(wheel)], check=True)
    (home,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]  # read without their .pth files
    (home / "others.pth").write_text("\n".join(others) + "\n")
    return folder


def test_sdist_gives_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    again = build_wheel(tmp_path / built.stdout.split()[-1], tmp_path / "dist")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_installed_wheel_has_every_command_and_finds_its_configs(installed: Path, tmp_path: Path) -> None:
    code = (
        "import moco_plugin.schema as s; print(s.__file__, s.find_config('moco_v2_resnet50_200ep', 'pretrain'), "
        "s.find_config('voc/pascal_voc_R_50_C4_24k', 'detectron2'))"
    )
    python = str(installed / "bin" / "python")
    found = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    package, *configs = found.stdout.split()
    assert package.startswith(str(installed)) and len(configs) == 2
    assert all(path.startswith(str(installed)) and "moco_plugin/configs" in path for path in configs)
    commands = sorted((installed / "bin").glob("moco-*"))
    assert len(commands) == len(TOOLS)
    for command in commands:
        shown = subprocess.run([str(command), "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert shown.returncode == 0 and "example" in shown.stdout, (command, shown.stderr)


def test_wheel_contains_all_code_and_configs_and_a_command_for_each_tool(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("moco_plugin", "tools", "demo", "benchmarks", "configs"):
        home = "" if folder == "moco_plugin" else "moco_plugin/"
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".html"):
                assert f"{home}{path.relative_to(ROOT).as_posix()}" in files
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in files if n.endswith("entry_points.txt"))
    entry_points = configparser.ConfigParser(delimiters="=")
    entry_points.read_string(archive.read(name).decode())
    commands = dict(entry_points["console_scripts"])
    assert "timm" in entry_points["moco_plugin.formats"]
    names = {tool: tool.removesuffix("_cli").replace("_", "-") for tool in TOOLS}
    assert commands == {f"moco-{name}": f"moco_plugin.tools.{tool}:main" for tool, name in names.items()}
