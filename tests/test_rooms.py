"""Who may import whom (docs/design.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moco_plugin"
STDLIB = sys.stdlib_module_names


def imports(folder: Path) -> dict[str, set[str]]:
    """Every file's imported modules, those inside functions included."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        names = found.setdefault(str(path.relative_to(PACKAGE)), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return found


def offenders(folder: Path, *banned: str) -> list[str]:
    return [
        f"{path}: {name}"
        for path, names in imports(folder).items()
        for name in names
        if any(name == b or name.startswith(f"{b}.") for b in banned)
    ]


def test_methods_import_torch_alone() -> None:
    ours = ("moco_plugin.methods", "moco_plugin.registry", "moco_plugin.errors")
    for path, names in imports(PACKAGE / "methods").items():
        for name in names:
            assert name.split(".")[0] in STDLIB | {"torch"} or name.startswith(ours), (path, name)


@pytest.mark.parametrize(
    "room", ["data", "backbones.py", "checkpoints", "methods", "training", "evaluation", "pretraining", "transfer"]
)
def test_lower_rooms_do_not_import_upper_ones(room: str) -> None:
    order = ["training", "evaluation", "pretraining", "transfer", "report"]
    upper = order[order.index(room) + 1 :] if room in order else order
    assert not offenders(PACKAGE / room, *(f"moco_plugin.{name}" for name in upper))


def test_each_framework_has_its_room() -> None:
    rooms = {
        "detectron2": ("transfer/",),
        "lightly_train": ("integrations/lightly_train.py",),
        "pytorch_lightning": ("training/", "evaluation/class", "pretraining/"),
    }
    for framework, allowed in rooms.items():
        assert [o for o in offenders(PACKAGE, framework) if not o.startswith(allowed)] == []


def test_nothing_imports_tools() -> None:
    assert offenders(PACKAGE, "tools", "moco_plugin.tools") == []


def test_package_import_is_light() -> None:
    code = "import sys, moco_plugin; print([m for m in ('torch', 'timm', 'lightly', 'detectron2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
