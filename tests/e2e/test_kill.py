"""Jobs that are killed, and jobs that run side by side: nothing is lost, and the bits are the same."""

import hashlib
import json
import signal
import time

from e2e.commands import dmqbench, finish, result_folder, start

METHOD = ("method=q_diffusion", "bits=w4a6")
DMQ = (
    *("method=dmq", "bits=w4a4", "model=ladder_1"),
    *("budget.scale_iterations=50", "method.equivalent_scaling.schedule=joint"),
)


def digests(root):
    """Content of everything that numbers come from: states of calibration and samples, by place in the store."""
    files = [*root.glob("quantized/*/*.safetensors"), *root.glob("samples/*/*.safetensors")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never got that far"
        time.sleep(0.05)


def test_killed_in_calibration_and_in_sampling_then_resumed_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, _, errors = dmqbench(whole, *METHOD)
    assert status == 0, errors

    process = start(killed, *METHOD)
    wait_for(lambda: any(killed.glob(".work/*/checkpoint.safetensors")), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert list(killed.glob(".work/*/checkpoint.safetensors"))

    process = start(killed, *METHOD)
    finished = len(list(whole.glob("quantized/*")))
    wait_for(lambda: len(list(killed.glob("quantized/*/manifest.json"))) == finished, process)
    wait_for(lambda: len(list(killed.glob("samples/*/*.safetensors"))) > 10, process)
    process.send_signal(signal.SIGKILL)
    finish(process)

    status, output, errors = dmqbench(killed, *METHOD)
    assert status == 0, errors
    assert digests(killed) == digests(whole)
    metrics = json.loads((result_folder(output) / "result.json").read_text())["metrics"]
    [other] = whole.glob("result/*/result.json")
    assert metrics == json.loads(other.read_text())["metrics"]


def test_killed_in_the_middle_of_learned_scaling_then_resumed_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, _, errors = dmqbench(whole, *DMQ, "task=calibrate")
    assert status == 0, errors

    process = start(killed, *DMQ, "task=calibrate")
    wait_for(lambda: any(killed.glob(".work/*/checkpoint.safetensors")), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not list(killed.glob("quantized/*/manifest.json"))

    status, _, errors = dmqbench(killed, *DMQ, "task=calibrate")
    assert status == 0, errors
    assert digests(killed) == digests(whole)
    findings = [sorted(path.read_text() for path in root.glob("quantized/*/findings.json")) for root in (killed, whole)]
    assert findings[0] == findings[1]
    assert len(findings[0]) == 2


def test_two_processes_share_one_set_of_samples_and_one_is_killed(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    status, _, errors = dmqbench(alone, "method=fp", "task=sample")
    assert status == 0, errors

    first, second = (start(together, "method=fp", "task=sample") for _ in range(2))
    wait_for(lambda: any(together.glob("samples/*/*.safetensors")), first)
    first.send_signal(signal.SIGKILL)
    finish(first)
    status, _, errors = finish(second)
    assert status == 0, errors
    assert digests(together) == digests(alone)


def test_an_interrupt_is_status_130_within_seconds(tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        store = tmp_path / number.name
        process = start(store, *METHOD, "budget.weight_iterations=100000")
        wait_for(lambda store=store: any(store.glob("trajectories/*/manifest.json")), process)
        time.sleep(3)
        sent = time.monotonic()
        process.send_signal(number)
        status, _, errors = finish(process)
        assert status == 130, errors
        assert time.monotonic() - sent < 5
