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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("moco_plugin", "tools", "demo", "benchmarks", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return build_wheel(source, source / "dist")


def test_wheel_holds_all_code_and_configs(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    for folder, home in (
        ("moco_plugin", ""),
        *((f, "moco_plugin/") for f in ("tools", "demo", "benchmarks", "configs")),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".html"):
                assert f"{home}{path.relative_to(ROOT).as_posix()}" in files


def test_every_tool_is_a_console_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
    entry_points = configparser.ConfigParser(delimiters="=")
    entry_points.read_string(archive.read(name).decode())
    commands = dict(entry_points["console_scripts"])
    assert "timm" in entry_points["moco_plugin.formats"]
    tools = [path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__"]
    names = {tool: tool.removesuffix("_cli").replace("_", "-") for tool in tools}
    assert commands == {f"moco-{name}": f"moco_plugin.tools.{tool}:main" for tool, name in names.items()}


def test_installed_package_finds_its_configs_by_name(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from moco_plugin.schema import find_config\n"
        "print(find_config('moco_v2_resnet50_200ep', 'pretrain'), find_config('voc/pascal_voc_R_50_C4_24k', 'detectron2'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    paths = result.stdout.split()
    assert len(paths) == 2 and all(
        path.startswith(str(tmp_path / "site" / "moco_plugin" / "configs")) for path in paths
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "tools").glob("*.py") if p.stem != "__init__"))
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = __import__(f"moco_plugin.tools.{name}", fromlist=["main"])
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "example" in shown.lower()
