"""The memory that is planned for the parts of a job, against what a process has needed at most."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_pipeline, smallest_unet
from twins import PIPELINES

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.models.portions import WHOLE, Portions
from dmqbench.tasks import calibrate, memory_table
from dmqbench.tasks.memory_plan import (
    GIB,
    LIBRARIES,
    Phase,
    host_and_device,
    planned_phases,
    stage_portions,
)
from dmqbench.tasks.memory_table import too_large
from dmqbench.tasks.workshop import STATE, open_workshop

MEASURED = Path(__file__).with_name("memory_of_job.py")

FEW = (
    *("model=local", "dataset=none", "tracker=disabled", "bits=w4a8", "sampler.steps=2", "sampler.chunk=8"),
    *("budget.trajectories=8", "budget.validation=2", "budget.samples=16", "budget.batch=8"),
    *("budget.scale_iterations=2", "budget.weight_iterations=2", "budget.activation_iterations=2"),
    *("budget.trajectory_iterations=1", "budget.tuning_iterations=2"),
)

SMALLEST = "model=ladder_1"

WITHIN = 0.15
BESIDE = 6.0
"""MiB that a process grows by of itself: pages of libraries that are touched first, what the allocator keeps."""


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("efficient_dm", "dmq", "accuquant", "mpq_dm")],
)
def test_the_plan_is_what_a_process_needs(tmp_path, method):
    """On a network with 100 MB of activations, behind a small one that has everything imported."""
    small = save_pipeline(tmp_path / "small", smallest_unet(class_entries=None))
    sizes = {"block_out_channels": (128,), "size": 40, "attention_head_dim": 32, "norm_num_groups": 32}
    large = save_pipeline(tmp_path / "large", smallest_unet(class_entries=None, **sizes))
    done = subprocess.run(
        [sys.executable, MEASURED, small, large, *FEW, f"method={method}", f"store.root={tmp_path / 'runs'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 3
    for part, (planned, measured) in found.items():
        assert abs(planned - measured) < WITHIN * measured + BESIDE, f"{part}: {found}"


def phases(*overrides):
    return {phase.name: phase for phase in planned_phases(make_job(compose(list(overrides))))}


def test_what_is_computed_together_decides():
    usual, fewer = phases(SMALLEST, "method=rtn"), phases(SMALLEST, "method=rtn", "budget.batch=8", "sampler.chunk=8")
    parts = ["loading", "trajectories", "samples of full precision", "weight_range", "activation_range", "samples"]
    assert list(usual) == [*parts, "evaluation"]
    for name in ("trajectories", "samples", "activation_range"):
        assert fewer[name].computing < usual[name].computing
    assert fewer["loading"] == usual["loading"]


def test_a_network_in_bfloat16_takes_half_and_its_quantizers_as_much():
    job = (SMALLEST, "method=dmq", "bits=w4a6")
    usual, narrow = phases(*job), phases(*job, "model.dtype=bfloat16")
    assert list(narrow) == list(usual)
    # Files of float32 are mapped, and lie beside what is made of them.
    read = [sum((part["loading"].computing, part["loading"].keeping)) for part in (usual, narrow)]
    assert read[1] == 1.5 * read[0] == 1.5 * usual["loading"].computing
    half, share = (narrow[part].computing / usual[part].computing for part in ("trajectories", "activation_range"))
    assert 0.45 < half < 0.75 and 0.5 < share < 1


def test_a_larger_batch_of_samples_takes_as_much_more():
    part = "samples of full precision"
    sizes = [phases(SMALLEST, "method=fp", f"sampler.chunk={chunk}")[part].computing for chunk in (10, 20, 30)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 0


@pytest.mark.parametrize("pipeline", ["sd", "flux"])
def test_pipelines_of_text_are_planned_with_attention_and_guidance(tmp_path, pipeline):
    PIPELINES[pipeline]().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("".join(f"cat {number}\n" for number in range(600)))
    job = [f"model.path={tmp_path / 'model'}", f"inputs.prompts={tmp_path / 'prompts.txt'}", "dataset=none"]
    sampler = {"flux": "sampler=flow"}.get(pipeline, "sampler.guidance=3")
    found = phases("model=local", *job, sampler, "method=rtn", "bits=w4a6", "bits.scope=paper")
    first, *_, last = found
    assert (first, last) == ("prompts", "evaluation")
    assert all(phase.computing > 0 for phase in found.values())


def test_what_does_not_fit_is_said_with_the_keys_that_make_it_smaller():
    large = Phase("samples", 3 * GIB, GIB, ("sampler.chunk",))
    listed = [large, replace(large, name="loading", computing=2 * GIB, keys=())]
    assert too_large(listed, False, 6 * GIB, None) is None
    assert too_large(listed, False, 2 * GIB, None) == (
        "warning: samples takes about 5.1 GiB of the host's memory, of which 2.0 are free; "
        "a smaller sampler.chunk takes less"
    )
    stage = replace(large, is_stage=True)
    assert "; budget.memory_gib=2 cuts it into portions; a smaller" in str(too_large([stage], False, 2 * GIB, None))
    assert host_and_device(large, True) == (GIB + LIBRARIES, 3 * GIB)
    assert too_large(listed, True, 3 * GIB, 4 * GIB) is None
    assert "3.0 GiB of the GPU's memory, of which 1.0" in str(too_large(listed, True, 3 * GIB, GIB))
    assert too_large(listed, True, None, None) is None


def bounded(method, share):
    """A job on the smallest model whose largest stage may hold so much of what it would take, and its phases without
    the bound."""
    job = [SMALLEST, f"method={method}", "bits=w4a8", *FEW[3:]]
    stages = [phase for phase in phases(*job).values() if phase.keys and "method" in phase.keys[0]]
    largest = max(stages, key=lambda phase: phase.computing)
    allowed = (LIBRARIES + largest.keeping + share * largest.computing) / GIB
    return [*job, f"budget.memory_gib={allowed}"], allowed * GIB, {phase.name: phase for phase in stages}


@pytest.mark.parametrize(
    ("method", "share"),
    [
        ("efficient_dm", 0.5),
        pytest.param("mpq_dm", 0.4, marks=pytest.mark.slow),
        pytest.param("dmq", 0.95, marks=pytest.mark.slow),  # of powers of two a batch of inputs is all there is
    ],
)
def test_stages_fit_into_what_they_may_hold(method, share):
    job, allowed, free = bounded(method, share)
    found = phases(*job)
    elsewhere = [name for name in free if found[name].portions.offloaded]
    assert elsewhere in ([], [*free])  # all or none
    for name in free:
        assert host_and_device(found[name], False)[0] <= allowed
        if host_and_device(free[name], False)[0] <= allowed and not elsewhere:
            assert found[name].portions == WHOLE and found[name].computing == free[name].computing
        else:
            assert found[name].portions != WHOLE
    assert any(phase.portions != WHOLE for phase in found.values())


def test_what_fits_in_no_portions_is_refused_before_it_starts():
    job = [SMALLEST, "method=rtn", "bits=w4a8", *FEW[3:], "budget.memory_gib=0.01"]
    with pytest.raises(ConfigError, match=r"budget.memory_gib=.* is too little for \w+, which takes .* GiB") as refused:
        stage_portions(make_job(compose(job)))
    assert "or more" in str(refused.value)


def test_weights_lie_elsewhere_where_no_portions_are_small_enough():
    job = ["model=ddpm_cifar10", "task=plan", "method=rtn", "bits=w4a8", *FEW[1:]]
    usual, found = phases(*job), phases(*job, "budget.memory_gib=1.2")
    for name in ("weight_range", "activation_range"):
        assert found[name].portions.offloaded and not usual[name].portions.offloaded
        assert found[name].computing < 0.4 * usual[name].computing
        assert found[name].elsewhere > 120 * 2**20  # of 35.7 million weights, but for the scope's exceptions
    assert found["samples"] == usual["samples"]


def test_a_job_with_weights_elsewhere_leaves_the_same_bits(tmp_path, monkeypatch):
    folder = save_pipeline(tmp_path / "model", smallest_unet(class_entries=None))
    job = [*FEW, f"model.path={folder}", "method=efficient_dm"]
    states = []
    for name in ("usual", "elsewhere"):
        shop = open_workshop(make_job(compose([*job, f"store.root={tmp_path / name}"])))
        states.append([load_file(stage.path / STATE) for stage in calibrate.calibrated(shop)])
        weights = [parameter for parameter in shop.quantized.network.parameters() if parameter.ndim > 1]
        assert all(weight.isfinite().all() for weight in weights)
        elsewhere = {stage.name: Portions(offloaded=True) for stage in shop.job.method.stages}
        monkeypatch.setattr(calibrate, "stage_portions", lambda _, elsewhere=elsewhere: elsewhere)
    records = [line for path in (tmp_path / "elsewhere").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum('"offloaded": true' in line for line in records) == len(states[1])
    for usual, same in zip(*states, strict=True):
        assert usual.keys() == same.keys() and all(torch.equal(usual[key], same[key]) for key in usual)


@pytest.mark.parametrize(("value", "problem"), [("0", "is no size"), ("-1", "is no size"), ("much", "is not a number")])
def test_a_bound_on_memory_is_a_size(value, problem):
    with pytest.raises(ConfigError, match=f"budget.memory_gib={value}.*{problem}"):
        make_job(compose([SMALLEST, "method=rtn", f"budget.memory_gib={value}"]))


def test_an_estimate_that_fails_does_not_keep_a_plan_from_being_told(monkeypatch, capsys):
    def failing(job):
        raise RuntimeError("no such\nlayer")

    monkeypatch.setattr(memory_table, "planned_phases", failing)
    memory_table.print_plan(make_job(compose([])))
    assert capsys.readouterr().out == "memory: not planned (RuntimeError: no such layer)\n"
