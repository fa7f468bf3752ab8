"""Methods of plug-ins are looked up as ours are; what is missing is said before anything runs."""

import pytest
from plugin_packages import method_package, the_one

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.methods import require_stages, stages_of


def test_stages_of_a_plug_in(site):
    method_package(site, "wide", "mul_(2)")
    the_one()
    assert stages_of("mine")["nudge"].__module__ == "wide.stages.nudge"
    require_stages(make_job(compose(["method=mine"])).method)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"nudge": Nudge, ', "", ["method.stages=nudge", "STAGES of wide.methods.mine"]),
        ("from wide.stages", "from wide.nowhere", ["method=mine", "ModuleNotFoundError"]),
        ("STAGES", "STAGSE", ["method=mine", "STAGES"]),
        ("from dmqbench", "from from", ["method=mine", "SyntaxError"]),
        ("STAGES", "raise SystemExit(3)\nSTAGES", ["method=mine", "SystemExit: 3"]),
        ('"weight_range": WeightRange', '"weight_range": Nudge', ["stage=weight_range", "name of a stage of dmqbench"]),
        ("STAGES", 'Nudge.__module__ = "elsewhere"\nSTAGES', ["stage=nudge", "elsewhere, unknown to its id"]),
    ],
    ids=["no stage", "no module", "no STAGES", "no Python", "an exit", "a name of ours", "code of others"],
)
def test_what_is_missing_is_refused_in_one_line(site, old, new, words):
    module = method_package(site, "wide", "mul_(2)") / "methods" / "mine.py"
    module.write_text(module.read_text().replace(old, new))
    the_one()
    with pytest.raises(ConfigError) as refused:
        require_stages(make_job(compose(["method=mine"])).method)
    line = str(refused.value)
    assert "\n" not in line and all(word in line for word in words), line
