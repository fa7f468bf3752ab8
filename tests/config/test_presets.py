"""``method.faithful`` as a preset over named switches, the names of variants, and settings that came after ids."""

import pytest

from dmqbench.config.checked_job import StageConfig
from dmqbench.config.compose import compose, search_path, variant_text
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job

FAITHFUL = ["method=dmq", "method.faithful=true"]


def job_of(*overrides):
    return make_job(compose(list(overrides)))


def settings_of(job):
    return {stage.name: stage.settings for stage in job.method.stages}


def stage_ids(*overrides):
    return dict(job_ids(job_of(*overrides), "0" * 64).stages)


def test_the_preset_sets_one_switch_for_every_difference_from_the_published_code():
    usual, faithful = settings_of(job_of("method=dmq")), settings_of(job_of(*FAITHFUL))
    assert (usual["equivalent_scaling"]["zero_in_range"], faithful["equivalent_scaling"]["zero_in_range"]) == (
        True,
        False,
    )
    assert (usual["equivalent_scaling"]["bin_error"], faithful["equivalent_scaling"]["bin_error"]) == ("mean", "sum")
    assert (usual["equivalent_scaling"]["bins"], faithful["equivalent_scaling"]["bins"]) == (0, 20)
    assert usual["weight_reconstruction"]["regularized_groups"] == "all"
    assert faithful["weight_reconstruction"]["regularized_groups"] == "first"
    assert "activation_ema" not in usual and "activation_range" not in faithful
    assert (usual["weight_reconstruction"]["counted_from"], faithful["weight_reconstruction"]["counted_from"]) == (0, 1)
    assert faithful["weight_reconstruction"]["learning_rate"] == 0.001
    assert (usual["weight_range"]["zero_in_range"], faithful["weight_range"]["zero_in_range"]) == (True, False)
    assert (faithful["activation_ema"]["carry"], faithful["activation_ema"]["skip_part"]) == (True, "last")
    assert faithful["activation_ema"]["later_passes"] == 2
    assert usual["power_of_two_scaling"] == faithful["power_of_two_scaling"]


def test_the_command_line_wins_over_the_preset_wherever_it_stands():
    for overrides in (
        [*FAITHFUL, "method.equivalent_scaling.bin_error=mean"],
        ["method=dmq", "method.equivalent_scaling.bin_error=mean", "method.faithful=true"],
    ):
        job = job_of(*overrides)
        assert settings_of(job)["equivalent_scaling"]["bin_error"] == "mean"
        assert settings_of(job)["equivalent_scaling"]["bins"] == 20
        assert job.method.variant == "faithful, bin_error=mean"


def test_a_yaml_of_ones_own_that_is_faithful_has_the_preset(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [dmq, _self_]\nfaithful: true\n")
    job = make_job(compose([*search_path([str(tmp_path)]), "method=mine"]))
    assert job.method.stages == job_of(*FAITHFUL).method.stages


def test_a_method_without_a_preset_refuses_to_be_faithful():
    with pytest.raises(ConfigError, match=r"method.faithful=true changes nothing in method=q_diffusion"):
        job_of("method=q_diffusion", "method.faithful=true")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], ""),
        (["bits=w4a4", "seed=3"], ""),
        (["method.equivalent_scaling.weighting=uniform"], "weighting=uniform"),
        (
            ["method.stages=[weight_range,weight_reconstruction,activation_range,activation_reconstruction]"],
            "no equivalent_scaling, no power_of_two_scaling, with activation_reconstruction",
        ),
        (
            ["method.power_of_two_scaling.layers=all", "method.power_of_two_scaling.selection=mse"],
            "layers=all, selection=mse",
        ),
        (["method.variant=mine", "method.equivalent_scaling.weighting=uniform"], "mine"),
        (["method.equivalent_scaling.weighting=adaptive"], ""),
    ],
)
def test_a_variant_is_named_by_what_sets_it_apart(overrides, text):
    assert job_of("method=dmq", *overrides).method.variant == text


def test_the_named_variant_leaves_out_the_votes_and_shares_every_stage_with_dmq():
    job = job_of("method=dmq_les")
    assert (job.method.name, job.method.variant) == ("dmq", "LES")
    assert job_of("method=dmq_les", "method.equivalent_scaling.absorb=true").method.variant == "LES, absorb=true"
    ours, published = stage_ids("method=dmq_les"), stage_ids("method=dmq")
    assert ours == {name: id for name, id in published.items() if name != "power_of_two_scaling"}


def test_a_path_is_no_part_of_a_variant():
    assert variant_text({"path": None, "stages": []}, {"path": "elsewhere", "stages": []}) == ""


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["method.equivalent_scaling.samples=64"], "equivalent_scaling.samples=64"),
        (["method.power_of_two_scaling.samples=64"], "power_of_two_scaling.samples=64"),
        (["method.power_of_two_scaling.samples=512"], ""),  # what the budget says already
        (["method.activation_reconstruction.iterations=5"], ""),  # of a stage that is not listed
        (["method.weight_reconstruction.capture_mib=7"], ""),
        (
            [
                "method.stages=[equivalent_scaling,weight_range,activation_range,power_of_two_scaling,"
                "weight_reconstruction]"
            ],
            "stages=equivalent_scaling>weight_range>activation_range>power_of_two_scaling>weight_reconstruction",
        ),
    ],
)
def test_names_tell_settings_apart_and_leave_out_what_changes_no_number(overrides, text):
    assert job_of("method=dmq", *overrides).method.variant == text


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("equivalent_scaling.weighting=adaptiv", "nearest: adaptive"),
        ("equivalent_scaling.ranges=step", "allowed: batch, deployed"),
        ("equivalent_scaling.travel=0.0", "out of range"),
        ("equivalent_scaling.iterations=0", "allowed: 1 or more"),
        ("equivalent_scaling.bins=-3", "allowed: 0 or more"),
        ("power_of_two_scaling.layers=skp", "nearest: skip"),
        ("power_of_two_scaling.agreement=2.0", "allowed: 0 to 1"),
        ("power_of_two_scaling.depth=9", "nearest: 7"),
        ("weight_reconstruction.regularized_groups=none", "allowed: all, first"),
        ("weight_range.observer=mean", "allowed: min_max, mse, percentile"),
        ("equivalent_scaling.uses=[weight]", "set there only"),
        ("equivalent_scaling.momentum=1.0", "allowed: 0 to 0.9999"),
        ("equivalent_scaling.travel=inf", "out of range"),
        ("weight_reconstruction.not_in_id=[warmup]", "set there only"),
        ("faithful_settings.equivalent_scaling.bins=10", "set there only"),
    ],
)
def test_a_wrong_setting_of_a_stage_is_refused_before_anything_is_computed(override, allowed):
    with pytest.raises(ConfigError) as refused:
        job_of("method=dmq", f"method.{override}")
    assert str(refused.value).startswith(f"method.{override.partition('=')[0]}=")
    assert allowed in str(refused.value)


def test_the_name_of_a_variant_changes_no_id():
    assert stage_ids("method=dmq") == stage_ids("method=dmq", "method.variant=mine")


def test_a_setting_that_came_later_changes_ids_only_where_it_is_used():
    stage = StageConfig("s", 1, (), {"old": 1, "new": "all"}, (), {"new": "all"})
    assert stage.id_settings == {"old": 1}
    stage = StageConfig("s", 1, (), {"old": 1, "new": "first"}, (), {"new": "all"})
    assert stage.id_settings == {"old": 1, "new": "first"}
    usual = stage_ids("method=q_diffusion")["weight_reconstruction"]
    changed = stage_ids("method=q_diffusion", "method.weight_reconstruction.regularized_groups=first")
    assert changed["weight_reconstruction"] != usual


def test_weights_that_were_not_scaled_are_shared_with_q_diffusion():
    """Without LES, the rounding of dmq is that of q_diffusion, made once."""
    plain = "method.stages=[weight_range,weight_reconstruction,activation_range,power_of_two_scaling]"
    ours, theirs = stage_ids("method=dmq", plain), stage_ids("method=q_diffusion")
    assert ours["weight_reconstruction"] == theirs["weight_reconstruction"]


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ("[]", "leaves nothing to method=dmq"),
        ("[equivalent_scaling]", "needs weight_range after equivalent_scaling"),
        ("[weight_range,equivalent_scaling,activation_range]", "needs weight_range after equivalent_scaling"),
        ("[power_of_two_scaling]", "needs activation_range or activation_ema before power_of_two_scaling"),
        ("[weight_range,weight_range,activation_range]", "has weight_range twice"),
        ("[weight_reconstruction,weight_range]", "needs weight_range before weight_reconstruction"),
    ],
)
def test_stages_in_an_order_that_cannot_work_are_refused(stages, problem):
    with pytest.raises(ConfigError, match=r"method\.stages=") as refused:
        job_of("method=dmq", f"method.stages={stages}")
    assert problem in str(refused.value)
