"""A store that was recorded before the package had rooms is read, verified, reported, answered from and continued.

``store.tar.xz`` was made with ``SIZES`` by the last version whose modules lay flat; nothing here writes it again.
"""

import json
import tarfile
from pathlib import Path

import pytest

from dmqbench import report
from dmqbench.cli import main
from dmqbench.launch.answered import is_answered
from dmqbench.launch.sweeps import check

SIZES = (
    *("model=ladder_1", "metrics.samples=16", "metrics.pairs=8", "sampler.steps=4", "sampler.chunk=8"),
    *("budget.trajectories=8", "budget.validation=8", "budget.samples=32", "budget.batch=8"),
    *("budget.scale_iterations=2", "budget.weight_iterations=2", "budget.activation_iterations=2"),
    *(
        "budget.trajectory_iterations=1",
        "budget.tuning_iterations=2",
        "tracker.mode=disabled",
        "trainer.accelerator=cpu",
    ),
)
MSE = {
    "fp w32a32 0": 0.0,
    "rtn w4a6 0": 0.008879488609231807,
    "q_diffusion w4a6 0": 0.016654931650997393,
    "q_diffusion w3a4 1": 0.056542105597942614,
    "dmq w4a6 0": 0.006509573735587547,
    "accuquant w4a6 0": 0.009354823331594958,
    "mpq_dm w4a6 0": 0.010104354264210661,
}
"""Method, bits and seed of every recorded job, and what it measured."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    with tarfile.open(Path(__file__).with_name("store.tar.xz")) as archive:
        archive.extractall(root, filter="data")
    return root / "recorded_store"


def overrides_of(store: Path, job: str) -> list[str]:
    method, bits, seed = job.split()
    return [*SIZES, f"store.root={store}", f"method={method}", f"bits={bits}", f"seed={seed}"]


def test_every_artifact_is_whole(store, capsys):
    assert report.main([str(store), "--check"]) == 0
    assert "38 of 38" in capsys.readouterr().out


def test_every_number_is_reported_and_the_page_is_written(store, tmp_path):
    path = tmp_path / "report.json"
    assert report.main([str(store), "--format", "json", "--out", str(path)]) == 0
    rows = json.loads(path.read_text())
    found = {f"{row['method']} {row['bits']} {row['seed']}": row["metrics"]["mse"]["value"] for row in rows}
    assert found == MSE
    page = path.with_suffix(".html").read_text()
    assert all(name in page for name in ("accuquant", "mpq_dm", "dmq"))


@pytest.mark.parametrize("job", MSE)
def test_every_job_is_answered_from_it(store, job):
    planned = check(overrides_of(store, job))
    assert is_answered(planned)
    assert json.loads((planned.folder / "result.json").read_text())["metrics"]["mse"]["value"] == MSE[job]


def test_calibration_goes_on_where_it_ended(store):
    """Another bit-width of activations takes the recorded weights, and more samples keep the recorded ones."""
    kept = {path: path.stat().st_mtime_ns for path in store.glob("*/*/*.safetensors")}
    assert main([*overrides_of(store, "q_diffusion w4a8 0"), "metrics.samples=24"]) == 0
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in store.glob("*/*/*.safetensors")}.items()
    stages = [json.loads(path.read_text())["artifacts"]["stages"] for path in store.glob("result/*/result.json")]
    weights = {dict(each)["weight_reconstruction"] for each in stages if "weight_reconstruction" in dict(each)}
    assert (
        len(weights) == 3
    )  # of q_diffusion (two seeds; AccuQuant takes the same) and of DMQ: none was made for this job
