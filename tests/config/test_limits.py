"""Limits of a stage's settings stand in its YAML, a user's own as well, and leave no trace in ids and results."""

import json

import pytest
from config.asked import ids_of, job, refused

from dmqbench.config.compose import search_path

YAML = """
defaults:
  - rtn
  - _self_

name: rtn
own: {own}
stages: [weight_range, nudge, activation_range]
nudge:
  version: 1
  uses: [weight]
  not_in_id: []
  strength: 0.1
  shape: round
  fast: ${{method.own}}
  limits: {limits}
"""
LIMITS = (
    "{choices: {shape: [round, square]}, bounds: {strength: [0, 1]},"
    " needs_before: [[weight_range]], needs_after: [activation_range], needs_activations: {shape: [square]}}"
)


@pytest.fixture
def mine(tmp_path):
    """Writes a method of one's own, whose stage has limits, and returns the overrides that choose it."""

    def write(limits=LIMITS, own="false"):
        (tmp_path / "method").mkdir(exist_ok=True)
        (tmp_path / "method" / "mine.yaml").write_text(YAML.format(limits=limits, own=own))
        return [*search_path([str(tmp_path)]), "method=mine"]

    return write


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.nudge.shape=squared",), "method.nudge.shape=squared is not known; nearest: square"),
        (("method.nudge.strength=1.5",), "method.nudge.strength=1.5 is out of range; nearest: 1 (allowed: 0 to 1)"),
        (("method.stages=[nudge,activation_range]",), "needs weight_range before nudge"),
        (("method.stages=[weight_range,activation_range,nudge]",), "needs activation_range after nudge"),
        (("method.nudge.shape=square", "bits=w4a32"), "method.nudge.shape=square trains activation scales, and"),
        (("method.nudge.limits.bounds.strength=[0,9]",), "says what the YAML means, and is set there only"),
        (("method.own=true", "method.stages=[weight_range]"), "changes nothing without the stage nudge"),
        (("method.owm=true",), "method.owm=true is not a key; nearest: method.own"),
    ],
)
def test_a_stage_of_ones_own_has_limits(mine, overrides, message):
    assert message in str(refused(*mine(), *overrides))


def test_limits_are_no_part_of_what_a_result_is(mine):
    limited, ids = job(*mine()), ids_of(*mine())
    free = mine(limits="{}")
    assert ids_of(*free) == ids
    assert json.dumps(job(*free).config) == json.dumps(limited.config)
    assert limited.config["method"]["nudge"] == {
        **{"version": 1, "uses": ["weight"], "not_in_id": [], "strength": 0.1, "shape": "round", "fast": False}
    }


def test_a_switch_of_the_method_reaches_the_settings_that_refer_to_it(mine):
    (_, stage, _) = job(*mine(), "method.own=true").method.stages
    assert stage.settings["fast"] is True


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("{choice: {shape: [round]}}", "method.nudge.limits=choice is not known; nearest: choices"),
        ("{choices: {shapes: [round]}}", "method.nudge.limits.choices=shapes is not known; nearest: shape"),
        ("{bounds: {strength: [0]}}", "method.nudge.limits.bounds.strength=[0] is not a list"),
        ("{bounds: {strength: 1}}", "method.nudge.limits.bounds.strength=1 is not a list"),
        ("{choices: [round]}", "method.nudge.limits.choices=[round] is not a mapping"),
    ],
)
def test_limits_with_a_mistake_are_refused_in_one_line(mine, limits, message):
    assert message in str(refused(*mine(limits)))
