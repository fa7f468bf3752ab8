"""Plug-in packages for tests: a package and the metadata that pip would write, in a folder for ``sys.path``."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

METHOD_YAML = """
defaults:
  - /stage/weight_range@weight_range
  - /stage/activation_range@activation_range
  - _self_

name: {name}
stages: [weight_range, nudge, activation_range]
faithful: false
path: null
calibration: common
ranges: shared
paper_scope: {{first_last: false, embedding: false, attention: false, split: true}}
nudge: {{version: 1, uses: [weight], not_in_id: [], strength: 0.5}}
"""


def install(place: Path, package: str, files: Mapping[str, str], version: str = "1.0") -> Path:
    """Write ``package`` with ``files`` and what declares it as a plug-in of its own name; return its folder."""
    for name, text in {"__init__.py": "", **files}.items():
        path = place / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    about = place / f"{package}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[dmqbench.plugins]\n{package} = {package}\n")
    return place / package
