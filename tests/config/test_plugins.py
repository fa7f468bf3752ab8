"""What plug-ins bring is known wherever a job is composed; one of which something is wrong does no harm."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.commands import environment
from PIL import Image
from plugin_packages import FAMILY, METHOD_YAML, NETWORK, family_package, install, method_package, the_one

from dmqbench.config import plugins
from dmqbench.config.compose import compose, search_path, wrong_options
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job
from dmqbench.config.plugin_code import family_origin, method_module, metric_origin, plugin_sources, stage_origin
from dmqbench.launch.sweeps import sweep_jobs
from dmqbench.models.families import kind_of
from dmqbench.models.folders import EMBEDDED, ModelError

BITS = "defaults: [base_bits, _self_]\nweight: 5\nactivation: 7\n"
CONTRAST = "version: 1\nover: pairs\n"
METHOD = METHOD_YAML.format(name="mine")


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


def test_contributing_names_the_group_of_entry_points():
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert f'[project.entry-points."{plugins.ENTRY_POINTS}"]' in text


def test_nothing_is_installed():
    plugins.plugins.cache_clear()
    assert plugins.plugins() == ()


def test_what_a_plug_in_brings_is_composed(site):
    install(
        site,
        "mine",
        {
            "conf/method/mine.yaml": METHOD,
            "methods/mine.py": "raise RuntimeError('nobody imports it yet')",
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
        ({"conf/metric/psnr.yaml": CONTRAST}, "metric=psnr is taken, by dmqbench"),
        ({"conf/metric/contrast.yaml": CONTRAST}, "conf/metric/contrast.yaml has no module metrics/contrast.py"),
        ({"conf/metric/contrast.yaml": CONTRAST + "ovr: x"}, "conf/metric/contrast.yaml: ovr=x is not known"),
        ({"conf/metric/contrast.yaml": "over: pairs"}, "version=0 is no whole number"),
        ({"conf/metric/contrast.yaml": "version: 1\nover: samples"}, "over=samples and features=None do not fit"),
        ({"families/dit.py": FAMILY}, "family=dit is taken, by dmqbench"),
        (
            {"families/x.py": "raise RuntimeError('no\\nluck')"},
            "families/x.py cannot be imported (RuntimeError: no luck)",
        ),
        ({"families/x.py": "from math import pi"}, "families/x.py has no class that is a Family"),
        (
            {"families/x.py": FAMILY.replace('"TileNet"', '"UNet2DModel"', 1)},
            "families.x.Tiles: network UNet2DModel is taken, by dmqbench",
        ),
        ({"families/x.py": FAMILY.replace("network =", "net =", 1)}, "families.x.Tiles names no network"),
        (
            {"families/x.py": FAMILY.replace("timestep =", "part = 'net'; timestep =", 1)},
            "families.x.Tiles.part=net is not known (allowed: unet, transformer)",
        ),
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


def test_a_family_is_known_where_models_are_and_its_code_enters_their_ids(site, tmp_path):
    config = {"_class_name": "TileNet", "in_channels": 1, "sample_size": 8, "width": 8, "labels": 3}
    with pytest.raises(ModelError, match="TileNet cannot be loaded"):
        kind_of(config)
    folder = family_package(site, "mine")
    plugin = the_one()
    assert plugin.problem is None and plugin.summary == "bits w5a7; family tiles"
    kind = kind_of(config)
    assert kind.__module__ == "mine.families.tiles" and kind(config).sample_shape == (1, 8, 8)
    assert kind_of({"_class_name": "UNet2DModel"}).__module__ == "dmqbench.models.families.unet2d"
    origin = family_origin(kind)
    assert (origin["distribution"], origin["version"]) == ("mine", "1.0")
    assert set(origin["modules"]) == {"mine.families.tiles", "mine.networks"}
    (folder / "networks.py").write_text(NETWORK + "# other\n")
    the_one()
    assert family_origin(kind) != origin and family_origin(kind_of({"_class_name": "UNet2DModel"})) is None


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
    method_package(site, "mine", "mul_(2)")
    install(site, "broken", {"__init__.py": "import nothing_of_this_name", "conf/bits/w9a9.yaml": BITS})
    shown = command(site, "--help")
    assert shown.returncode == 0 and not shown.stderr
    assert "\n  mine (mine 1.0): method mine; metric contrast\n" in shown.stdout
    assert "\n  broken (broken 1.0): left out: broken cannot be imported (ModuleNotFoundError" in shown.stdout
    refused = command(site, "bits=w9a9")
    assert refused.returncode == 2 and "plug-in broken, left out" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert command(site, "method=mine", "--cfg", "job").stdout.count("nudge") >= 2


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


# ---- models, data sets, metrics


MODEL = """
# @package _global_
defaults: [base_model@model, override /dataset: dots, override /metrics: paired, _self_]
model: {name: tiny, source: embedded, classes: 10, datasets: [dots, none]}
"""


def test_a_model_and_a_data_set_lie_in_the_package(site):
    dots = {"conf/dataset/dots.yaml": "defaults: [base_dataset, _self_]\nname: dots\n"}
    package = install(site, "mine", {"conf/model/tiny.yaml": MODEL, **dots})
    shutil.copytree(EMBEDDED / "ladder_1", package / "models" / "tiny")
    (package / "images" / "dots").mkdir(parents=True)
    Image.new("L", (8, 8)).save(package / "images" / "dots" / "a.png")
    assert wrong_options(the_one()) == []
    job = make_job(compose(["model=tiny"]))
    assert (job.model.source, job.model.path) == ("local", str(package / "models" / "tiny"))
    assert job.model.sample_shape == (1, 16, 16)
    assert job.dataset.reference == str(package / "images" / "dots")
    assert make_job(compose(["model=tiny", "dataset=none"])).dataset.reference is None


def test_a_metric_is_known_with_ours(site):
    package = method_package(site, "wide", "mul_(2)")
    the_one()
    assert list(plugins.metrics())[-1] == "contrast" and plugins.is_paired("contrast")
    assert make_job(compose(["metrics.names=[psnr,contrast]"])).metrics.names == ("psnr", "contrast")
    with pytest.raises(ConfigError, match="nearest: contrast"):
        make_job(compose(["metrics.names=[contrst]"]))
    before = metric_origin("contrast")
    assert before is not None and before.startswith("wide-1.0@") and metric_origin("psnr") is None
    module = package / "metrics" / "contrast.py"
    module.write_text(module.read_text() + "\n")
    plugin_sources.cache_clear()
    assert metric_origin("contrast") != before
    plugins._metric.cache_clear()
    (package / "conf" / "metric" / "contrast.yaml").write_text("version: one")
    assert "version=one" in str(the_one().problem)
    with pytest.raises(ConfigError, match=r"metrics\.names=contrast is of the plug-in wide, left out"):
        make_job(compose(["metrics.names=[contrast]"]))


# ---- ids carry what computes


def stage_ids(*overrides: str) -> list[str]:
    the_one()
    plugin_sources.cache_clear()
    job = make_job(compose(["model=ladder_1", *(overrides or ["method=mine"])]))
    return [id for _, id in job_ids(job, "0" * 64).stages]


def test_ids_of_stages_name_the_code_that_computes_them(site):
    package = method_package(site, "wide", "mul_(2)")
    stage, method = package / "stages" / "nudge.py", package / "methods" / "mine.py"
    before = stage_ids()
    assert before[0] == stage_ids("method=mine", "method.stages=[weight_range,activation_range]")[0], "ours is shared"
    assert before[0] == stage_ids("method=rtn")[0]
    method.write_text(method.read_text() + "\n# what the method's list says is no formula\n")
    assert stage_ids() == before
    stage.write_text(stage.read_text().replace("mul_(2)", "mul_(3)"))
    changed = stage_ids()
    assert changed[0] == before[0] and not {*changed[1:]} & {*before}
    stage.write_text(stage.read_text().replace("import torch", "import torch\nfrom wide.tools import factor", 1))
    (package / "tools.py").write_text("from . import deeper\nfactor = 2\n")
    (package / "deeper.py").write_text("value = 1\n")
    assert stage_origin("mine", "nudge")["modules"].keys() == {"wide.stages.nudge"}  # cached, as one process is
    with_tools = stage_ids()
    assert stage_origin("mine", "nudge")["modules"].keys() == {"wide", "wide.stages.nudge", "wide.tools", "wide.deeper"}
    (package / "deeper.py").write_text("value = 2\n")
    assert stage_ids()[1] not in {with_tools[1], changed[1], before[1]}


def test_ids_name_distribution_and_version(site):
    method_package(site, "wide", "mul_(2)")
    first = stage_ids()
    about = site / "wide-1.0.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("Version: 1.0", "Version: 1.1"))
    assert stage_ids()[1] != first[1] and stage_ids()[0] == first[0]


def test_a_stage_within_the_module_of_its_method(site):
    method_package(site, "wide", "mul_(2)", where="methods.within")
    stage_ids()
    assert stage_origin("mine", "nudge")["modules"].keys() == {"wide.methods.mine", "wide.methods.within"}


def test_a_method_without_a_module_is_refused(site):
    install(site, "bare", {"conf/method/mine.yaml": METHOD})  # a name that no package imported before has
    plugin = the_one()
    assert (plugin.problem, tuple(plugin.names("method")), method_module("mine")) == (None, ("mine",), None)
    assert "has no module" in wrong_options(plugin)[0]
    with pytest.raises(ConfigError, match=r"method=mine has no module methods/mine\.py \(in: dmqbench, bare\)"):
        make_job(compose(["method=mine"]))


def test_a_stage_that_is_no_python_is_refused(site):
    package = method_package(site, "wide", "mul_(2)")
    (package / "stages" / "nudge.py").write_text("def")
    with pytest.raises(
        ConfigError, match=r"method=mine cannot be used: plug-in wide: wide\.stages\.nudge cannot be read"
    ):
        stage_ids()
