"""Where the files lie that come with this package: configurations and sweeps."""

from functools import cache
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return a folder that lies beside the package in a checkout and inside it in a wheel."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


CONF = shipped("conf")
SWEEPS = shipped("sweeps")


@cache
def planned(group: str) -> tuple[str, ...]:
    """Return the options of a group that are to come, and refused as such until their YAML exists."""
    return tuple(yaml.safe_load((CONF / "planned.yaml").read_text(encoding="utf-8")).get(group, ()))


def yaml_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the YAMLs in a folder, sorted; none if there is no folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))
