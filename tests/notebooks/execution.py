"""A notebook's text, carried out in a kernel of this interpreter and this checkout; run by ``make notebooks``."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
TEXTS = sorted((ROOT / "notebooks").glob("*.py"))


def executed(text: Path, place: Path, sizes: Mapping[str, str] | None = None, **variables: str) -> NotebookNode:
    """Return the notebook with its outputs, begun in the folder ``place`` with ``variables`` in its environment.

    It knows no run store but by them; an error in a cell is raised here. ``sizes``: overrides that stand in its cells
    for others.
    """
    notebook = jupytext.read(text)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # jupytext draws them at random
        for key, value in (sizes or {}).items():
            cell.source = re.sub(rf"\b{re.escape(key)}=\S+", f"{key}={value}", cell.source)
    given = {key: value for key, value in os.environ.items() if key != "DMQBENCH_RUNS"}
    ours = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(place / ".ipython"),
        "TMPDIR": str(place),
    }
    with tempfile.TemporaryDirectory() as sockets:  # whose paths must be short
        connection = {"transport": "ipc", "connection_file": str(Path(sockets) / "kernel.json")}
        client = NotebookClient(
            notebook,
            config=Config(KernelManager=connection),
            kernel_name="python3",
            timeout=240,
            record_timing=False,
            resources={"metadata": {"path": str(place)}},
        )
        client.execute(env={**given, **ours, **variables})
    return notebook


def main() -> None:
    """Write every notebook beside its text, with the outputs of a run in an empty folder."""
    for text in TEXTS:
        with tempfile.TemporaryDirectory() as place:
            nbformat.write(executed(text, Path(place)), text.with_suffix(".ipynb"))


if __name__ == "__main__":
    sys.exit(main())
