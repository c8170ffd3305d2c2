"""Who may import whom (docs/design.md)."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import moco_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moco_plugin"
STDLIB = sys.stdlib_module_names
# Each room imports those before it alone; the names of files stand for modules at the top of the package.
ORDER = (
    "errors",
    "files",
    "typed",
    "safe_yaml",
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
    "exports",
    "pages",
    "__init__",
)
EXTRAS = ("sources", "probes", "exports", "pages")  # and detectors, which only its page imports


NAMED = re.compile(r"moco_plugin(\.\w+)+(:\w+)?")
PUBLIC = moco_plugin._MODULES  # what `import moco_plugin` leads to, by name
# Who asks for entry points, which lead to higher rooms and to other packages; tools/evaluate.py asks for evaluations.
ASKS = {"moco_plugin.formats": "checkpoints", "moco_plugin.methods": "methods", "moco_plugin.sources": "data"}
LARGEST_ROOM = 0.15  # of the package
CORE_LINES, PACKAGE_LINES = 14_700, 20_900


def imports(path: Path) -> set[str]:
    """Modules and names that a file imports or names, in functions, strings and attributes of ``moco_plugin`` too."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    groups = {
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "group"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("moco_plugin."):
            found.add(name)
        elif isinstance(node, ast.Constant) and node not in groups and NAMED.fullmatch(named := str(node.value)):
            found |= {named.replace(":", "."), named.partition(":")[0]}
    public = {name.split(".")[1] for name in found if name.startswith("moco_plugin.")} & PUBLIC.keys()
    return found | {PUBLIC[name] for name in public}


FILES = {path.relative_to(PACKAGE).as_posix(): imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str | None:
    """Return the room of a module or name of the package; None for what is not one."""
    first = module.split(".")[1] if module.startswith("moco_plugin.") else ""
    return first if first in ORDER else None


def test_every_file_is_in_a_room() -> None:
    assert {name.split("/")[0].removesuffix(".py") for name in FILES} == set(ORDER)


def test_rooms_import_lower_rooms_alone() -> None:
    """So there is no cycle of rooms, not even in functions. Nothing imports an extra but the package's __init__."""
    wrong = []
    for name, modules in FILES.items():
        own = name.split("/")[0].removesuffix(".py")
        for room in {room for module in modules if (room := room_of(module)) and room != own}:
            if ORDER.index(room) > ORDER.index(own) or (room in EXTRAS and own != "__init__"):
                wrong.append(f"{name} imports {room}")
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


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        *(
            (f"import {name}", "torch timm lightly detectron2")
            for name in ("moco_plugin", "moco_plugin.transfer.tasks")
        ),
        ("import moco_plugin; moco_plugin.evaluate_knn", "pytorch_lightning"),
    ],
)
def test_imports_are_light(statement: str, heavy: str) -> None:
    code = f"import sys; {statement}; print([name for name in {heavy.split()} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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


def test_entry_points_lead_to_what_exists() -> None:
    """They are the only way to a higher room; who asks for them is on a list."""
    asks = {}
    for name in FILES:
        for group in re.findall(r'entry_points\(group="([\w.]+)"\)', (PACKAGE / name).read_text()):
            asks[group] = name.split("/")[0]
    assert asks == ASKS
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for values in named.values():
        for value in values.values():
            assert f"{value.partition(':')[0].removeprefix('moco_plugin.').replace('.', '/')}.py" in FILES, value


def test_rooms_are_small() -> None:
    lines: Counter[str] = Counter()
    for name in FILES:
        room = "transfer/components" if name.startswith("transfer/components/") else name.split("/")[0]
        lines[room] += len((PACKAGE / name).read_text().splitlines())
    assert {room: count for room, count in lines.items() if count > LARGEST_ROOM * lines.total()} == {}
    assert lines.total() <= PACKAGE_LINES
    assert lines.total() - sum(lines[extra] for extra in (*EXTRAS, "detectors")) <= CORE_LINES


@pytest.mark.parametrize(
    "line",
    [
        "import importlib; importlib.import_module('moco_plugin.pages.page')",
        "ENTRY = 'moco_plugin.pages.page:draw'",
        "import moco_plugin; moco_plugin.evaluate_retrieval",
        "from moco_plugin import evaluate_retrieval",
        "def late():\n    import moco_plugin.pages.page",
    ],
)
def test_hidden_imports_are_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(line)
    assert {room_of(name) for name in imports(tmp_path / "file.py")} & set(EXTRAS)
