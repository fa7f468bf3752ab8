"""Counting, against counts made by hand."""

import pytest

from dmqbench.quant.cost import CountedLayer, count_cost, mean_weight_bits
from dmqbench.quant.plan import LayerPlan, PrecisionPlan

# conv_in 3×3, 2→4 on 8×8; middle 1×1, 4→4 in 2 groups, cut; out linear 4→10.
LAYERS = (
    CountedLayer("conv_in", (4, 2, 3, 3), 4 * 2 * 9 * 64),
    CountedLayer("middle", (4, 4, 1, 1), 4 * 4 * 64),
    CountedLayer("out", (10, 4), 40),
)
WEIGHTS = 72 + 16 + 40
PARAMETERS = WEIGHTS + 18 + 100
PLAN = PrecisionPlan((LayerPlan("middle", (1, 2, 3, 4), 8, (2,)), LayerPlan("out", 4, 6)), ("conv_in",))
PAPER = PrecisionPlan(
    (LayerPlan("conv_in", 8, 8), LayerPlan("middle", 4, 8), LayerPlan("out", 4, 8)),
)
EVERYWHERE = PrecisionPlan(tuple(LayerPlan(layer.name, 4, 8) for layer in LAYERS))
MIB = 1024 * 1024


def cost(plan=PLAN, paper=PAPER, everywhere=EVERYWHERE, packed=None, scale=1):
    layers = [CountedLayer(x.name, (x.weight_shape[0] * scale, *x.weight_shape[1:]), x.macs) for x in LAYERS]
    return count_cost(layers, plan, paper, PARAMETERS * scale, 999, everywhere, packed)


def test_counts_of_layers_and_macs():
    counted = cost()
    assert (counted.quantized_layers, counted.skip_layers, counted.full_precision_layers) == (2, 1, 1)
    assert counted.parameters == PARAMETERS
    assert counted.macs == 4608 + 1024 + 40
    assert counted.attention_macs == 999


def test_bit_operations_are_macs_times_both_widths():
    assert cost().bops == 4608 * 32 * 32 + 1024 * 2.5 * 8 + 40 * 4 * 6
    assert cost(plan=PrecisionPlan((), ("conv_in", "middle", "out"))).bops == (4608 + 1024 + 40) * 1024


def test_sizes_under_both_rules():
    scale = 4096
    plan = PrecisionPlan((LayerPlan("middle", 4, 8),))
    counted = cost(plan=plan, scale=scale)
    rest = (18 + 100) * 32
    assert counted.size_mib["all_layers"] == round(scale * (WEIGHTS * 4 + rest) / 8 / MIB, 4)
    assert counted.size_mib["paper_code"] == round(scale * (72 * 8 + 56 * 4 + rest) / 8 / MIB, 4)
    assert counted.size_mib["packed"] is None


def test_full_precision_is_four_bytes_a_parameter():
    nothing = PrecisionPlan((), ("conv_in", "middle", "out"))
    counted = cost(plan=nothing, paper=nothing, everywhere=nothing, scale=4096, packed=3 * MIB // 2)
    assert counted.size_mib == {
        "all_layers": round(4096 * PARAMETERS * 4 / MIB, 4),
        "paper_code": round(4096 * PARAMETERS * 4 / MIB, 4),
        "packed": 1.5,
    }
    assert counted.full_precision_layers == 3


@pytest.mark.parametrize(
    ("plan", "expected"), [(None, 32), (LayerPlan("a", 3, 8), 3), (LayerPlan("a", (1, 4, 4, 1), 8), 2.5)]
)
def test_mean_bits_of_rows(plan, expected):
    assert mean_weight_bits(plan, 4) == expected
