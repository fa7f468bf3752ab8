"""What plug-ins bring is known wherever a job is composed; one of which something is wrong does no harm."""

import importlib
import subprocess
import sys

import pytest
from e2e.commands import environment
from plugin_packages import METHOD_YAML, install

from dmqbench.config import plugins
from dmqbench.config.compose import compose, search_path, wrong_options
from dmqbench.config.errors import ConfigError
from dmqbench.config.plugins import Plugin
from dmqbench.launch.sweeps import sweep_jobs

BITS = "defaults: [base_bits, _self_]\nweight: 5\nactivation: 7\n"
METHOD = METHOD_YAML.format(name="mine")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path of imports, in which tests put plug-ins."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    before = set(sys.modules)
    plugins.plugins.cache_clear()
    yield place
    plugins.plugins.cache_clear()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {path.name for path in place.iterdir()}:
            del sys.modules[name]


def the_one() -> Plugin:
    importlib.invalidate_caches()
    plugins.plugins.cache_clear()
    (plugin,) = plugins.plugins()
    return plugin


def command(site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dmqbench`` with the plug-ins of ``site``."""
    return subprocess.run(
        [sys.executable, "-m", "dmqbench.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=site.parent,
        env=environment(PYTHONPATH=":".join([str(site), *filter(None, sys.path)])),
    )


def test_nothing_is_installed():
    plugins.plugins.cache_clear()
    assert plugins.plugins() == ()


def test_what_a_plug_in_brings_is_composed(site):
    install(
        site,
        "mine",
        {
            "conf/method/mine.yaml": METHOD,
            "conf/bits/w5a7.yaml": BITS,
            "conf/dataset/faces.yaml": "defaults: [base_dataset, _self_]\nname: faces\n",
            "sweeps/ours.yaml": "jobs: [[bits=w5a7]]\n",
        },
        version="1.2",
    )
    plugin = the_one()
    assert plugin.title == "mine (mine 1.2)" and plugin.problem is None
    assert dict(plugin.brings) == {"method": ("mine",), "bits": ("w5a7",), "dataset": ("faces",), "sweeps": ("ours",)}
    assert wrong_options(plugin) == []
    config = compose(["method=mine", "bits=w5a7", "method.nudge.strength=0.25"])
    assert (config.method.nudge.strength, config.bits.weight) == (0.25, 5)
    assert sweep_jobs("ours") == [["bits=w5a7"]]
    with pytest.raises(ConfigError, match="bits=w5a6 is not known; nearest: w5a7"):
        compose(["bits=w5a6"])
    with pytest.raises(ConfigError, match=r"nearest: method\.nudge\.strength"):
        compose(["method=mine", "method.nudge.strenght=1"])


def test_a_folder_of_ones_own_and_plug_ins_go_together(site, tmp_path):
    install(site, "mine", {"conf/bits/w5a7.yaml": BITS})
    (tmp_path / "conf" / "bits").mkdir(parents=True)
    (tmp_path / "conf" / "bits" / "w6a6.yaml").write_text(BITS.replace("5", "6"))
    the_one()
    folder = search_path([str(tmp_path / "conf")])
    assert compose([*folder, "bits=w5a7"]).bits.weight == 5
    assert compose([*folder, "bits=w6a6"]).bits.weight == 6


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"__init__.py": "raise RuntimeError('no\\nluck')"}, "RuntimeError: no luck"),
        ({"__init__.py": "import nothing_of_this_name"}, "nothing_of_this_name"),
        ({"__init__.py": "def"}, "SyntaxError"),
        ({"__init__.py": "raise SystemExit(3)"}, "SystemExit"),
        ({"conf/bits/w4a8.yaml": BITS}, "bits=w4a8 is taken, by dmqbench"),
        ({"conf/method/x.yaml": "name: ["}, "conf/method/x.yaml cannot be read"),
        ({"conf/method/x.yaml": "- 1"}, "conf/method/x.yaml holds no keys"),
        ({"conf/methd/x.yaml": METHOD}, "conf/methd is no group; nearest: method"),
        ({"methods/rtn.py": ""}, "methods/rtn.py has the name of a method"),
    ],
)
def test_one_that_is_broken_is_left_out_and_says_why_in_one_line(site, files, reason):
    install(site, "mine", {"conf/bits/w5a7.yaml": BITS, **files})
    plugin = the_one()
    assert plugin.problem is not None and reason in plugin.problem and "\n" not in plugin.problem
    assert plugin.title == "mine (mine 1.0)"
    assert compose(["bits=w4a8"]).bits.weight == 4
    with pytest.raises(ConfigError) as refused:
        compose(["bits=w5a7"])
    assert "plug-in mine, left out" in str(refused.value) and reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_module_or_a_package_without_yamls_is_left_out(site):
    install(site, "mine", {})
    assert the_one().problem == "mine has no folder conf/ beside its __init__.py"


def test_the_first_of_two_keeps_a_name(site):
    install(site, "a_first", {"conf/bits/w5a7.yaml": BITS})
    install(site, "b_second", {"conf/bits/w5a7.yaml": BITS, "conf/bits/w6a7.yaml": BITS})
    plugins.plugins.cache_clear()
    first, second = plugins.plugins()
    assert first.problem is None
    assert second.problem == "bits=w5a7 is taken, by a_first"
    assert compose(["bits=w5a7"]).bits.weight == 5


def test_a_typo_in_a_yaml_spoils_that_option_alone(site):
    typo = METHOD.replace("stages:", "stagse:")
    install(site, "mine", {"conf/method/mine.yaml": typo, "conf/bits/w5a7.yaml": BITS + "wieght: 1\n"})
    install(site, "other", {"conf/bits/w6a7.yaml": BITS})
    plugins.plugins.cache_clear()
    mine, other = plugins.plugins()
    wrong = wrong_options(mine)
    assert len(wrong) == 2 and wrong_options(other) == []
    assert "method=mine" in wrong[0] and "method.stages" in wrong[0]
    assert "bits=w5a7" in wrong[1] and "wieght" in wrong[1] and "nearest: weight" in wrong[1]
    assert compose(["bits=w6a7"]).bits.weight == 5


def test_the_commands_know_them(site):
    """Help, tab completion and refusals; in processes of their own, as a user meets them."""
    install(site, "mine", {"conf/method/mine.yaml": METHOD, "conf/bits/w5a7.yaml": BITS})
    install(site, "broken", {"__init__.py": "import nothing_of_this_name", "conf/bits/w9a9.yaml": BITS})
    shown = command(site, "--help")
    assert shown.returncode == 0 and not shown.stderr
    assert "\n  mine (mine 1.0): method mine; bits w5a7\n" in shown.stdout
    assert "\n  broken (broken 1.0): left out: broken cannot be imported (ModuleNotFoundError" in shown.stdout
    refused = command(site, "bits=w9a9")
    assert refused.returncode == 2 and "plug-in broken, left out" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert command(site, "method=mine", "--cfg", "job").stdout.count("nudge") == 2


def test_tab_completes_them(site):
    install(site, "mine", {"conf/method/mine.yaml": METHOD})
    environs = environment(
        PYTHONPATH=":".join([str(site), *filter(None, sys.path)]), COMP_LINE="dmqbench method=mi", COMP_POINT="18"
    )
    done = subprocess.run(
        [sys.executable, "-m", "dmqbench.cli", "-sc", "query=bash"],
        capture_output=True,
        text=True,
        check=False,
        env=environs,
    )
    assert done.stdout.split() == ["method=mine"], done.stderr
