"""Ranges of tokens: what they change in a job, and with what they do not fit."""

import pytest
from config.asked import ids_of, job, refused

TOKEN = "bits.granularity=token"


def test_only_what_quantizes_activations_is_another():
    usual, other = (ids_of("method=q_diffusion", *overrides) for overrides in ((), (TOKEN,)))
    assert ids_of("method=q_diffusion", "bits.granularity=tensor") == usual
    differing = [name for (name, id), (_, own) in zip(usual.stages, other.stages, strict=True) if id != own]
    assert differing == ["activation_range", "activation_reconstruction"]
    assert usual.trajectories == other.trajectories
    assert usual.result != other.result


def test_a_result_says_so_where_it_is_not_usual():
    usual, other = job("method=rtn"), job("method=rtn", TOKEN)
    assert "granularity" not in usual.config["bits"]
    assert other.config["bits"]["granularity"] == "token"
    assert (usual.bits.ranges_title, other.bits.ranges_title) == ("shared", "shared, token")
    assert ids_of("method=fp", TOKEN) == ids_of("method=fp")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("bits.granularity=tokens",), "bits.granularity=tokens is not known; nearest: token (allowed: tensor, token)"),
        ((TOKEN, "bits=w4a32"), "is of quantized activations, and bits.activation=32 has none"),
        ((TOKEN, "engine=int_reference"), "engine=int_reference computes with ranges that are known beforehand"),
        (
            (TOKEN, "method=dmq"),
            "does not fit method=dmq: its stage equivalent_scaling works on ranges of",
        ),
        ((TOKEN, "method=mpq_dm"), "its stage outlier_allocation works on ranges of whole tensors; nearest: tensor"),
        ((TOKEN, "method=accuquant"), "its stage trajectory_reconstruction works on ranges of whole tensors"),
    ],
)
def test_what_it_does_not_fit_is_one_line(overrides, message):
    error = str(refused(*overrides))
    assert message in error
    assert "\n" not in error
