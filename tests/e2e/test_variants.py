"""Every switch that changes what is computed goes through a whole job."""

import json

import pytest
from e2e.commands import FEW
from tiny import save_pipeline, smallest_unet

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.tasks.run import carry_out as run_job

VARIANTS = {
    "paper scope, attention quantized, ranges per step, guidance": [
        "method=q_diffusion",
        "bits.scope=paper",
        "bits.ranges=step",
        "sampler.guidance=2",
    ],
    "stochastic and clipped": ["method=rtn", "sampler.eta=1", "sampler.clip_sample=1"],
    "DDPM": ["method=rtn", "sampler=ddpm"],
    "DMQ with shared ranges, exact integers": [
        "method=dmq",
        "method.equivalent_scaling.patience=1",
        "bits.ranges=shared",
        "engine=int_reference",
    ],
    "DMQ as published, guided and stochastic": [
        "method=dmq",
        "method.faithful=true",
        "sampler.guidance=2",
        "sampler.eta=1",
    ],
    "AccuQuant, guided and stochastic, with groups that divide nothing, activation scales alone": [
        "method=accuquant",
        "method.trajectory_reconstruction.recipe=scales",
        "bits.ranges=group3",
        "sampler.guidance=2",
        "sampler.eta=1",
    ],
    "AccuQuant with shared ranges, all calls at once, DPM-Solver++": [
        "method=accuquant",
        "method.trajectory_reconstruction.horizon=99",
        "bits.ranges=shared",
        "sampler=dpmpp",
    ],
    "AccuQuant on its own prefix, ranges per step, PNDM with its Runge-Kutta start": [
        "method=accuquant",
        "method.trajectory_reconstruction.start=quantized",
        "method.trajectory_reconstruction.gradient=replayed",
        "bits.ranges=step",
        "sampler=pndm",
        "sampler.skip_prk=false",
    ],
    "bias correction, exact integers": ["method=rtn", "calibration.bias_correction=true", "engine=int_reference"],
    "other bits": ["method=rtn", "bits.weight=5", "bits.activation=7"],
}


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> list[str]:
    """Overrides of every job: a network with few layers, and a store in which jobs share what is equal."""
    root = tmp_path_factory.mktemp("variants")
    model = save_pipeline(root / "model", smallest_unet())
    local = ["model=local", f"model.path={model}", "model.classes=10", "sampler.chunk=8"]
    return [*FEW, *local, "metrics.names=[psnr,mse]", f"store.root={root / 'runs'}"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_job_runs_and_its_protocol_says_how(common, variant):
    overrides = [*common, *VARIANTS[variant]]
    psnr = {}
    for bits in ("w8a8", "w3a3") if "other" not in variant else ("w8a8",):
        chosen = ["bits=w8a8"] if bits == "w8a8" else ["bits=w3a4", "bits.activation=3"]
        job = make_job(compose([*chosen, *overrides]))
        result = json.loads((run_job(job) / "result.json").read_text())
        psnr[bits] = result["metrics"]["psnr"]["value"]
        protocol = result["metrics"]["psnr"]["protocol"]
        assert f"sampler={job.sampler.name}" in protocol
        assert f"scope={job.bits.scope}" in protocol
        assert result["ranges"] == job.bits.ranges
        if job.bits.scope == "paper":
            assert result["cost"]["full_precision_layers"] == 0
    assert psnr["w8a8"] > max(10, psnr.get("w3a3", 0))
