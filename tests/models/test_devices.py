"""That samples are drawn on one device, whatever the network and the sampler; no GPU is needed."""

import pytest
from believed_gpu import believed_gpu
from tiny import dit, flux, pixart, sd3, sdxl_unet, text_unet, unet
from workbench import W3A6, adapter_of, sampler, topology_of

from dmqbench.models.exchange import quantize_network_, quantized_attentions
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import quantization
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.processes import Edm, Flow
from dmqbench.samplers.spec import SamplerSpec

EVERYTHING = Scope(first_last=True, embedding=True, attention=True)
CASES = [
    (unet, sampler("ddim", 3, eta=1.0)),
    (text_unet, sampler("ddpm", 3)),
    (sdxl_unet, sampler("dpmpp", 3)),
    (pixart, sampler("pndm", 3)),
    (dit, build_plan(SamplerSpec("edm", 3, solver="heun"), Edm(sigma_max=10.0))),
    (sd3, build_plan(SamplerSpec("flow", 3, spacing="trailing"), Flow(shift=3.0))),
    (flux, build_plan(SamplerSpec("flow", 3, spacing="trailing"), Flow(shift=3.0))),
]


QUICK = (dit, flux)


@pytest.mark.parametrize(
    ("network", "plan"),
    [pytest.param(*case, id=case[0].__name__, marks=() if case[0] in QUICK else pytest.mark.slow) for case in CASES],
)
def test_samples_are_drawn_on_one_device(monkeypatch, network, plan):
    adapter = adapter_of(network())
    topology, steps = topology_of(adapter), StepGroups.per_step(len(plan.calls))
    attentions = quantized_attentions(topology, EVERYTHING, W3A6)
    precision = uniform_plan(topology.layers, W3A6, EVERYTHING)
    quantize_network_(adapter.network, precision, adapter.context, steps, attentions=attentions, bits=W3A6)
    with believed_gpu(monkeypatch, len(plan.calls)), quantization(adapter.network, weight=True, activation=True):
        adapter.network.to("cuda")
        visits = list(Denoising(adapter, plan, 2.0).rollout(stream="eval", seed=0, indices=range(2)))
        assert {visit.after.x.device.type for visit in visits} == {"cuda"}
