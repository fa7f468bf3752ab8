"""Groups of calls, and a model that is calibrated on another plan than it samples with: checks, ids, samples."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from config.asked import ids_of, job, refused
from diffusers import DDIMPipeline, DDIMScheduler
from e2e.commands import TINY
from safetensors.torch import load_file
from tiny import unet

from dmqbench.cli import main
from dmqbench.config.compose import compose
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job
from dmqbench.models.rollout import chunk_name
from dmqbench.quant.state import activation_quantizers
from dmqbench.results.record import largest
from dmqbench.results.result import calibration_text
from dmqbench.store.artifacts import Store
from dmqbench.tasks.plan import carry_out as show_plan
from dmqbench.tasks.result import calibration_costs
from dmqbench.tasks.run import carry_out as run_job
from dmqbench.tasks.sample import frozen
from dmqbench.tasks.workshop import STATE, Workshop

STEP = ("bits.ranges=step", "calibration.steps=10")
NEAREST = (*STEP, "calibration.match=nearest")


# ---- groups


def test_groups_of_one_call_are_steps():
    assert job("bits.ranges=group1").bits.ranges == job("method.ranges=group1").bits.ranges == "step"
    assert ids_of("bits.ranges=group1") == ids_of("bits.ranges=step")


def test_groups_have_ids_of_their_own_and_may_be_a_methods_own_ranges():
    found = {ids_of(f"bits.ranges={ranges}").samples for ranges in ("shared", "step", "group2", "group5", "group99")}
    assert len(found) == 5
    assert ids_of("method.ranges=group5") == ids_of("bits.ranges=group5")
    assert job("method.ranges=group5", "bits.ranges=shared").bits.ranges == "shared"


@pytest.mark.parametrize(
    ("value", "nearest"),
    [("group0", "group1"), ("group05", "group5"), ("groups3", "group3"), ("7", "group7"), ("shard", "shared")],
)
@pytest.mark.parametrize("key", ["bits.ranges", "method.ranges"])
def test_another_word_is_refused_with_the_nearest(key, value, nearest):
    error = refused(f"{key}={value}")
    assert (error.key, error.nearest) == (key, nearest)


@pytest.mark.parametrize(("ranges", "least"), [("step", 20), ("group5", 16), ("group6", 19), ("group20", 1)])
def test_every_group_needs_a_calibration_point(ranges, least):
    assert job(f"bits.ranges={ranges}", f"budget.samples={least}")
    if least > 1:
        error = refused(f"bits.ranges={ranges}", f"budget.samples={least - 1}")
        assert (error.key, error.nearest) == ("budget.samples", least)


# ---- another plan: what is refused


def test_parameters_per_step_refuse_another_plan_in_one_line_with_the_way_out():
    text = str(refused(*STEP))
    assert text.startswith("calibration.steps=10 calibrates 10 network calls at timesteps 900 to 0")
    assert "sampler.steps=20 samples with 20 network calls at timesteps 950 to 0" in text
    assert "bits.ranges=step" in text
    assert "calibration.match=nearest" in text and "calibration.match=interpolate" in text
    assert refused("bits.ranges=group5", "calibration.steps=10").key == "calibration.steps"


@pytest.mark.parametrize(
    "overrides",
    [
        NEAREST,
        (*STEP, "calibration.match=interpolate"),
        ("calibration.steps=10",),
        ("calibration.steps=10", "bits.ranges=group10"),
        ("bits.ranges=step", "calibration.steps=20"),
        ("bits.ranges=step", "sampler.guidance=3", "calibration.guidance=1"),
        ("bits.ranges=step", "sampler.eta=1", "calibration.eta=0"),
        ("bits.ranges=step", "bits=w4a32", "calibration.steps=10"),
        ("bits.ranges=step", "method.stages=[weight_range]", "calibration.steps=10"),
        ("bits.ranges=step", "method=fp", "calibration.steps=10"),
    ],
)
def test_what_fits_every_call_needs_no_match(overrides):
    assert job(*overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("calibration.steps=0", "calibration.steps=0 is too small"),
        ("calibration.steps=2000", "calibration.steps=2000 is not possible"),
        ("calibration.eta=2", "calibration.eta=2.0 is out of range"),
        ("calibration.guidance=-1", "calibration.guidance=-1.0 is too small"),
        ("calibration.match=closest", "calibration.match=closest is not known"),
        ("calibration.step=3", "calibration.step=3 is not a key; nearest: calibration.steps"),
        ("calibration.steps=many", "calibration.steps=many is not a whole number"),
    ],
)
def test_a_wrong_calibration_is_one_line(override, message):
    assert str(refused(override)).startswith(message)


def test_guidance_while_calibrating_needs_a_null_label():
    assert refused("model.classes=11", "calibration.guidance=3").key == "calibration.guidance"


def test_the_command_line_refuses_it_with_status_2(tmp_path, capsys):
    assert main([f"store.root={tmp_path}", *STEP]) == 2
    assert "calibration.match=nearest" in capsys.readouterr().err


# ---- ids


def test_what_is_calibrated_is_shared_with_jobs_that_sample_as_they_calibrate():
    for ranges in ("shared", "step", "group4"):
        settings = ("method=q_diffusion", f"bits.ranges={ranges}", "calibration.match=nearest")
        short, long = (ids_of(*settings, f"sampler.steps={steps}") for steps in (10, 20))
        mixed = ids_of(*settings, "calibration.steps=10")
        assert (mixed.trajectories, mixed.stages) == (short.trajectories, short.stages)
        assert len({mixed.samples, short.samples, long.samples}) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        ("calibration.steps=20",),
        ("calibration.eta=0", "calibration.guidance=1"),
        ("calibration.match=nearest",),
        ("calibration.match=interpolate",),
        ("calibration.steps=20", "calibration.match=nearest", "bits.ranges=shared"),
    ],
)
def test_a_calibration_as_the_sampler_changes_no_id(overrides):
    assert ids_of("method=q_diffusion", *overrides) == ids_of("method=q_diffusion")


def test_a_match_that_matches_nothing_changes_no_id():
    for settings in (("calibration.steps=10",), ("bits.ranges=step",), ("bits.ranges=group50", "calibration.steps=10")):
        assert ids_of(*settings, "calibration.match=nearest") == ids_of(*settings)
        assert ids_of(*settings, "calibration.match=interpolate") == ids_of(*settings)


def test_how_calls_are_matched_is_a_matter_of_the_samples_alone():
    nearest, interpolated = (ids_of(*STEP, f"calibration.match={match}") for match in ("nearest", "interpolate"))
    assert (nearest.trajectories, nearest.stages) == (interpolated.trajectories, interpolated.stages)
    assert nearest.samples != interpolated.samples and nearest.result != interpolated.result


@pytest.mark.parametrize("key", ["steps=10", "eta=0.5", "guidance=2"])
def test_every_change_of_the_calibration_is_in_the_ids(key):
    plain, changed = ids_of(), ids_of(f"calibration.{key}")
    assert plain.trajectories != changed.trajectories and plain.samples != changed.samples
    assert changed.trajectories == ids_of(f"sampler.{key}").trajectories


def test_methods_without_calibration_know_nothing_of_it():
    assert ids_of("method=fp", *STEP) == ids_of("method=fp")
    assert "calibration" not in job("method=fp", *STEP).config


# ---- the job

JOB = (
    *(*TINY, "metrics.names=[psnr]", "metrics.samples=32", "sampler.chunk=32", "seed=1"),
    *("budget.trajectories=16", "budget.validation=16"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def tiny(store, *overrides):
    return make_job(compose([*JOB, f"store.root={store}", "method=rtn", "bits=w4a6", *overrides]))


@pytest.fixture(scope="module")
def mixed(store):
    made = tiny(store, "sampler.steps=3", "calibration.steps=2", "bits.ranges=step", "calibration.match=nearest")
    return made, run_job(made)


def test_samples_are_drawn_with_the_rows_of_the_nearest_calibrated_calls(store, mixed):
    """Calls at timesteps 666, 333 and 0 after calibrating at 500 and 0: rows 0, 0 and 1."""
    made, _ = mixed
    shop = Workshop(made, Store(store))
    drawn = load_file(Store(store).path("samples", shop.ids.samples) / chunk_name(0))["state"]
    assert (shop.sampler.timesteps, shop.calibration_sampler.timesteps) == ((666, 333, 0), (500, 0))
    network = frozen(shop).network
    stored = load_file(Store(store).path("quantized", shop.ids.quantized) / STATE)
    for name, quantizer in activation_quantizers(network).items():
        assert quantizer.row_of_call.tolist() == [0, 0, 1]
        assert torch.equal(quantizer.scale, stored[f"{name}.scale"]) and len(quantizer.scale) == 2
    again = shop.sampling(shop.adapter).follow(stream="eval", seed=0, indices=range(32))
    assert torch.equal(again.x[:, -1], drawn)
    as_calibrated = activation_quantizers(frozen(shop, shop.calibration_sampler).network).values()
    assert {tuple(quantizer.row_of_call.tolist()) for quantizer in as_calibrated} == {(0, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of a few thousand weights with its scheduler."""
    made = tmp_path_factory.mktemp("model")
    parts = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = unet(class_entries=None, block_out_channels=(8,), norm_num_groups=4, **parts)
    DDIMPipeline(network, DDIMScheduler(clip_sample=False)).save_pretrained(made)
    return made


@pytest.mark.parametrize(("calibrated", "sampled"), [(10, 5), (10, 25), (50, 10)])
def test_samples_are_drawn_with_ranges_interpolated_between_calibrated_calls(tmp_path, folder, calibrated, sampled):
    """Every call of 5 and 10 steps is one of the 10 and 50 calibrated ones; of 25 steps, every fifth is."""

    def shop_of(match: str) -> Workshop:
        steps = (f"sampler.steps={sampled}", f"calibration.steps={calibrated}", f"calibration.match={match}")
        local = ("model=local", f"model.path={folder}", "metrics.samples=4", "metrics.pairs=4", "tracker.mode=disabled")
        sizes = ("budget.trajectories=4", "budget.validation=4", f"budget.samples={calibrated}", "diagnose=false")
        overrides = (*local, *sizes, *steps, f"store.root={tmp_path}", "method=rtn", "bits=w4a6", "bits.ranges=step")
        return Workshop(make_job(compose(list(overrides))), Store(tmp_path))

    shop = shop_of("interpolate")
    assert json.loads((run_job(shop.job) / "result.json").read_text())["metrics"]["psnr"]["n"] == 4
    network, calls = frozen(shop).network, shop.calibration_sampler.timesteps
    stored = load_file(Store(tmp_path).path("quantized", shop.ids.quantized) / STATE)
    for name, quantizer in activation_quantizers(network).items():
        assert quantizer.row_of_call.tolist() == list(range(sampled))
        for group, scales in enumerate(stored[f"{name}.scale"].double().log().numpy().T):
            expected = np.interp(shop.sampler.timesteps, calls[::-1], scales[::-1])
            torch.testing.assert_close(quantizer.scale[:, group], torch.tensor(expected).exp().float())
        for call, timestep in enumerate(shop.sampler.timesteps):
            if timestep in calls:
                row = calls.index(timestep)
                assert torch.equal(quantizer.scale[call], stored[f"{name}.scale"][row])
                assert torch.equal(quantizer.zero_point[call], stored[f"{name}.zero_point"][row])
    drawn = load_file(Store(tmp_path).path("samples", shop.ids.samples) / chunk_name(0))["state"]
    again = shop.sampling(shop.adapter).follow(stream="eval", seed=0, indices=range(4))
    assert torch.equal(again.x[:, -1], drawn)
    nearest = shop_of("nearest")
    assert nearest.ids.quantized == shop.ids.quantized and nearest.ids.samples != shop.ids.samples
    by_nearest = nearest.sampling(frozen(nearest)).follow(stream="eval", seed=0, indices=range(4))
    assert torch.equal(by_nearest.x[:, -1], drawn) == (calibrated > sampled)


def test_its_result_names_the_calibration_and_its_cost(store, mixed):
    _, folder = mixed
    result = json.loads((folder / "result.json").read_text())
    assert result["config"]["calibration"] == {"steps": 2, "eta": None, "guidance": None, "match": "nearest"}
    parts = result["calibration"]
    assert [part["stage"] for part in parts] == ["trajectories", "weight_range", "activation_range"]
    assert [part["network_forwards"] for part in parts] == [(16 + 16) * 2, 0, 16]
    assert sum(part["network_forwards"] for part in parts) == result["timing"]["unet_forwards_calibration"]
    assert all(part["peak_memory_mib"] > 100 and part["peak_device_memory_mib"] is None for part in parts)
    largest = max(part["peak_memory_mib"] for part in parts)
    assert result["timing"]["calibration_peak_memory_mib"] == largest <= result["timing"]["peak_memory_mib"]


def test_errors_per_step_of_another_plan_are_left_out_with_the_reason(store, mixed):
    _, folder = mixed
    asked = tiny(store, "sampler.steps=3", "calibration.steps=2", "diagnose=true")
    found = json.loads((run_job(asked) / "result.json").read_text())
    assert found["undiagnosed"] == "sampled with other steps than the trajectories that it measures errors on"
    assert not (Store(store).path("result", found["job_id"]) / "diagnosis.json").exists()
    assert json.loads((folder / "result.json").read_text())["undiagnosed"] is None  # nobody asked


def test_a_shared_calibration_is_made_once(store, mixed):
    before = {path.name for path in (store / "trajectories").iterdir()}
    plain = tiny(store, "sampler.steps=2", "bits.ranges=step")
    assert {job_ids(plain, Workshop(plain, Store(store)).weights).trajectories} == before


def test_artifacts_from_before_have_no_peak():
    old, new = {"seconds": 1.5, "network_forwards": 8.0}, {"seconds": 2.0, "network_forwards": 3, "peak_memory_mib": 70}
    parts = calibration_costs([(name, SimpleNamespace(facts=facts)) for name, facts in (("a", old), ("b", new))])
    assert [part.peak_memory_mib for part in parts] == [None, 70]
    assert parts[0].to_json() == {
        **{"stage": "a", "seconds": 1.5, "network_forwards": 8},
        **{"peak_memory_mib": None, "peak_device_memory_mib": None},
    }
    assert [largest(peaks) for peaks in ([None, 70], [60, 70], [])] == [None, 70, None]


def test_the_plan_says_both(mixed, capsys):
    made, _ = mixed
    show_plan(made)
    shown = capsys.readouterr().out
    assert "calibrated on ddim, steps 2, eta 0, guidance 1; sampled with ddim, steps 3, eta 0, guidance 1" in shown
    assert "nearest timestep" in shown
    show_plan(replace(made, calibration=replace(made.calibration, match="interpolate")))
    assert "between those of the two calibrated calls around" in capsys.readouterr().out


def test_a_row_of_a_table_names_another_match_than_the_nearest():
    found = {"steps": 10, "eta": None, "guidance": None}
    assert calibration_text(found | {"match": "nearest"}) == "calibration.steps=10"
    assert calibration_text(found | {"match": "interpolate"}) == "calibration.steps=10, calibration.match=interpolate"
    assert calibration_text({"steps": None, "eta": 0.5, "match": "interpolate"}) == "calibration.eta=0.5"
