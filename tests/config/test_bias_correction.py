"""calibration.bias_correction: a stage at the end of any method."""

import pytest

from dmqbench.config.compose import compose
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job

WEIGHTS = "0" * 64


def job(*overrides):
    return make_job(compose([*overrides, "tracker.mode=disabled"]))


@pytest.mark.parametrize("method", ["rtn", "q_diffusion", "dmq", "mpq_dm", "efficient_dm", "accuquant"])
def test_it_ends_every_method_and_shares_all_before(method):
    plain, corrected = job(f"method={method}"), job(f"method={method}", "calibration.bias_correction=true")
    before, after = job_ids(plain, WEIGHTS), job_ids(corrected, WEIGHTS)
    assert [name for name, _ in after.stages] == [*(name for name, _ in before.stages), "bias_correction"]
    assert after.stages[:-1] == before.stages and after.trajectories == before.trajectories
    assert after.result != before.result
    assert corrected.method.variant == "bias correction" and not plain.method.variant
    stage = corrected.method.stages[-1]
    assert stage.settings == {"samples": plain.budget.samples, "batch": plain.budget.batch}


def test_full_precision_has_nothing_to_correct():
    plain, corrected = (job("method=fp", f"calibration.bias_correction={on}") for on in ("false", "true"))
    assert job_ids(plain, WEIGHTS) == job_ids(corrected, WEIGHTS)
    assert plain.config == corrected.config
