"""What EfficientDM's own stage finds and records, and settings that users will try."""

import json

import pytest
from e2e.commands import TINY, dmqbench, result_folder
from tuning import won

from dmqbench.cli import main
from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.tasks.run import carry_out as run_job
from dmqbench.tracking.record import read_record

METHOD = (
    *(*TINY, "method=efficient_dm", "bits=w2a4", "budget.tuning_iterations=10", "metrics.names=[psnr,mse]"),
    *("method.low_rank_tuning.adapter_travel=0.5", "method.low_rank_tuning.activation_scale_travel=0.1"),
)
"""With rates at which ten iterations win something."""
STAGES = ["weight_range", "activation_range", "low_rank_tuning"]
FASTER = ("budget.trajectories=4", "sampler.steps=3", "budget.batch=4", "budget.tuning_iterations=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store in which a job is done, and its result folder."""
    root = tmp_path_factory.mktemp("efficient_dm") / "runs"
    status, output, errors = dmqbench(root, *METHOD)
    assert status == 0, errors
    return root, result_folder(output)


def stage_folder(root):
    [path] = root.glob("quantized/*/findings.json")
    return path


def test_a_job_leaves_its_numbers_and_what_the_stage_found(done):
    root, folder = done
    result = json.loads((folder / "result.json").read_text())
    assert (result["method"], result["bits"], result["ranges"]) == ("efficient_dm", "w2a4", "step")
    assert result["metrics"]["psnr"]["value"] > 5
    assert [part["stage"] for part in result["calibration"]] == ["trajectories", *STAGES]
    found = json.loads(stage_folder(root).read_text())
    assert found["settings"]["distillation"] == "none"
    before, after = found["noise_error_before"], found["noise_error_after"]
    assert len(before) == len(after) == 4 and min(after) > 0
    assert won(found) < 1
    assert 0 < found["best_iteration"] <= 10


def test_its_record_has_the_loss_of_every_unit_with_its_parts(done):
    root, folder = done
    events = list(read_record(root / "records" / f"{folder.name}.jsonl"))
    units = [event["unit"] for event in events if event["event"] == "unit" and event["stage"] == STAGES[-1]]
    curves = [event for event in events if event["event"] == "curve" and event["chart"].startswith("loss/low_rank")]
    assert len(units) == 5
    for chart in ("loss/low_rank_tuning", "loss/low_rank_tuning/noise"):
        assert [event["lines"][0]["name"] for event in curves if event["chart"] == chart] == units


def test_another_setting_is_another_job_that_shares_the_ranges(done):
    root, _ = done
    before = len(list(root.glob("quantized/*")))
    assert before == len(STAGES)
    changed = "method.low_rank_tuning.distillation=relation"
    status, _, errors = dmqbench(root, *METHOD, changed, "budget.tuning_iterations=1", "task=calibrate")
    assert status == 0, errors
    folders = list(root.glob("quantized/*/findings.json"))
    assert len(list(root.glob("quantized/*"))) == before + 1 and len(folders) == 2
    told = [json.loads(path.read_text()) for path in folders]
    assert {one["settings"]["distillation"] for one in told} == {"none", "relation"}


@pytest.mark.parametrize(
    "overrides",
    [
        ("sampler.guidance=3", "calibration.steps=2", "calibration.match=nearest"),
        ("bits=w4a32", "method.faithful=true", "method.low_rank_tuning.window=3"),
        ("bits.weight=32", "bits.ranges=group2", "sampler.eta=1"),
        ("bits.scope=paper", "method.low_rank_tuning.distillation=feature", "method.low_rank_tuning.loss=published"),
    ],
)
def test_what_users_will_try(overrides, tmp_path):
    job = make_job(compose([*METHOD, *FASTER, f"store.root={tmp_path}", *overrides]))
    result = json.loads((run_job(job) / "result.json").read_text())
    assert result["metrics"]["mse"]["value"] > 0
    found = json.loads(stage_folder(tmp_path).read_text())
    assert won(found) <= 1


@pytest.mark.parametrize("key", ["sampler.steps", "calibration.steps"])
def test_a_window_longer_than_the_trajectory_is_refused_before_anything_is_computed(key, tmp_path, capsys):
    overrides = (*METHOD, f"{key}=4", "calibration.match=nearest", "method.low_rank_tuning.window=5")
    assert main([f"store.root={tmp_path / 'runs'}", *overrides]) == 2
    shown = capsys.readouterr().err
    assert shown == (
        "dmqbench: method.low_rank_tuning.window=5 is longer than the trajectories, of 4 network calls; nearest: 4 "
        "(allowed: 1 to 4)\n"
    )
    assert not (tmp_path / "runs").exists()
    assert make_job(compose([*METHOD, f"{key}=4", "calibration.match=nearest", "method.low_rank_tuning.window=4"]))
