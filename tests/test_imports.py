"""Who may import whom (design, section 2), read from the sources without running them."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dmqbench"
MODULES = sorted(PACKAGE.rglob("*.py"))
TORCH_ONLY = ("quant", "samplers", "engines")
MAY_IMPORT = {
    "diffusers": ("models/", "api.py", "zoo/"),
    "onnx": ("models/packaged/",),
    "wandb": ("tracking/",),
    "hydra": ("cli.py", "config/compose.py", "config/overrides.py", "launch/launcher.py"),
}
"""zoo/ trains the embedded models and is a tool of its own."""

FLOORS = (
    ("api",),
    ("cli", "report", "doctor", "tasks", "zoo"),
    ("launch",),
    ("results", "anatomy", "methods"),
    ("stages", "eval"),
    ("calibration",),
    ("config",),
    ("models",),
    ("engines", "tracking"),
    ("quant", "samplers", "data"),
    ("store",),
)
"""From top to bottom: a module imports its own room and the floors below it."""

WALLS = {
    "results": ("tasks", "zoo"),
    "eval": ("tasks", "zoo"),
    "methods": ("tasks", "results", "eval"),
    "stages": ("tasks", "results", "eval"),
}
"""Room → rooms that it must not import, though a floor would allow some."""

WITHOUT_TORCH = (
    *("cli", "report", "doctor", "tracking.tracker", "tracking.push", "tracking.dashboards", "results.page"),
    *("data.archives", "eval.weights", "models.foreign"),
    *(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for room in ("launch", "config", "store", "results")
        for path in sorted((PACKAGE / room).rglob("*.py"))
        if path.stem != "__init__"
    ),
)
"""What answers without computing."""


tree_of = cache(lambda module: ast.parse(module.read_text()))
"""The source of a module, which many rules look at."""


@cache
def imported(module: Path) -> set[str]:
    """Dotted names of all imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def needed(module: Path) -> set[str]:
    """Dotted names of all imports but those under ``if TYPE_CHECKING``."""
    tree = tree_of(module)
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    hidden = {id(child) for node in typing for child in ast.walk(node)}
    return {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and id(node) not in hidden
        for name in (f"{node.module}.{alias.name}" for alias in node.names)
    }


def place(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def room_of(module: Path) -> str:
    return place(module).removesuffix(".py").partition("/")[0]


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", MODULES, ids=place)
def test_outer_libraries_are_imported_only_where_they_belong(module):
    roots = {name.partition(".")[0] for name in imported(module)}
    for library, places in MAY_IMPORT.items():
        if library in roots:
            assert place(module).startswith(places), f"{place(module)} imports {library}"


@pytest.mark.parametrize("module", [module for module in MODULES if place(module).startswith(TORCH_ONLY)], ids=place)
def test_the_core_needs_torch_only(module):
    allowed = {*sys.stdlib_module_names, "torch", "dmqbench"}
    assert {name.partition(".")[0] for name in imported(module)} <= allowed
    own = {name.split(".")[1] for name in imported(module) if name.startswith("dmqbench.")}
    assert own <= {*TORCH_ONLY}


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) != "__init__"], ids=place)
def test_imports_point_downwards(module):
    mine = room_of(module)
    theirs = {name.split(".")[1] for name in imported(module) if name.startswith("dmqbench.")} - {mine}
    for room in theirs:
        assert floor_of(room) > floor_of(mine), f"{place(module)} imports {room}, which is not below it"
    assert not theirs & {*WALLS.get(mine, ())}


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count; those for types alone do not."""
    names = {
        f"dmqbench.{place(module).removesuffix('.py').replace('/', '.').removesuffix('.__init__')}": module
        for module in MODULES
    }
    graph = {
        name: {
            part
            for full in needed(module)
            for part in (full, full.rpartition(".")[0])
            if part in names and part != name
        }
        for name, module in names.items()
    }
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_newcomer_finds_few_modules_at_the_top():
    assert len([path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]) <= 5


def test_what_answers_without_computing_imports_no_torch():
    code = f"""
import importlib, sys
for name in {WITHOUT_TORCH!r}:
    importlib.import_module("dmqbench." + name)
    assert "torch" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pickle_and_no_code_from_data():
    """No module loads a pickle, evaluates text or asks a shell."""
    for module in MODULES:
        names = {name.partition(".")[0] for name in imported(module)}
        assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, module
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), module
            if isinstance(node, ast.keyword) and node.arg in ("shell", "weights_only"):
                assert isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
