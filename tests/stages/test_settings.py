"""The settings of every stage are those of its YAML, and a wrong one is refused however the stage is made."""

from dataclasses import MISSING, fields, is_dataclass

import pytest
from workbench import MSE, W3A6, workbench

from dmqbench.config.checked_job import ABOUT_STAGE
from dmqbench.config.limits import limits_of, stage_values
from dmqbench.config.places import CONF, yaml_names
from dmqbench.methods import stages_of
from dmqbench.stages.ranges import WeightRange

METHODS = ("q_diffusion", "dmq", "mpq_dm", "efficient_dm", "accuquant", "rtn")
STAGES = {name: stage for method in METHODS for name, stage in stages_of(method).items()}


def test_every_yaml_has_a_stage():
    assert sorted(STAGES) == list(yaml_names(CONF / "stage"))


@pytest.mark.parametrize("name", STAGES)
def test_the_fields_are_the_settings_of_the_yaml(name):
    settings = STAGES[name].settings_type
    assert is_dataclass(settings) and settings.__dataclass_params__.frozen
    values = {key: value for key, value in stage_values(name).items() if key not in ABOUT_STAGE}
    assert {item.name for item in fields(settings)} == set(values)
    for item in fields(settings):
        assert item.default in (MISSING, values[item.name]), item.name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_refuses_what_its_yaml_refuses(name):
    """Given every value in turn that its limits exclude, the others being what the YAML has or a 1 for a reference."""
    values = {key: value for key, value in stage_values(name).items() if key not in ABOUT_STAGE}
    usual = {key: 1 if str(value).startswith("${") else value for key, value in values.items()}
    limits, bench = limits_of(name), workbench(W3A6, trajectories=1)
    wrong = [(key, "no such word") for key in limits.choices]
    for key, (smallest, largest) in limits.bounds.items():
        wrong += [(key, end + step) for end, step in ((smallest, -1), (largest, 1)) if end is not None]
    for key, value in wrong:
        with pytest.raises(ValueError, match=f"^{key}={value} is "):
            STAGES[name].of(bench, **{**usual, key: value})


def test_settings_that_are_none_of_the_fields_are_named():
    for settings, word in ((MSE | {"observers": "mse"}, "observers"), ({"observer": "mse"}, "candidates")):
        with pytest.raises(ValueError, match=f"stage weight_range: its settings are not those of its YAML .*{word}"):
            WeightRange.of(workbench(trajectories=1), **settings)
