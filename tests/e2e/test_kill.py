"""Jobs that are killed, and jobs that run side by side: nothing is lost, and the bits are the same."""

import hashlib
import json
import signal
import time

import pytest
from e2e.commands import FEW, dmqbench, result_folder, running
from tiny import save_pipeline, smallest_unet

METHOD = ("method=q_diffusion", "bits=w4a6")
STOPPED_IN = {
    "equivalent_scaling": (
        0,
        *("method=dmq", "bits=w4a4", "budget.scale_iterations=20", "method.equivalent_scaling.schedule=joint"),
        "method.stages=[equivalent_scaling,weight_range,activation_range,power_of_two_scaling]",
    ),
    "trajectory_reconstruction": (
        3,
        *("method=accuquant", "bits=w4a6", "method.trajectory_reconstruction.horizon=3"),
        "budget.trajectory_iterations=6",
    ),
    "low_rank_tuning": (2, "method=efficient_dm", "bits=w2a4", "budget.tuning_iterations=10"),
}
"""Stages that learn over many iterations, with how many others are done before."""


@pytest.fixture(scope="module")
def sizes(tmp_path_factory) -> list[str]:
    """Overrides of every job, on a network with few layers."""
    model = save_pipeline(tmp_path_factory.mktemp("kill") / "model", smallest_unet())
    return [*FEW, "model=local", f"model.path={model}", "model.classes=10", "metrics.names=[psnr,mse]"]


def digests(root):
    """Content of everything that numbers come from: states of calibration and samples, by place in the store."""
    files = [*root.glob("quantized/*/*.safetensors"), *root.glob("samples/*/*.safetensors")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stages_done(root):
    return {path.parent.name for path in root.glob("quantized/*/manifest.json")}


def findings(root):
    return {path.parent.name: path.read_text() for path in root.glob("quantized/*/findings.json")}


def begun(root):
    """Checkpoints of stages that are not finished yet."""
    done = stages_done(root)
    return [path for path in root.glob(".work/*/checkpoint.safetensors") if path.parent.name not in done]


def test_killed_in_calibration_and_in_sampling_then_resumed_to_the_same_bits(tmp_path, sizes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    method = (*sizes, *METHOD, "metrics.samples=64")
    status, output, errors = dmqbench(whole, *method)
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())

    with running(killed, *method) as process:
        process.wait_for(lambda: bool(begun(killed)))
        process.kill()
    assert begun(killed)

    samples = killed / "samples" / result["samples"]["quantized"]
    with running(killed, *method) as process:
        process.wait_for(lambda: any(samples.glob("*.safetensors")))
        process.kill()
    assert stages_done(killed) == stages_done(whole)

    status, output, errors = dmqbench(killed, *method)
    assert status == 0, errors
    assert digests(killed) == digests(whole)
    assert json.loads((result_folder(output) / "result.json").read_text())["metrics"] == result["metrics"]


@pytest.mark.parametrize("stage", STOPPED_IN)
def test_killed_in_the_middle_of_learning_then_resumed_to_the_same_bits(tmp_path, sizes, stage):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    before, *chosen = STOPPED_IN[stage]
    method = (*sizes, *chosen, "task=calibrate")
    status, _, errors = dmqbench(whole, *method)
    assert status == 0, errors

    with running(killed, *method) as process:
        process.wait_for(lambda: len(stages_done(killed)) == before and bool(begun(killed)))
        process.kill()
    assert len(stages_done(killed)) == before and begun(killed)

    status, _, errors = dmqbench(killed, *method)
    assert status == 0, errors
    assert digests(killed) == digests(whole)
    assert stages_done(killed) == stages_done(whole)
    assert findings(killed) == findings(whole) != {}


def test_two_processes_share_one_set_of_samples_and_one_is_killed(tmp_path, sizes):
    alone, together = tmp_path / "alone", tmp_path / "together"
    method = (*sizes, "method=fp", "task=sample", "metrics.samples=64")
    status, _, errors = dmqbench(alone, *method)
    assert status == 0, errors

    with running(together, *method) as first, running(together, *method) as second:
        first.wait_for(lambda: any(together.glob("samples/*/*.safetensors")))
        first.kill()
        status, _, errors = second.wait()
    assert status == 0, errors
    assert digests(together) == digests(alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_status_130_within_seconds(tmp_path, sizes, number):
    store = tmp_path / "runs"
    with running(store, *sizes, *METHOD, "budget.weight_iterations=100000") as process:
        process.wait_for(lambda: bool(stages_done(store)))
        time.sleep(1)  # into the iterations of the second stage
        sent = time.monotonic()
        process.send(number)
        status, _, errors = process.wait()
    assert status == 130, errors
    assert time.monotonic() - sent < 5
