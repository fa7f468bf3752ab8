"""That what a stage computes on a GPU lies there, and what it keeps elsewhere does not; no GPU is needed."""

import pytest
import torch
from believed_gpu import believed_gpu
from stages.test_portions import STAGES
from workbench import W3A6, workbench

from dmqbench.calibration.offloading import weights_elsewhere
from dmqbench.calibration.run import run_stage
from dmqbench.models.portions import Portions
from dmqbench.quant.allocation import Allocation
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.spec import StepGroups
from dmqbench.stages import outlier_allocation

CALLS = 4
QUICK = ("weight_reconstruction", "trajectory_reconstruction")
ELSEWHERE = Portions(moved=True, offloaded=True)


def undecided(errors, energy, order, bits, *_):
    """What looks at values, on the CPU."""
    return Allocation((bits,) * len(order), 0, 0, (0.0,))


def case(name):
    marks = () if name in QUICK else pytest.mark.slow
    return pytest.param(*STAGES[name][:2], id=name, marks=marks)


@pytest.mark.parametrize(("stage_type", "settings"), map(case, STAGES))
def test_devices_of_a_stage_fit_together(monkeypatch, stage_type, settings):
    bench = workbench(W3A6, steps=StepGroups.per_step(CALLS), guidance=2.0)
    monkeypatch.setattr(outlier_allocation, "allocate", undecided)
    with believed_gpu(monkeypatch, CALLS):
        bench.network.to("cuda")
        with bench.adapter.computing(ELSEWHERE), weights_elsewhere(bench.network, bench.shelf):
            assert {layer.unscaled_weight().device.type for layer in quant_layers(bench.network).values()} == {"cuda"}
            run_stage(stage_type.of(bench, **settings), "cpu", [])
        assert {parameter.device.type for parameter in bench.network.parameters()} == {"cuda"}


def test_an_operation_on_two_devices_is_noticed(monkeypatch):
    with believed_gpu(monkeypatch, CALLS), pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
