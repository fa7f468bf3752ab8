"""A stage whose code changed carries another version: ids name the version, so old numbers would answer for new code.

Pinned is, for every stage, the version in its YAML and a hash of its module and of what this imports from
``stages/`` and ``calibration/``; the loop around all stages (``calibration/stage.py``) and ``quant/``, which have
tests against independent oracles, are left out. Formatting, comments and docstrings do not count.
"""

import ast
import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

import dmqbench
from dmqbench.config.places import CONF
from dmqbench.config.plugins import own_names

PINS = Path(__file__).with_name("pinned_code.json")
ROOT = Path(dmqbench.__file__).parents[1]
COUNTED = ("dmqbench.stages.", "dmqbench.calibration.")
NOT_COUNTED = "dmqbench.calibration.stage"


def normal_form(node):
    """A syntax tree as lists, without positions, docstrings and what is empty, which Python's versions dump in ways."""
    if isinstance(node, list):
        return [normal_form(part) for part in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = {name: getattr(node, name, None) for name in node._fields}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        parts["body"] = [part for part in node.body if not is_text(part)]
    return [type(node).__name__, [[name, normal_form(part)] for name, part in parts.items() if part not in (None, [])]]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_hash(*sources: str) -> str:
    dumped = json.dumps([normal_form(ast.parse(source)) for source in sources])
    return hashlib.sha256(dumped.encode()).hexdigest()[:16]


def source_of(module: str) -> str | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path.read_text() if path.is_file() else None


def modules_of(module: str, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """The module and the counted ones that it imports, those inside functions too."""
    known |= {module}
    for node in ast.walk(ast.parse(source_of(module) or "")):
        if isinstance(node, ast.ImportFrom):
            names = (f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names))
            for name in names:
                if name.startswith(COUNTED) and name != NOT_COUNTED and name not in known and source_of(name):
                    known = modules_of(name, known)
    return known


def module_with(stage: str) -> str:
    """The module whose class has the name of a stage."""
    for path in sorted((ROOT / "dmqbench" / "stages").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(part, ast.Assign) and ast.unparse(part) == f"name = {stage!r}" for part in node.body
            ):
                return f"dmqbench.stages.{path.stem}"
    raise AssertionError(f"no class of dmqbench/stages has the name {stage!r}")


def current(stage: str) -> dict[str, object]:
    modules = sorted(modules_of(module_with(stage)))
    version = yaml.safe_load((CONF / "stage" / f"{stage}.yaml").read_text())["version"]
    return {"version": version, "code": code_hash(*(source_of(module) or "" for module in modules))}


def difference(stage: str, pinned: dict[str, object] | None, now: dict[str, object]) -> str | None:
    """What has to be done about a stage; None if it is as pinned."""
    if pinned == now:
        return None
    again = "PIN_STAGES=1 python -m pytest tests/stages/test_versions.py"
    if pinned is not None and pinned["version"] == now["version"]:
        return (
            f"the code of stage {stage} changed and its version did not: raise `version` in conf/stage/{stage}.yaml "
            f"if its numbers change; if they are proved to be the same, pin it again: {again}"
        )
    return f"stage {stage} is at version {now['version']}, which is not pinned: {again}"


@pytest.mark.parametrize("stage", own_names("stage"))
def test_code_that_changed_has_another_version(stage):
    pins = json.loads(PINS.read_text()) if PINS.exists() else {}
    now = current(stage)
    if os.environ.get("PIN_STAGES"):
        PINS.write_text(json.dumps(pins | {stage: now}, indent=1, sort_keys=True) + "\n")
        return
    problem = difference(stage, pins.get(stage), now)
    assert problem is None, problem


CODE = """
class Nudge(Stage):
    name = "nudge"

    def iterate(self, unit: str) -> None:
        self.scale.mul_(2)
"""


def test_comments_formatting_and_docstrings_do_not_count():
    same = CODE.replace("(2)", "(\n            2,  # twice\n        )").replace(
        "(Stage):", '(Stage):\n    """Words."""\n'
    )
    assert same != CODE and code_hash(same) == code_hash(CODE)


@pytest.mark.parametrize(("old", "new"), [("2", "3"), ("mul_", "div_"), ("self.scale", "self.bias"), ("2", "2.0")])
def test_what_computes_counts(old, new):
    assert code_hash(CODE.replace(old, new)) != code_hash(CODE)


def test_the_message_says_which_and_how():
    pinned, now = {"version": 1, "code": "a"}, {"version": 1, "code": "b"}
    assert difference("nudge", pinned, pinned) is None
    message = str(difference("nudge", pinned, now))
    assert "stage nudge" in message and "conf/stage/nudge.yaml" in message and "PIN_STAGES=1" in message
    assert "not pinned" in str(difference("nudge", pinned, now | {"version": 2}))
    assert "not pinned" in str(difference("nudge", None, now))


def test_what_a_stage_imports_is_pinned_with_it():
    modules = modules_of(module_with("trajectory_reconstruction"))
    assert {"dmqbench.stages.trajectory_reconstruction", "dmqbench.stages.trajectory_gradients"} <= modules
    assert NOT_COUNTED not in modules and not any("quant" in module for module in modules)
