"""One network call of the digits UNet: frozen and simulated against full precision, batch 32, one thread.

Run: python -m benchmarks.frozen_sampling
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import interleaved_seconds
from dmqbench.engines import lower_
from dmqbench.models.topology import trace
from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import freeze_, quant_layers, quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.zoo.digits import SHAPE

BATCH = 32
CALLS = 20
ROUNDS = 20
TARGET = 1.4


def example_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(BATCH, 1, 16, 16, generator=generator)
    return sample, torch.full((BATCH,), 500), torch.arange(BATCH) % 10


@torch.no_grad()
def calibrated(network: nn.Module, context: StepContext, steps: StepGroups) -> nn.Module:
    """Quantize a copy of ``network`` at W4A8 with min-max ranges, the same for all steps, and freeze it."""
    network = copy.deepcopy(network)
    quantize_layers_(
        network, uniform_plan(trace(network, example_inputs(), {}).layers, BitWidth(4, 8), Scope()), context, steps
    )
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: _set_ranges_(layer, args[0], steps))
        for layer in quant_layers(network).values()
    ]
    network(*example_inputs())
    for hook in hooks:
        hook.remove()
    freeze_(network)
    return network


def _set_ranges_(layer, x: Tensor, steps: StepGroups) -> None:
    weights, activation = layer.weight_quantizer, layer.activation_quantizer
    ends = [torch.aminmax(rows, dim=1) for rows in weights.rows(layer.weight)]
    low, high = (torch.stack([end[i] for end in ends], dim=1) for i in range(2))
    weights.set_parameters_(*affine_parameters(low, high, weights.levels[:, None]))
    parts = [x.narrow(layer.channel_axis, part.start, part.stop - part.start) for part in activation.groups.slices]
    low, high = (torch.stack([getattr(part, end)() for part in parts]) for end in ("amin", "amax"))
    scale, zero_point = affine_parameters(low, high, activation.levels)
    activation.set_parameters_(scale.expand(steps.rows, -1), zero_point.expand(steps.rows, -1))


def main() -> None:
    torch.set_num_threads(1)
    network = SHAPE.build().eval().requires_grad_(False)
    inputs = example_inputs()
    step = torch.full((BATCH,), CALLS // 2)
    runs: dict[str, Callable[[], object]] = {"full precision": lambda: network(*inputs)}
    for name, steps in {
        "one range for all steps": StepGroups.shared(),
        "ranges per step": StepGroups.per_step(CALLS),
    }.items():
        context = StepContext()
        unlowered, lowered = (calibrated(network, context, steps) for _ in range(2))
        lower_(lowered, "simulate")
        for label, frozen in ((f"fake quantization, {name}", unlowered), (f"simulate, {name}", lowered)):

            def run(frozen: nn.Module = frozen, context: StepContext = context) -> Tensor:
                with context.at(step):
                    return frozen(*inputs)

            runs[label] = run
    with torch.no_grad():
        seconds = interleaved_seconds(runs, ROUNDS)
    base = seconds["full precision"]
    print(f"| network call, batch {BATCH} | ms | × full precision |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {1000 * value:.1f} | {value / base:.2f} |")
    worst = max(value for name, value in seconds.items() if name.startswith("simulate")) / base
    print(f"\ntarget: simulate at most {TARGET} ×; {'reached' if worst <= TARGET else 'missed'} ({worst:.2f})")


if __name__ == "__main__":
    main()
