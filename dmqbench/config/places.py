"""Where the files lie that come with this package: configurations and sweeps."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return a folder that lies beside the package in a checkout and inside it in a wheel."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


CONF = shipped("conf")
SWEEPS = shipped("sweeps")


def yaml_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the YAMLs in a folder, sorted; none if there is no folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))
