"""Reconstruction of the transformer blocks of every family, whose blocks have one or two streams."""

from math import prod

import pytest
import torch
from tiny import dit, flux, pixart, sd3, sdxl_unet
from workbench import MSE, WEIGHT_RECONSTRUCTION, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.quant.layers import weight_layers
from dmqbench.quant.spec import BitWidth
from dmqbench.stages.ranges import WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction, reconstruction_error, unit_error

STREAMS = {dit: (1, 1), pixart: (1, 1), sd3: (2, 1), flux: (2, 1)}
"""Outputs of every transformer block that count: the last ones of SD3 and Flux have no further use for their text."""


@pytest.mark.parametrize("build", [sdxl_unet, *STREAMS])
def test_every_block_learns_to_round_against_all_that_it_puts_out(build):
    bench = workbench(BitWidth(3, 6), network=build())
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    stage = WeightReconstruction.of(bench, **{**WEIGHT_RECONSTRUCTION, "iterations": 12, "capture_mib": 64})
    seen = {}
    start = stage.start_unit

    def note(unit):
        start(unit)
        seen[unit] = len(stage.targets[unit][0])

    stage.start_unit = note
    run_stage(stage, "cpu", [])
    blocks = [unit.name for unit in bench.topology.units if unit.kind == "block"]
    assert set(blocks) <= set(stage.units())
    if build in STREAMS:
        assert list(stage.units()) == blocks
        assert tuple(seen.values()) == STREAMS[build]
    assert all(layer.weight_quantizer.codes is not None for layer in weight_layers(bench.network).values())
    events = bench.record.of("unit")[1:]
    ratios = [event["held_out_error"] / event["held_out_error_before"] for event in events]
    assert prod(ratios) ** (1 / len(ratios)) < 0.95


def test_the_error_of_a_unit_is_that_of_all_its_outputs():
    outputs, targets = ([torch.randn(4, tokens, 6) for tokens in (3, 5)] for _ in range(2))
    index = torch.tensor([2, 0])
    chosen = tuple(output[index] for output in outputs)
    together = torch.cat(outputs, dim=1)[index], torch.cat(targets, dim=1)[index]
    torch.testing.assert_close(
        unit_error(chosen, tuple(targets), index, 2.4), reconstruction_error(*together, exponent=2.4)
    )
