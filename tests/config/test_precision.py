"""What a network computes in: what it changes in a job, and with what it does not fit."""

import pytest
from config.asked import ids_of, job, refused

BFLOAT16 = "model.dtype=bfloat16"


def test_it_enters_every_id_and_float32_none():
    usual, other = (ids_of("method=q_diffusion", *overrides) for overrides in ((), (BFLOAT16,)))
    assert ids_of("method=q_diffusion", "model.dtype=float32") == usual
    ids = [(one.trajectories, *(id for _, id in one.stages), one.samples, one.result) for one in (usual, other)]
    assert not set(ids[0]) & set(ids[1])
    assert ids_of("method=fp", BFLOAT16).samples not in {ids_of("method=fp").samples, other.samples}


def test_a_result_says_so_where_it_is_not_usual():
    usual, other = job("method=rtn"), job("method=rtn", BFLOAT16)
    assert "dtype" not in usual.config["model"] and other.config["model"]["dtype"] == "bfloat16"
    assert other.model.label == "digits, bfloat16" and "digits, bfloat16" in other.title


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.dtype=bf16",), "model.dtype=bf16 is not known; nearest: bfloat16 (allowed: float32, bfloat16)"),
        (("model.dtype=float16",), "model.dtype=float16 is not possible: gradients of calibration vanish in it"),
        ((BFLOAT16, "engine=int_reference"), "engine=int_reference sums integers exactly, and a network in bfloat16"),
    ],
)
def test_what_it_does_not_fit_is_one_line(overrides, message):
    error = str(refused(*overrides))
    assert message in error and "\n" not in error
