"""Who may import whom (docs/design.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moco_plugin"
STDLIB = sys.stdlib_module_names
# Each room imports those before it alone; the names of files stand for modules at the top of the package.
ORDER = (
    "errors",
    "safe_yaml",
    "files",
    "schema",
    "papers",
    "weight_files",
    "methods",
    "backbones",
    "data",
    "sources",
    "checkpoints",
    "runs",
    "evaluation",
    "pretraining",
    "transfer",
    "detectors",
    "integrations",
    "probes",
    "pages",
    "__init__",
)
EXTRAS = ("sources", "probes", "pages")  # and detectors, which only its page imports


def imports(path: Path) -> set[str]:
    """Modules and names that a file imports, those inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FILES = {path.relative_to(PACKAGE).as_posix(): imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str | None:
    """Return the room of a module or name of the package; None for what is not one."""
    first = module.split(".")[1] if module.startswith("moco_plugin.") else ""
    return first if first in ORDER else None


def test_every_file_is_in_a_room() -> None:
    assert {name.split("/")[0].removesuffix(".py") for name in FILES} == set(ORDER)


def test_rooms_import_lower_rooms_alone() -> None:
    """So there is no cycle of rooms, not even one that is hidden in functions."""
    wrong = []
    for name, modules in FILES.items():
        own = name.split("/")[0].removesuffix(".py")
        rooms = {room for module in modules if (room := room_of(module)) and room != own}
        wrong += [f"{name} imports {room}" for room in rooms if ORDER.index(room) > ORDER.index(own)]
    assert wrong == []


def test_nothing_imports_an_extra() -> None:
    """Nor do extras import each other; the package's __init__ names what Python calls."""
    wrong = []
    for name, modules in FILES.items():
        own = name.split("/")[0].removesuffix(".py")
        wrong += [name for module in modules if room_of(module) in EXTRAS and own not in ("__init__", room_of(module))]
    assert wrong == []


def test_files_form_no_cycle() -> None:
    modules = {
        "moco_plugin." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in FILES
    }
    graph = {
        module: {other for other in FILES[name] if other in modules and other != module}
        for module, name in modules.items()
        if not name.endswith("__init__.py")
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done or module not in graph:
            return
        for other in graph[module]:
            visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_components_need_nothing_of_the_experiments() -> None:
    """What registers with detectron2 is a room within a room: of ``transfer`` it imports two light files alone."""
    allowed = ("components", "compat", "voc_files")
    for path, names in FILES.items():
        if path.startswith("transfer/components/"):
            parts = {name.split(".")[2] for name in names if name.startswith("moco_plugin.transfer.")}
            assert parts <= set(allowed), (path, parts)


def test_methods_import_torch_alone() -> None:
    ours = ("moco_plugin.methods", "moco_plugin.errors")
    for path, names in FILES.items():
        if path.startswith("methods/"):
            for name in names:
                assert name.split(".")[0] in STDLIB | {"torch", "triton"} or name.startswith(ours), (path, name)


@pytest.mark.parametrize(
    ("framework", "rooms"),
    [
        ("detectron2", ("transfer/", "detectors/")),
        ("lightly_train", ("integrations/lightly_train/",)),
        ("pytorch_lightning", ("runs/", "evaluation/linear.py", "evaluation/classifier.py", "pretraining/")),
        ("jinja2", ("pages/",)),
    ],
)
def test_each_framework_has_its_rooms(framework: str, rooms: tuple[str, ...]) -> None:
    found = [name for name, modules in FILES.items() if framework in {module.split(".")[0] for module in modules}]
    assert found and all(name.startswith(rooms) for name in found), found


def test_nothing_imports_or_names_a_tool() -> None:
    wrong = [
        name for name, modules in FILES.items() if any(m.startswith(("tools", "moco_plugin.tools")) for m in modules)
    ]
    named = [name for name in FILES if "moco_plugin.tools" in (PACKAGE / name).read_text()]
    assert wrong + named == []


@pytest.mark.parametrize("module", ["moco_plugin", "moco_plugin.transfer", "moco_plugin.transfer.tasks"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'timm', 'lightly', 'detectron2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_neighbours_need_no_trainer() -> None:
    code = "import sys, moco_plugin; moco_plugin.evaluate_knn; print('pytorch_lightning' in sys.modules)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


COMPONENTS = """
import moco_plugin.transfer.components
from detectron2.modeling import BACKBONE_REGISTRY
assert "build_timm_backbone" in BACKBONE_REGISTRY
"""
OWN = """
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    pass
"""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (COMPONENTS + "from detectron2.engine import DefaultTrainer", ""),
        ("from moco_plugin import predict, run_trials" + COMPONENTS, ""),
        ("import moco_plugin.transfer\nfrom detectron2.engine import DefaultTrainer" + COMPONENTS, ""),
        (
            "import moco_plugin.transfer" + OWN + COMPONENTS,
            "'Res5ROIHeadsExtraNorm' was already registered .*another name",
        ),
        (COMPONENTS + OWN, "'Res5ROIHeadsExtraNorm' was already registered"),
    ],
)
def test_components_register_by_their_import(script: str, message: str) -> None:
    """As in a script of detectron2's, which imports them first or last, or has a component of its own of the name."""
    pytest.importorskip("detectron2")
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert (result.returncode == 0) == (not message) and re.search(message, result.stderr), result.stderr


def test_no_file_is_long() -> None:
    files = [path for folder in ("moco_plugin", "tools", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if len(path.read_text().splitlines()) > 350] == []
