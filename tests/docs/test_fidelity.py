"""The fidelity page names switches, defaults and tests that exist, and all of what ``method.faithful`` sets."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.config.values import leaves

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "fidelity.md").read_text()
CLAIMS = (ROOT / "docs" / "findings" / "claims.md").read_text()
STAGES: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in (ROOT / "conf" / "stage").glob("*.yaml")}

METHODS = {
    "Grids, in every method": ("rtn",),
    "Q-Diffusion and rounding to nearest": ("q_diffusion",),
    "DMQ": ("dmq",),
    "EfficientDM and MPQ-DM": ("mpq_dm", "efficient_dm"),
    "AccuQuant": ("accuquant",),
    "Not in any paper": ("dmq",),
}
"""Section → the methods that it is about, the first of which has the defaults that it tells."""

PRESETS = [(section, method) for section in ("DMQ", "EfficientDM and MPQ-DM") for method in METHODS[section]]

SECTIONS = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT))
_SWITCH = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*=[^`\s]+)`")
_HERE = re.compile(r"here ((?:`[^`]+`(?:, )?)+)")
SWITCHES = sorted({(section, switch) for section in SECTIONS for switch in _SWITCH.findall(SECTIONS[section])})
TESTS = sorted(set(re.findall(r"`([\w/]+\.py::\w+)`", TEXT)))


def plain(config: Any) -> dict[str, Any]:
    """A configuration as it is written."""
    written = OmegaConf.to_container(config, resolve=False)
    assert isinstance(written, dict)
    return {str(key): value for key, value in written.items()}


def stage_key(switch: str) -> tuple[str, str] | None:
    """The stage and key of a switch, None if it is of no stage."""
    name = switch.partition("=")[0].removeprefix("method.")
    stage, _, key = name.partition(".")
    return (stage, key) if stage in STAGES else None


def value_of(switch: str) -> object:
    """Its value, as YAML reads it."""
    return OmegaConf.create(f"value: {switch.partition('=')[2]}").value


def allowed(stage: str, key: str, value: object) -> bool:
    """Whether the YAML of a stage has the key, and nothing in it speaks against the value."""
    settings = STAGES[stage]
    if key not in settings:
        return False
    limits = settings.get("limits", {})
    choices = limits.get("choices", {}).get(key)
    if choices is not None:
        return value in choices
    least, most = limits.get("bounds", {}).get(key, (None, None))
    default = plain(settings)[key]
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    is_number = isinstance(value, int | float)
    return is_number and (least is None or value >= least) and (most is None or value <= most)


@cache
def composed(method: str) -> DictConfig:
    return compose([f"method={method}"])


@pytest.mark.parametrize(("section", "switch"), SWITCHES, ids=lambda part: part)
def test_a_switch_is_one(section, switch):
    place = stage_key(switch)
    if place is None:
        # Steps of their own need a rule for calls that were not calibrated.
        rule = ["calibration.match=nearest"] if switch.startswith("calibration.steps") else []
        make_job(compose([f"method={METHODS[section][0]}", *rule, switch]))
    else:
        assert allowed(*place, value_of(switch))
        assert any(place[0] in composed(method).method for method in METHODS[section])


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("weight_range", "zero_in_rang", True),
        ("weight_range", "zero_in_range", 1),
        ("weight_range", "observer", "max"),
        ("low_rank_tuning", "window", 0),
        ("outlier_allocation", "largest_tenths", 6),
    ],
)
def test_what_is_no_switch_is_seen(stage, key, value):
    assert not allowed(stage, key, value)


def test_what_is_told_as_the_default_is_the_default():
    told = 0
    for section, (method, *_) in METHODS.items():
        for switch in _SWITCH.findall(" ".join(_HERE.findall(SECTIONS[section]))):
            place, config = stage_key(switch), composed(method)
            at = f"method.{'.'.join(place)}" if place else switch.partition("=")[0]
            if not at.startswith("budget"):  # a choice, which is told by its name
                assert OmegaConf.select(config, at) == value_of(switch), (section, switch)
            told += 1
        for ranges in re.findall(r"`bits.ranges=method`, which is `(\w+)`", SECTIONS[section]):
            assert ranges == composed(method).method.ranges
    assert told > 40


@pytest.mark.parametrize(("section", "method"), PRESETS)
def test_all_that_a_preset_sets_is_told(section, method):
    preset = dict(plain(composed(method).method.faithful_settings))
    stages = preset.pop("stages", [])
    assert all(f"`{stage}`" in SECTIONS[section] or f"`{stage}." in SECTIONS[section] for stage in stages)
    told = {(stage_key(switch), str(value_of(switch))) for switch in _SWITCH.findall(SECTIONS[section])}
    for name, value in leaves("", preset):
        assert (tuple(name.strip(".").split(".")), str(value)) in told, name


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", TESTS)
def test_a_test_is_one(name):
    path, function = name.split("::")
    assert function.startswith("test_") and function in functions(ROOT / "tests" / path)


def test_every_row_has_its_columns_and_says_what_holds_it():
    assert set(SECTIONS) == set(METHODS)
    rows = [re.split(r"(?<!\\)\|", line) for line in TEXT.splitlines() if line.startswith("| ")]
    assert len(rows) > 90 and {len(row) for row in rows} == {9}
    assert all("::" in row[7] or row[7].strip() == "test" or row[7].strip().startswith("none") for row in rows)


def test_sweeps_of_the_claims_are_there():
    named = set(re.findall(r"\+sweeps=(\w+)", CLAIMS + TEXT))
    assert len(named) > 5 and all((ROOT / "sweeps" / f"{name}.yaml").is_file() for name in named)
