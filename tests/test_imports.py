"""Who may import whom (design, section 2), read from the sources without running them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dmqbench"
MODULES = sorted(PACKAGE.rglob("*.py"))
TORCH_ONLY = ("quant", "samplers", "engines")
MAY_IMPORT = {
    "diffusers": ("models/", "api.py", "zoo/"),
    "wandb": ("tracking.py",),
    "hydra": ("cli.py", "config.py", "run.py"),
}
"""zoo/ trains the embedded models and is a tool of its own."""

LAYERS = (
    ("cli",),
    ("planning",),
    ("scoring", "anatomy", "api"),
    ("run",),
    ("costs", "packed_size", "feature_cache"),
    ("pipeline",),
    ("methods", "eval"),
    ("data", "models"),
    ("engines", "samplers"),
    ("quant",),
)
"""From top to bottom: a module imports its own layer and those below. Data and models share one: the bank
follows trajectories through an adapter, whose conditions are drawn as the bank's noise is."""


def imported(module: Path) -> set[str]:
    """Dotted names of all imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def layer_of(part: str) -> int | None:
    return next((number for number, names in enumerate(LAYERS) if part in names), None)


def own_layer(module: Path) -> int | None:
    """None for what every layer may use: files, images, schema, store."""
    return layer_of(place(module).removesuffix(".py").partition("/")[0])


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


@pytest.mark.parametrize("module", [module for module in MODULES if own_layer(module) is not None], ids=place)
def test_imports_point_downwards(module):
    mine = own_layer(module)
    for name in imported(module):
        if name.startswith("dmqbench."):
            theirs = layer_of(name.split(".")[1])
            assert theirs is None or theirs >= mine, f"{place(module)} imports {name}"


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "planning",
        "config",
        "store",
        "tracking",
        "report",
        "doctor",
        "proxies",
        "page",
        "record",
        "points",
        "replay",
        "dashboards",
    ],
)
def test_what_answers_without_computing_imports_no_torch(module):
    code = f"import sys, dmqbench.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_pickle_and_no_code_from_data():
    """No module loads a pickle, evaluates text or asks a shell."""
    for module in MODULES:
        names = {name.partition(".")[0] for name in imported(module)}
        assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, module
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), module
            if isinstance(node, ast.keyword) and node.arg in ("shell", "weights_only"):
                assert isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
