"""Composing, checking and ids of jobs."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dmqbench.config import schema
from dmqbench.config.checked_job import Job, full_precision
from dmqbench.config.compose import TOGETHER, _composed, _of_package, compose, search_path
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import JobIds, job_ids
from dmqbench.config.job import cuda_expected, make_job
from dmqbench.config.model_facts import timesteps, weights_hash
from dmqbench.config.overrides import expand
from dmqbench.config.places import CONF
from dmqbench.models.folders import ARCHITECTURES, EMBEDDED, SCHEDULER_CONFIG, ModelError
from dmqbench.samplers.processes import OF_SAMPLER, stated
from dmqbench.store.files import canonical_json, short_hash

WEIGHTS = "0" * 64
METHODS = ("fp", "rtn", "q_diffusion")
BITS = ("w32a32", "w8a8", "w4a8", "w4a6", "w4a4", "w4a32", "w3a8", "w3a6", "w3a4", "w2a6", "w2a4")
YAMLS = sorted({*CONF.rglob("*.yaml")} - {CONF / "planned.yaml"})  # which lists names alone


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("DMQBENCH_RUNS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def job(*overrides: str) -> Job:
    return make_job(compose(overrides))


def ids_of(*overrides: str) -> JobIds:
    return job_ids(job(*overrides), WEIGHTS)


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        job(*overrides)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder as far as a configuration looks into it."""
    network = tmp_path / "mine" / "unet"
    network.mkdir(parents=True)
    (network / "config.json").write_text(
        '{"_class_name": "UNet2DModel", "in_channels": 3, "sample_size": 8, "num_class_embeds": null}'
    )
    (tmp_path / "mine" / "scheduler").mkdir()
    (tmp_path / "mine" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    return network.parent


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


def test_full_precision_of_a_quantized_job_is_the_full_precision_job():
    quantized = full_precision(job("method=q_diffusion", "seed=3"))
    alone = job("method=fp")
    assert job_ids(quantized, WEIGHTS).samples == job_ids(alone, WEIGHTS).samples
    assert (quantized.method, quantized.bits) == (alone.method, alone.bits)


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


# ---- what is refused


@pytest.mark.parametrize(
    ("override", "key", "value", "nearest"),
    [
        ("method=rnt", "method", "rnt", "rtn"),
        ("bits=w4z8", "bits", "w4z8", "w4a8"),
        ("bits.weight=0", "bits.weight", "0", "1"),
        ("bits.weight=9", "bits.weight", "9", "8"),
        ("bits.activation=1", "bits.activation", "1", "2"),
        ("bits.scope=comon", "bits.scope", "comon", "common"),
        ("bits.ranges=shard", "bits.ranges", "shard", "shared"),
        ("bits.weight=abc", "bits.weight", "abc", "4"),
        ("seed=1.5", "seed", "1.5", "0"),
        ("seed=true", "seed", "true", "0"),
        ("seed=-1", "seed", "-1", "0"),
        ("metrics.names=[psrn]", "metrics.names", "psrn", "psnr"),
        ("metrics.names=psnr", "metrics.names", "psnr", "[psnr"),
        ("metrics.pairs=1000", "metrics.pairs", "1000", "512"),
        ("sampler.stepz=3", "sampler.stepz", "3", "sampler.steps"),
        ("sampelr.steps=3", "sampelr.steps", "3", "sampler.steps"),
        ("mod=digits", "mod", "digits", "model"),
        ("sampler=ddimm", "sampler", "ddimm", "ddim"),
        ("sampler.eta=2", "sampler.eta", "2", "1"),
        ("sampler.spacing=trail", "sampler.spacing", "trail", "trailing"),
        ("sampler.guidance=x", "sampler.guidance", "x", "1.0"),
        ("method.weight_range.exponent=abc", "method.weight_range.exponent", "abc", "2.4"),
        ("method.weight_range.candidates=2.5", "method.weight_range.candidates", "2.5", "80"),
        (
            "+method.weight_range.exponnt=2",
            "method.weight_range.exponnt",
            "2",
            "method.weight_range.exponent",
        ),
        ("method.stages=[weight_rnge]", "method.stages", "weight_rnge", "weight_range"),
        ("task=rnu", "task", "rnu", "run"),
        ("engine=simulat", "engine", "simulat", "simulate"),
        ("tracker.mode=ofline", "tracker.mode", "ofline", "offline"),
        ("trainer.accelerator=gpus", "trainer.accelerator", "gpus", "gpu"),
        ("dataset=none", "dataset", "none", "digits"),
        ("method.faithful=true", "method.faithful", "true", "false"),
        ("hydra/launcher=basc", "hydra/launcher", "basc", "basic"),
    ],
)
def test_a_wrong_value_is_named_with_the_nearest_allowed_one(override, key, value, nearest):
    error = str(refused(override))
    assert error.startswith(f"{key}={value}")
    assert f"nearest: {nearest}" in error


@pytest.mark.parametrize("override", ["model=whatever", "method=smoothquantize", "bits=w9z3", "sampler.zzz=1"])
def test_where_nothing_is_near_only_what_is_allowed_is_named(override):
    error = str(refused(override))
    assert "nearest" not in error and "allowed: " in error


@pytest.mark.parametrize("hidden", ["bits=base_bits", "model=base_model", "sampler=base_sampler"])
def test_schemas_are_no_options(hidden):
    error = refused(hidden)
    assert not any(str(name).startswith("base_") for name in error.allowed)


@pytest.mark.parametrize(
    "override",
    ["method=quest", "model=terrain", "model=emoji"],
)
def test_what_is_planned_is_refused_as_not_built_yet(override):
    assert "is not built yet" in str(refused(override))


def test_planned_metrics_are_accepted_because_they_are_listed_as_unavailable():
    assert job("metrics.names=[psnr,fid,lpips]").metrics.names == ("psnr", "fid", "lpips")


@pytest.mark.parametrize(
    "override", ["bits=[", "=", "foo", "~bits", "bits@model=w4a8", "method=fp,rtn", "bits={weight: 4}"]
)
def test_what_cannot_be_read_as_one_value_of_a_key_is_refused(override):
    refused(override)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${oc.decode:1}", "a${hydra:runtime.cwd}"])
def test_a_configuration_reads_no_environment_and_runs_no_code(value):
    assert "resolver" in str(refused(f"'store.root={value}'".strip("'")))


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_samplers_are_refused(steps):
    assert str(refused(f"sampler.steps={steps}")).startswith(f"sampler.steps={steps}")


def test_a_model_without_a_folder_is_one_line(tmp_path):
    with pytest.raises(ModelError) as caught:
        job("model=local", f"model.path={tmp_path / 'nowhere'}")
    assert "\n" not in str(caught.value) and "nowhere" in str(caught.value)
    assert str(refused("model=local")).startswith("model.path=null")
    assert str(refused("model=hub", "model.path=a/b")).startswith("model.revision=null")


def test_guidance_needs_classes(folder):
    assert "sampler.guidance=2.0" in str(refused("model=local", f"model.path={folder}", "sampler.guidance=2"))


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


# ---- ids


def test_ids_are_what_they_were():
    """Whoever changes these raises a version, on purpose: results in users' stores are made again."""
    assert ids_of("method=q_diffusion", "bits=w4a6", "trainer=cpu") == JobIds(
        trajectories="49ad26c3350cbce2",
        stages=(
            ("weight_range", "8cbfd319763357f6"),
            ("weight_reconstruction", "07b375067a3d5a89"),
            ("activation_range", "ce34bab28fb05b88"),
            ("activation_reconstruction", "44e00b9c6e285f8d"),
        ),
        quantized="44e00b9c6e285f8d",
        samples="455dd176bdbdabca",
        result="dd641af657552440",
    )
    assert ids_of("method=fp", "trainer=cpu").result == "81611c6d991f7fcb"


SAME = (
    "tracker=disabled",
    "tracker.mode=offline",
    "store.root=elsewhere",
    "trainer.accelerator=cpu",
    "task=sample",
    "sampler.batch=7",
    "metrics.names=[psnr]",
    "metrics.samples=1024",
    "metrics.pairs=8",
    "method.weight_reconstruction.capture_mib=64",
    "bits.scope=common",
    "bits.ranges=shared",
    "hydra/launcher=basic",
)


@pytest.mark.parametrize("override", SAME)
def test_what_changes_no_number_changes_no_id(override):
    assert ids_of("method=q_diffusion", override) == ids_of("method=q_diffusion")


@pytest.mark.parametrize(
    ("override", "trajectories", "first_stage"),
    [
        ("seed=1", True, True),
        ("sampler.steps=10", True, True),
        ("sampler.eta=0.5", True, True),
        ("sampler.guidance=2", True, True),
        ("sampler.chunk=16", True, True),
        ("sampler.clip_sample=1.0", True, True),
        ("budget.trajectories=8", True, True),
        ("budget.validation=8", True, True),
        ("bits.weight=3", False, True),
        ("bits.scope=paper", False, True),
        ("method.weight_range.exponent=2.0", False, True),
        ("bits.activation=6", False, False),
        ("bits.ranges=step", False, False),
        ("budget.weight_iterations=9", False, False),
        ("method.weight_reconstruction.learning_rate=0.5", False, False),
        ("metrics.seed=1", False, False),
        ("engine=int_reference", False, False),
    ],
)
def test_what_changes_numbers_changes_the_ids_that_follow(override, trajectories, first_stage):
    before, after = ids_of("method=q_diffusion"), ids_of("method=q_diffusion", override)
    assert (before.trajectories != after.trajectories) == trajectories
    assert (before.stages[0] != after.stages[0]) == first_stage
    assert before.samples != after.samples and before.result != after.result


def test_stages_that_use_only_weights_are_shared_over_activation_bits_and_methods():
    low, high = ids_of("method=q_diffusion", "bits=w4a4"), ids_of("method=q_diffusion", "bits=w4a8")
    assert low.stages[:2] == high.stages[:2]
    assert low.stages[2] != high.stages[2] and low.quantized != high.quantized
    assert low.quantized == low.stages[-1][1]
    assert ids_of("method=rtn", "bits=w4a4").stages[0] == low.stages[0]


def test_full_precision_ids_ignore_what_full_precision_ignores():
    plain = ids_of("method=fp")
    for override in (
        "bits=w4a4",
        "seed=3",
        "bits.scope=paper",
        "budget.weight_iterations=1",
        "engine=int_reference",
    ):
        other = ids_of("method=fp", override)
        assert (other.samples, other.result) == (plain.samples, plain.result)
    assert plain.quantized is None and plain.stages == ()
    assert ids_of("method=fp", "metrics.seed=1").samples != plain.samples


def test_ids_depend_on_the_weights():
    made = job("method=rtn")
    first, second = job_ids(made, "0" * 64), job_ids(made, "1" * 64)
    assert all(a != b for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True))


def test_the_device_is_part_of_what_is_sampled():
    cpu = job("trainer=cpu")
    gpu = dataclasses.replace(cpu, trainer=schema.TrainerConfig("gpu"))
    assert job_ids(cpu, WEIGHTS).samples != job_ids(gpu, WEIGHTS).samples
    assert job_ids(cpu, WEIGHTS).quantized == job_ids(gpu, WEIGHTS).quantized


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.lists(st.integers())))
def test_a_hash_depends_on_the_value_and_not_on_the_order(value):
    assert short_hash(value) == short_hash(dict(reversed(value.items())))
    assert len(short_hash(value)) == 16 and int(short_hash(value), 16) >= 0


def test_the_hash_of_weights_sees_every_byte_and_the_scheduler(tmp_path):
    import json
    import struct

    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    network = tmp_path / "unet"
    network.mkdir()
    (network / "config.json").write_text('{"in_channels": 1, "sample_size": 4}')
    weights = network / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    model = schema.ModelConfig("mine", "local", str(tmp_path))
    seen = {weights_hash(model)}
    (tmp_path / "training.json").write_text("{}")
    assert weights_hash(model) in seen
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    seen.add(weights_hash(model))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "DDPMScheduler", "num_train_timesteps": 10}'
    )
    seen.add(weights_hash(model))
    assert len(seen) == 3
    assert timesteps(dataclasses.replace(job().sampler, steps=2), model) == (5, 0)


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


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["bits.ranges=step", "budget.samples=4"], "budget.samples=4"),
        (["model.classes=12"], "model.classes=12"),
        (["model.classes=11", "sampler.guidance=3"], "sampler.guidance=3.0"),
        (["model.sample_shape=[3,8,8]"], "model.sample_shape=[3,8,8]"),
        (["task=evaluate", "evaluate.samples=x.npz"], "evaluate.samples=x.npz"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(overrides, key):
    assert str(refused(*overrides)).startswith(key)


def test_a_network_of_no_family_is_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    error = str(refused("model=local", f"model.path={tmp_path}"))
    assert "UNet3DConditionModel" in error and "UNet2DModel" in error
