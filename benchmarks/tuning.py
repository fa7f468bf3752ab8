"""How the learning rates of ``q_diffusion budget=quick`` were chosen: by PSNR on the validation stream.

Evaluation noise is never looked at. Each point calibrates on ``cal`` and samples 64 images from ``val``; a point takes
about two minutes on one core.

Run: python -m benchmarks.tuning
"""

import copy
import itertools

import torch
from torch import Tensor, nn

from benchmarks.common import Silent
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import Workbench
from dmqbench.data.bank import TrajectoryBank
from dmqbench.engines import lower_
from dmqbench.eval.paired import psnr
from dmqbench.methods.q_diffusion import STAGES
from dmqbench.models.adapter import Adapter, load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import freeze_, quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec

BITS = (BitWidth(4, 6), BitWidth(3, 6))
WEIGHT_RATES = (0.03, 0.1, 0.3, 1.0)
ACTIVATION_RATES = (0.02, 0.05, 0.1)
CHUNKS, CHUNK = 2, 32
RANGE = {"observer": "mse", "candidates": 80, "exponent": 2.4}
COMMON = {"batch": 32, "samples": 512}


def settings(weight_rate: float, activation_rate: float) -> dict[str, dict]:
    """The stages of ``budget=quick`` with these learning rates."""
    rounding = {"regularization": 0.01, "warmup": 0.2, "beta_start": 20.0, "beta_end": 2.0, "capture_mib": 512}
    return {
        "weight_range": RANGE,
        "weight_reconstruction": {**COMMON, **rounding, "iterations": 300, "learning_rate": weight_rate},
        "activation_range": {**COMMON, **RANGE, "values_per_row": 16384},
        "activation_reconstruction": {
            **COMMON,
            "iterations": 100,
            "learning_rate": activation_rate,
            "exponent": 2.4,
            "capture_mib": 512,
        },
    }


def images(denoising: Denoising) -> Tensor:
    drawn = [denoising.sample_chunk(number, chunk=CHUNK, seed=0, stream="val") for number in range(CHUNKS)]
    return torch.cat([chunk.images for chunk in drawn])


def main() -> None:
    torch.set_num_threads(1)
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan, topology = build_plan(SamplerSpec("ddim", 20), adapter.schedule), adapter.topology()
    denoising = Denoising(adapter, plan)
    bank = TrajectoryBank(
        denoising.follow(stream="cal", seed=0, indices=range(64)),
        denoising.follow(stream="val", seed=0, indices=range(16)),
        seed=0,
    )
    full_precision, network = images(denoising), adapter.network
    print("| bits | weight rate | activation rate | PSNR on val, dB |\n|---|---|---|---|", flush=True)
    for bits, weight_rate, activation_rate in itertools.product(BITS, WEIGHT_RATES, ACTIVATION_RATES):
        adapter.network = quantizable(network, topology.layers, bits, adapter)
        bench = Workbench(denoising, topology, bank, StepGroups.shared(), 0, Silent())
        for name, arguments in settings(weight_rate, activation_rate).items():
            run_stage(STAGES[name](bench, **arguments), "cpu", [])
        freeze_(adapter.network)
        lower_(adapter.network, "simulate")
        values = [value for value in psnr(images(denoising), full_precision) if value is not None]
        mean = sum(values) / len(values)
        print(f"| {bits.name} | {weight_rate} | {activation_rate} | {mean:.2f} |", flush=True)


def quantizable(network: nn.Module, layers, bits: BitWidth, adapter: Adapter) -> nn.Module:
    """A copy of the full-precision network with quantizable layers."""
    network = copy.deepcopy(network)
    quantize_layers_(network, uniform_plan(layers, bits, Scope()), adapter.context)
    return network


if __name__ == "__main__":
    main()
