"""What is required, pinned and installed here agrees; what is known to be harmful is none of it."""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dmqbench.launch import machine_checks
from dmqbench.launch.findings import BROKEN

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")]
HARMFUL = {"pytorch-lightning": ("2.5.0", "2.6.2", "2.6.3", "2.6.5")}


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_installed_and_what_is_pinned_is_what_is_required(name):
    assert REQUIRED[name].contains(version(name), prereleases=True)
    for pin in PINS:
        if pin.name.lower().replace("_", "-") == name.lower().replace("_", "-"):
            [pinned] = pin.specifier
            assert pinned.operator == "==" and REQUIRED[name].contains(pinned.version, prereleases=True)


@pytest.mark.parametrize("name", HARMFUL)
def test_releases_that_are_harmful_are_neither_required_nor_passed_by_the_doctor(monkeypatch, name):
    for release in HARMFUL[name]:
        assert not REQUIRED[name].contains(release)
        found = {"version": lambda package, release=release: release if package == name else "99"}
        monkeypatch.setattr(machine_checks, "version", found["version"])
        monkeypatch.setattr(machine_checks, "requires", lambda _: PROJECT["dependencies"])
        said = {one.name: one for one in machine_checks.packages()}[name]
        assert said.status == BROKEN
        assert said.detail == f"{name} is {release}, needed is {REQUIRED[name]}"


def test_the_lowest_python_that_is_stated_takes_every_pin():
    stated = SpecifierSet(PROJECT["requires-python"])
    lowest = next(one.version for one in stated if one.operator == ">=")
    assert stated.contains(".".join(map(str, sys.version_info[:3])))
    last_patch = f"{lowest}.99"
    for pin in PINS:
        try:
            needed = metadata(pin.name)["Requires-Python"]
        except PackageNotFoundError:
            continue  # pinned for another extra
        environment = {"python_version": lowest, "python_full_version": last_patch}
        applies = pin.marker is None or pin.marker.evaluate(environment)
        assert not applies or SpecifierSet(needed or "").contains(last_patch), pin
