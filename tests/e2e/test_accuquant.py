"""What AccuQuant's own stage finds, and what a job shares with another."""

import json

import pytest
from e2e.commands import TINY, dmqbench

METHOD = (*TINY, "method=accuquant", "bits=w4a6", "method.trajectory_reconstruction.horizon=3", "task=calibrate")
STAGES = ["weight_range", "weight_reconstruction", "activation_range", "trajectory_reconstruction"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store in which a job is calibrated."""
    root = tmp_path_factory.mktemp("accuquant") / "runs"
    status, _, errors = dmqbench(root, *METHOD)
    assert status == 0, errors
    return root


def test_the_stage_tells_what_every_span_won(root):
    [found] = [json.loads(path.read_text()) for path in root.glob("quantized/*/findings.json")]
    assert found["settings"]["horizon"] == 3
    groups = [group for span in found["spans"] for group in span["groups"]]
    assert groups == [[0, 2], [3, 3]]  # four calls
    for span in found["spans"]:
        assert len(span["error_before"]) == len(span["error_after"]) == len(span["groups"])
        assert 0 < sum(span["error_after"]) <= sum(span["error_before"])
        assert -1 <= span["gradient_cosine"] <= 1


def test_another_horizon_is_another_job_that_shares_all_stages_before(root):
    before = len(list(root.glob("quantized/*")))
    assert before == len(STAGES)
    status, _, errors = dmqbench(root, *METHOD, "method.trajectory_reconstruction.horizon=1")
    assert status == 0, errors
    assert len(list(root.glob("quantized/*"))) == before + 1
