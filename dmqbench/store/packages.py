"""Files inside installed packages of the ordinary registry, pinned by their hash; nothing of a package is imported."""

from importlib.util import find_spec
from pathlib import Path

from dmqbench.store.files import sha256_once


class NotInstalled(LookupError):
    """A package is not here; the message is its name, as Python imports it."""


def absent(*packages: str) -> list[str]:
    """Return which packages are not installed."""
    return [name for name in packages if find_spec(name) is None]


def packaged_file(package: str, file: str | Path, sha256: str) -> Path:
    """Return a file that an installed package ships.

    Raises:
        NotInstalled: the package is not here.
        ValueError: its file is not the published one; one line.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalled(package)
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file() or sha256_once(path) != sha256:
        raise ValueError(f"{path}: not the published weights")
    return path
