"""The notebooks are pairs that agree, hold outputs of a run elsewhere, and run from an empty folder."""

import re
import tarfile

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks
from notebooks.execution import ROOT, TEXTS, executed
from tiny import save_pipeline, smallest_unet

ids = [text.stem for text in TEXTS]
QUICK = {
    **{"bits": "w4a6", "sampler.steps": "2", "metrics.samples": "16", "metrics.pairs": "16"},
    **{"budget.trajectories": "8", "budget.validation": "4", "budget.samples": "16", "budget.batch": "8"},
    "budget.tuning_iterations": "2",
}
"""Sizes of jobs whose numbers nobody reads."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, str]:
    """Those sizes, on a network with few layers, whose images are too small for ``ssim``."""
    network = save_pipeline(tmp_path_factory.mktemp("notebooks") / "model", smallest_unet())
    return QUICK | {"model": f"local model.path={network} model.classes=10", "metrics.names": "[psnr]"}


def printed(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells put out, but pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = [output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in outputs]
    return "\n".join(said)


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("text", TEXTS, ids=ids)
def test_both_of_a_pair_say_the_same(text):
    compare_notebooks(jupytext.read(text.with_suffix(".ipynb")), jupytext.read(text), fmt="py:percent")


@pytest.mark.parametrize("text", TEXTS, ids=ids)
def test_outputs_are_those_of_a_whole_run_and_name_no_machine(text):
    path = text.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not re.search(r"(/tmp|/home|/work|/root|/Users)\b|\d s\b", printed(notebook))
    assert path.stat().st_size < 150_000


@pytest.mark.parametrize("text", TEXTS, ids=ids)
def test_runs_where_there_is_no_store(text, quick, tmp_path):
    found = executed(text, tmp_path, quick)
    stored = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    assert "psnr" in printed(found) and pictures(found) == pictures(stored)
    assert list(tmp_path.rglob("result.json"))


def test_methods_of_a_store_of_ones_own_are_compared(tmp_path):
    """The recorded one: methods, bits and seeds that the notebook does not know."""
    with tarfile.open(ROOT / "tests" / "recorded" / "store.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    found = executed(ROOT / "notebooks" / "compare_methods.py", tmp_path, DMQBENCH_RUNS="recorded_store")
    assert "accuquant" in printed(found) and "32 pairs" not in printed(found)
    assert not (tmp_path / "runs").exists()
