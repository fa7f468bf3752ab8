"""Methods, their YAMLs and their stages agree."""

from importlib import import_module

import pytest

from dmqbench.config import CONF, compose, make_job
from dmqbench.models.folders import EMBEDDED

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_a_yaml_names_stages_that_its_method_has(method):
    stages = import_module(f"dmqbench.methods.{method}").STAGES
    path = [f"method.path={EMBEDDED / 'digits'}"] if method == "foreign" else []
    job = make_job(compose([f"method={method}", *path]))
    for stage in job.method.stages:
        assert stages[stage.name].name == stage.name
        assert stages[stage.name].weights_only == ("activation" not in stage.uses)


def test_a_stage_of_one_name_is_one_class_in_all_methods():
    """Its artifact is shared between methods, named by the stage's name and settings alone."""
    found = {}
    for method in METHODS:
        for name, stage in import_module(f"dmqbench.methods.{method}").STAGES.items():
            assert found.setdefault(name, stage) is stage
