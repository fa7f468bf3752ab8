"""Composing and checking of jobs."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from config.asked import job, refused
from omegaconf import OmegaConf

from dmqbench.config import schema
from dmqbench.config.checked_job import full_precision
from dmqbench.config.compose import TOGETHER, _composed, _of_package, compose, search_path
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import cuda_expected
from dmqbench.config.overrides import expand
from dmqbench.config.places import CONF
from dmqbench.config.values import copy_of
from dmqbench.models.folders import ARCHITECTURES, EMBEDDED, SCHEDULER_CONFIG
from dmqbench.samplers.processes import OF_SAMPLER, stated
from dmqbench.store.files import canonical_json

METHODS = ("fp", "rtn", "q_diffusion")
BITS = ("w32a32", "w8a8", "w4a8", "w4a6", "w4a4", "w4a32", "w3a8", "w3a6", "w3a4", "w2a6", "w2a4")
YAMLS = sorted({*CONF.rglob("*.yaml")} - {CONF / "planned.yaml"})  # which lists names alone


# ---- what is there


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", BITS)
def test_every_method_composes_with_all_bits(method, bits):
    made = job(f"method={method}", f"bits={bits}", "model=digits")
    assert made.method.name == method
    assert made.bits.name == ("w32a32" if method == "fp" else bits)


def test_a_choice_composed_alone_is_what_hydra_composes_with_the_others():
    options = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in schema.OPTION_GROUPS}
    options |= {group: options[group][:2] for group in TOGETHER}
    for number in range(len(options["method"])):
        chosen = tuple(f"{group}={names[number % len(names)]}" for group, names in options.items())
        found, expected = _of_package(chosen), _composed((), chosen)
        assert found == expected and list(found) == list(expected), chosen
        assert [OmegaConf.get_type(found[key]) for key in found] == [OmegaConf.get_type(expected[key]) for key in found]
    assert _of_package(("bits='w4a6'",)) == _of_package(("bits=w4a6",))


def nodes_of(node, parent=None):
    """Every node of a configuration in their order, with what it is and whether it lies where it says."""
    content = vars(node).get("_content", node._value())
    yield type(node), vars(node).keys(), node._metadata, node._get_parent() is parent, str(content)
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from nodes_of(part, node)


@pytest.mark.parametrize("method", ["dmq", "efficient_dm", "mpq_dm"])
def test_a_copy_of_a_configuration_is_what_deepcopy_makes_and_shares_nothing(method):
    made = compose([f"method={method}", "sampler.clip_sample=1", "metrics.names=[psnr,mse]"])
    found, expected = copy_of(made), copy.deepcopy(made)
    assert list(nodes_of(found)) == list(nodes_of(expected)) and len(list(nodes_of(found))) > 200
    found.sampler.steps, found.metrics.names[0], found.budget.samples = 7, "ssim", 3
    assert made == expected != found
    assert found.method.activation_range.samples == 3, "references are to its own values"
    OmegaConf.set_readonly(found, True)
    assert OmegaConf.is_readonly(found.sampler) and not OmegaConf.is_readonly(made.sampler)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_with_a_folder_of_ones_own(method, folder):
    made = job(f"method={method}", "model=local", f"model.path={folder}")
    assert (made.model.sample_shape, made.model.classes, made.dataset.name) == ((3, 8, 8), None, "none")


@pytest.mark.parametrize("group", [*schema.GROUPS, "method"])
def test_every_option_of_every_group_composes(group, folder, tmp_path):
    for path in (CONF / group).glob("*.yaml"):
        choice = [f"{group}={path.stem}"]
        if path.stem in ("local", "hub") or (group, path.stem) == ("dataset", "none"):
            choice = ["model=local", f"model.path={folder}", *(choice if group == "dataset" else [])]
        if path.stem == "foreign":
            choice = [*choice, f"method.path={EMBEDDED / 'digits'}"]
        if (ARCHITECTURES / path.stem).is_dir():
            choice = [*choice, "task=cost"]
        if (process := OF_SAMPLER.get(path.stem)) is not None:
            trained = Path(shutil.copytree(folder, tmp_path / path.stem))
            (trained / SCHEDULER_CONFIG).write_text(json.dumps(stated(process())))
            choice = [*choice, "model=local", f"model.path={trained}"]
        assert job(*choice)


def test_the_embedded_default_is_what_the_contract_says():
    made = job()
    assert (made.model.name, made.dataset.name, made.budget.name, made.seed) == (
        "digits",
        "digits",
        "quick",
        0,
    )
    sampler = made.sampler
    assert (sampler.name, sampler.steps, sampler.eta, sampler.guidance, sampler.chunk) == (
        "ddim",
        20,
        0,
        1,
        32,
    )
    assert made.metrics.names == ("psnr", "ssim", "mse", "fd_digits", "fd2fp32_digits")
    assert (made.metrics.samples, made.metrics.pairs, made.metrics.seed) == (512, 256, 0)


def test_the_command_line_wins_over_the_choices_of_a_model():
    made = job("budget=ladder", "sampler=ddpm", "sampler.steps=7", "metrics=paired")
    assert (made.budget.name, made.sampler.name, made.sampler.steps) == ("ladder", "ddpm", 7)
    assert made.metrics.names == ("psnr", "ssim", "mse")


def test_stages_take_their_sizes_from_the_budget():
    stages = {stage.name: stage for stage in job("method=q_diffusion", "budget=paper").method.stages}
    assert list(stages) == [
        "weight_range",
        "weight_reconstruction",
        "activation_range",
        "activation_reconstruction",
    ]
    assert stages["weight_reconstruction"].settings["iterations"] == 20000
    assert stages["activation_reconstruction"].settings["iterations"] == 5000
    assert stages["weight_reconstruction"].settings["samples"] == 5120


def test_a_whole_number_is_a_number_but_a_word_is_not():
    made = job("method.weight_range.exponent=2", "sampler.guidance=1")
    exponent = made.method.stages[0].settings["exponent"]
    assert exponent == 2.0 and isinstance(exponent, float)


def test_values_of_bits_beyond_the_named_ones():
    made = job("bits.weight=5", "bits.activation=7")
    assert made.bits.name == "w5a7"


def test_stages_can_be_chosen():
    assert [stage.name for stage in job("method.stages=[weight_range]").method.stages] == ["weight_range"]


def test_ranges_of_the_method_are_resolved():
    assert job().bits.ranges == "shared"
    assert job("bits.ranges=step").bits.ranges == "step"


def test_full_precision_has_one_form():
    made = job("method=fp", "bits=w4a4", "seed=5", "bits.scope=paper", "engine=int_reference")
    assert (made.bits.name, made.seed, made.bits.scope, made.engine) == ("w32a32", 0, "common", "simulate")
    assert made == full_precision(made)


def test_a_job_and_its_error_can_be_sent_to_another_process():
    made = job()
    assert pickle.loads(pickle.dumps(made)) == made
    error = ConfigError("a", "b", ["c"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_recorded_configuration_is_plain_resolved_and_without_the_store(tmp_path):
    made = job(f"store.root={tmp_path}")
    text = canonical_json(made.config)
    assert "${" not in text and str(tmp_path) not in text
    assert made.config["bits"]["ranges"] == "shared"
    assert made.store_root == tmp_path


def test_the_store_is_the_configured_one_then_the_environments_then_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert job().store_root == tmp_path / "runs"
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / "there"))
    assert job().store_root == tmp_path / "there"
    assert job("store.root=here").store_root == tmp_path / "here"


# ---- YAMLs


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_yaml_names_its_schema(path):
    """Methods and their stages are their own schemas, which ``compose`` types; a variant starts from its method."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    group = path.parent.name
    if group == "stage":
        assert {"version", "uses"} <= content.keys()
    elif group == "method" and "variant" in content:
        assert (path.parent / f"{content['defaults'][0]}.yaml").is_file()
        assert path.stem.startswith(f"{content['defaults'][0]}_") and "name" not in content
    elif group == "method":
        assert content["name"] == path.stem
    elif group == "model":
        assert path.read_text().startswith("# @package _global_\n")
        assert content["defaults"][0] == "base_model@model"
    else:
        assert content["defaults"][0] == ("base_config" if path.parent == CONF else f"base_{group}")


@pytest.mark.parametrize(
    ("group", "text", "typo", "nearest"),
    [
        ("bits", "defaults: [base_bits, _self_]\nweigth: 4\nactivation: 8\n", "weigth=4", "weight"),
        ("bits", "weigth: 4\nactivation: 8\n", "weigth=4", "weight"),
        ("budget", "defaults: [quick, _self_]\ntrajectoris: 8\n", "trajectoris=8", "trajectories"),
        (
            "model",
            "# @package _global_\ndefaults: [digits, _self_]\nsampler:\n  stepz: 4\n",
            "sampler.stepz=",
            "steps",
        ),
        ("method", "defaults: [rtn, _self_]\nfaithfull: true\n", "method.faithfull=", "faithful"),
        (
            "method",
            "defaults: [rtn, _self_]\nweight_range:\n  exponnt: 2.0\n",
            "method.weight_range.exponnt=2.0",
            "exponent",
        ),
    ],
)
def test_a_typo_inside_a_users_yaml_is_refused(tmp_path, group, text, typo, nearest):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    error = str(refused(*search_path([str(tmp_path)]), f"{group}=mine"))
    assert typo in error and f"nearest: {nearest}" in error


def test_a_wrong_type_inside_a_users_yaml_is_refused(tmp_path):
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "mine.yaml").write_text("defaults: [base_bits, _self_]\nweight: four\nactivation: 8\n")
    error = str(refused(*search_path([str(tmp_path)]), "bits=mine"))
    assert "weight=four" in error


def test_a_users_own_yamls_are_options(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(
        "defaults: [rtn, /stage/weight_reconstruction@weight_reconstruction, _self_]\n"
        "name: mine\nstages: [weight_range, weight_reconstruction]\nweight_reconstruction:\n  warmup: 0.5\n"
    )
    made = job(*search_path([str(tmp_path)]), "method=mine")
    assert [stage.name for stage in made.method.stages] == ["weight_range", "weight_reconstruction"]
    assert made.method.name == "mine"
    assert made.method.stages[1].settings["warmup"] == 0.5


def test_a_config_dir_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="nowhere"):
        search_path(["nowhere"])


# ---- many jobs, and cheapness


def test_all_combinations_of_a_multirun_in_the_order_of_the_command_line():
    assert expand(["method=fp,rtn", "seed=3", "bits.weight=range(2,4)"]) == [
        ["method=fp", "seed=3", "bits.weight=2"],
        ["method=fp", "seed=3", "bits.weight=3"],
        ["method=rtn", "seed=3", "bits.weight=2"],
        ["method=rtn", "seed=3", "bits.weight=3"],
    ]
    assert {bits for [bits] in expand(["bits=glob(w4*)"])} == {
        "bits=w4a32",
        "bits=w4a4",
        "bits=w4a6",
        "bits=w4a8",
    }
    assert not any("base_" in bits for [bits] in expand(["bits=glob(*)"]))


@pytest.mark.parametrize(
    ("visible", "built", "expected"),
    [("", "2.14.1", False), ("-1", "2.14.1", False), (None, "2.14.1+cpu", False)],
)
def test_no_cuda_is_expected_where_it_is_hidden_or_not_built(monkeypatch, visible, built, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("dmqbench.config.job.version", lambda name: built)
    assert cuda_expected() == expected


def test_composing_and_hashing_import_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from dmqbench.config.compose import compose\n"
        "from dmqbench.config.ids import job_ids\n"
        "from dmqbench.config.job import make_job\n"
        "from dmqbench.config.model_facts import weights_hash\n"
        "job = make_job(compose(['method=q_diffusion']))\n"
        "job_ids(job, weights_hash(job.model))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'pytorch_lightning', 'wandb')))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
