"""AccuQuant through the real command: what a job leaves, what it shares with Q-Diffusion, and being killed."""

import json
import signal

import pytest
from e2e.commands import dmqbench, finish, result_folder, start
from e2e.test_kill import digests, wait_for

METHOD = ("method=accuquant", "bits=w4a6", "method.trajectory_reconstruction.horizon=3")
STAGES = ["weight_range", "weight_reconstruction", "activation_range", "trajectory_reconstruction"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store in which a job is done, and its result folder."""
    root = tmp_path_factory.mktemp("accuquant") / "runs"
    status, output, errors = dmqbench(root, *METHOD)
    assert status == 0, errors
    return root, result_folder(output)


def test_a_job_leaves_its_numbers_and_what_the_stage_found(done):
    root, folder = done
    result = json.loads((folder / "result.json").read_text())
    assert (result["method"], result["bits"], result["ranges"]) == ("accuquant", "w4a6", "group5")
    assert result["metrics"]["psnr"]["value"] > 10
    assert result["metrics"]["fd2fp32_digits"]["value"] > 0
    [found] = [json.loads(path.read_text()) for path in root.glob("quantized/*/findings.json")]
    assert found["settings"]["horizon"] == 3
    groups = [group for span in found["spans"] for group in span["groups"]]
    assert groups == [[0, 2], [3, 3]]  # four calls
    for span in found["spans"]:
        assert len(span["error_before"]) == len(span["error_after"]) == len(span["groups"])
        assert 0 < sum(span["error_after"]) <= sum(span["error_before"])
        assert -1 <= span["gradient_cosine"] <= 1


def test_asked_again_it_answers_from_the_store(done):
    root, folder = done
    before = digests(root)
    status, output, errors = dmqbench(root, *METHOD)
    assert status == 0, errors
    assert result_folder(output) == folder
    assert digests(root) == before


def test_another_horizon_is_another_job_that_shares_all_stages_before(done):
    root, _ = done
    before = len(list(root.glob("quantized/*")))
    assert before == len(STAGES)
    status, _, errors = dmqbench(root, *METHOD, "method.trajectory_reconstruction.horizon=1", "task=calibrate")
    assert status == 0, errors
    assert len(list(root.glob("quantized/*"))) == before + 1


def begun(root):
    """Checkpoints of stages that are not finished yet."""
    return [
        path
        for path in root.glob(".work/*/checkpoint.safetensors")
        if not (root / "quantized" / path.parent.name).exists()
    ]


def test_killed_in_the_middle_of_a_group_it_goes_on_to_the_same_bits(done):
    whole, _ = done
    killed = whole.parent / "killed"
    process = start(killed, *METHOD, "task=calibrate")
    wait_for(lambda: len(list(killed.glob("quantized/*/manifest.json"))) == len(STAGES) - 1, process)
    wait_for(lambda: begun(killed), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert begun(killed)
    status, _, errors = dmqbench(killed, *METHOD, "task=calibrate")
    assert status == 0, errors
    found, wanted = digests(killed), digests(whole)
    states = [name for name in found if name.startswith("quantized")]
    assert len(states) == len(STAGES)
    assert {name: found[name] for name in states} == {name: wanted[name] for name in states}
    [findings] = killed.glob("quantized/*/findings.json")
    assert findings.read_text() == (whole / findings.relative_to(killed)).read_text()
