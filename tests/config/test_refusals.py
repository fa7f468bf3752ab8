"""Wrong values are named in one line, with the nearest allowed one."""

import pytest
from config.asked import job, refused

from dmqbench.models.folders import ModelError


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
    ["method=quest", "method=eda_dm", "model=emoji"],
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
