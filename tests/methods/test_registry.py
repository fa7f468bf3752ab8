"""Methods, their YAMLs and their stages agree."""

from importlib import import_module
from pathlib import Path

import pytest

from dmqbench import methods
from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.config.places import CONF
from dmqbench.models.folders import EMBEDDED

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
MODULES = sorted(path.stem for path in Path(methods.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("method", METHODS)
def test_a_yaml_names_stages_that_its_method_has(method):
    path = [f"method.path={EMBEDDED / 'digits'}"] if method == "foreign" else []
    job = make_job(compose([f"method={method}", *path]))
    stages = import_module(f"dmqbench.methods.{job.method.name}").STAGES
    for stage in job.method.stages:
        assert stages[stage.name].name == stage.name
        assert stages[stage.name].weights_only == ("activation" not in stage.uses)


def test_a_stage_of_one_name_is_one_class_in_all_methods():
    """Its artifact is shared between methods, named by the stage's name and settings alone."""
    found = {}
    for module in MODULES:
        for name, stage in getattr(import_module(f"dmqbench.methods.{module}"), "STAGES", {}).items():
            assert found.setdefault(name, stage) is stage
