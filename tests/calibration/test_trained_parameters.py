"""Variables behind scales and rounding: they begin as the network is, get the right gradients, and stay as shown."""

import math

import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dmqbench.calibration.trained_parameters import TrainedScales, TrainedWeights, agreement, copies, set_
from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import QUANTIZABLE
from dmqbench.quant.plan import LayerPlan
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import InputGroups, StepGroups

CHANNELS, ROWS = 8, 5


def generator(key):
    return torch.Generator().manual_seed(key)


def fixed_layer(bits, *, boundaries=(), convolution=False, clip=1.0, learned=False, scaled=False, key=0):
    """A layer whose rounding is fixed: to nearest, or as AdaRound might leave it.

    Args:
        bits: of every row.
        clip: share of the weights' range that the grid covers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)
        plain = nn.Conv2d(CHANNELS, ROWS, 3) if convolution else nn.Linear(CHANNELS, ROWS)
    layer = QUANTIZABLE[type(plain)].of(plain.requires_grad_(False))
    layer.attach_quantizers_(LayerPlan("one", tuple(bits), 32, boundaries), StepContext(), StepGroups.shared())
    if scaled:
        layer.set_equivalent_scale_(0.5 + torch.rand(CHANNELS, generator=generator(key)))
    quantizer, weight = layer.weight_quantizer, layer.scaled_weight()
    rows = quantizer.rows(weight * clip)
    pairs = [affine_parameters(row.amin(1), row.amax(1), quantizer.levels) for row in rows]
    quantizer.set_parameters_(*(torch.stack(tables, 1) for tables in zip(*pairs, strict=True)))
    if learned:
        alpha = quantizer.learn_rounding_(weight)
        alpha.data = torch.randn(alpha.shape, generator=generator(key + 1))
    layer.freeze_weight_()
    layer.weight_on = True
    return layer


LAYERS = st.builds(
    fixed_layer,
    st.lists(st.integers(1, 8), min_size=ROWS, max_size=ROWS),
    boundaries=st.sampled_from([(), (3,), (2, 4, 6)]),
    convolution=st.booleans(),
    clip=st.sampled_from([1.0, 0.6, 0.2]),
    learned=st.booleans(),
    scaled=st.booleans(),
    key=st.integers(0, 1000),
)


def moved(trained, key=0):
    """Set every variable somewhere else, latents partly out of their range."""
    for index, (name, variable) in enumerate(trained.variables().items()):
        noise = torch.randn(variable.shape, generator=generator(key + index))
        variable.data.copy_(0.5 + noise if name.endswith(".latent") else 0.2 * noise)


# ---- weights


@given(LAYERS)
@costly(80)
def test_at_first_the_layer_computes_with_the_codes_that_it_has(layer):
    """For any bits, groups, clipping and rounding, and to the bit."""
    codes, scale, weight = (
        tensor.clone() for tensor in (layer.weight_quantizer.codes, layer.weight_quantizer.scale, layer.fixed_weight)
    )
    trained = TrainedWeights({"one": layer})
    trained.show_()
    assert torch.equal(layer.effective_weight(), weight)
    assert layer.effective_weight().requires_grad
    trained.settle_(trained.outcome())
    assert torch.equal(layer.weight_quantizer.codes, codes)
    assert torch.equal(layer.weight_quantizer.scale, scale)
    assert torch.equal(layer.effective_weight(), weight)


@given(LAYERS, st.integers(0, 100))
@costly(60)
def test_what_is_settled_is_what_was_shown_to_the_bit(layer, key):
    trained = TrainedWeights({"one": layer})
    moved(trained, key)
    trained.show_()
    shown = layer.effective_weight().detach().clone()
    trained.settle_(trained.outcome())
    assert torch.equal(layer.effective_weight(), shown)
    assert not layer.effective_weight().requires_grad
    layer.freeze_()  # as a job that samples does
    assert torch.equal(layer.effective_weight(), shown)


@given(LAYERS, st.integers(0, 100))
@costly(60)
def test_codes_stay_on_the_grid_and_move_by_one_at_most(layer, key):
    quantizer = layer.weight_quantizer
    before = quantizer.codes.int()
    trained = TrainedWeights({"one": layer})
    moved(trained, key)
    trained.show_()
    trained.settle_(trained.outcome())
    levels = quantizer.levels.reshape(-1, *[1] * (before.ndim - 1))
    assert (quantizer.codes.int() < levels).all()
    assert (quantizer.codes.int() - before).abs().max() <= 1


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_latent_is_where_its_weight_lies_if_that_agrees_with_the_code(learned, convolution):
    layer = fixed_layer([4] * ROWS, boundaries=(3,), convolution=convolution, learned=learned)
    quantizer = layer.weight_quantizer
    trained = TrainedWeights({"one": layer})
    latent, lower = trained.variables()["one.latent"], trained.constants()["one.lower"].float()
    lower = lower - quantizer.spread(quantizer.zero_point)
    fraction = (layer.weight / quantizer.spread(quantizer.scale) - lower).clamp(0, 1)
    up = quantizer.codes - quantizer.spread(quantizer.zero_point) > lower
    agrees = ((fraction > 0.5) == up) & ((fraction - 0.5).abs() > 0.02)
    torch.testing.assert_close(latent[agrees], fraction[agrees])
    torch.testing.assert_close(latent[~agrees], 0.5 + 0.02 * (2.0 * up[~agrees] - 1))
    assert agrees.float().mean() > (0.3 if learned else 0.9)
    assert not learned or not agrees.all()


def test_a_weight_half_way_between_two_codes_turns_first_and_one_on_a_grid_point_last():
    layer = fixed_layer([3] * ROWS)
    quantizer, weight = layer.weight_quantizer, layer.weight
    step = float(quantizer.scale[0, 0])
    with torch.no_grad():
        weight[0, :3] = torch.tensor([1.0, 1.44, 1.2]) * step
    quantizer.codes = None
    layer.freeze_weight_()
    trained = TrainedWeights({"one": layer})
    latent, before = trained.variables()["one.latent"], quantizer.codes.clone()
    order = []
    for _ in range(100):
        latent[0, :3] += 0.01
        trained.show_()
        trained.settle_(trained.outcome())
        turned = (quantizer.codes != before)[0, :3].nonzero().flatten().tolist()
        order += [index for index in turned if index not in order]
    assert order == [1, 2, 0]


@given(LAYERS, st.integers(0, 100))
@costly(40)
def test_gradients_are_those_of_integers_times_scales_with_rounding_passed_through(layer, key):
    """∂L/∂latent = ∂L/∂w · s and ∂L/∂gain = Σ ∂L/∂w · w over the weights of a scale, weight by weight."""
    trained = TrainedWeights({"one": layer})
    moved(trained, key)
    trained.show_()
    weight = layer.effective_weight()
    of_weight = torch.randn(weight.shape, generator=generator(key))
    (weight * of_weight).sum().backward()
    trained.gather_()
    assert trained.leaves()[0].grad is None
    variables = trained.variables()
    latent, gain, quantizer = variables["one.latent"], variables["one.gain"], layer.weight_quantizer
    scale = quantizer.scale * gain.exp()
    of_gain = torch.zeros_like(gain)
    for row in range(ROWS):
        for group, part in enumerate(quantizer.groups.slices):
            s, g = float(scale[row, group]), of_weight[row, part]
            torch.testing.assert_close(latent.grad[row, part], g * s)
            of_gain[row, group] = sum(
                float(a) * float(b) for a, b in zip(g.flatten(), weight[row, part].detach().flatten(), strict=True)
            )
    torch.testing.assert_close(gain.grad, of_gain, rtol=1e-4, atol=1e-5)


def test_a_gain_is_the_logarithm_of_what_multiplies_its_scale():
    layer = fixed_layer([4] * ROWS, boundaries=(3,))
    before = layer.fixed_weight.clone()
    trained = TrainedWeights({"one": layer})
    trained.variables()["one.gain"][2, 1] = math.log(1.5)
    trained.show_()
    after = layer.effective_weight().detach()
    expected = before.clone()
    expected[2, 3:] *= 1.5
    torch.testing.assert_close(after, expected)


def test_what_the_network_never_used_has_a_gradient_of_zero():
    layer = fixed_layer([4] * ROWS)
    trained = TrainedWeights({"one": layer})
    trained.show_()
    trained.gather_()
    assert all(not variable.grad.any() for variable in trained.variables().values())


def test_full_precision_layers_are_left_out_and_unfixed_ones_refused():
    plain = QUANTIZABLE[nn.Linear].of(nn.Linear(CHANNELS, ROWS))
    plain.attach_quantizers_(LayerPlan("plain", 32, 8), StepContext(), StepGroups.shared())
    assert TrainedWeights({"plain": plain}).variables() == {}
    layer = fixed_layer([4] * ROWS)
    layer.weight_quantizer.codes = None
    with pytest.raises(ValueError, match="layer one: its rounding must be fixed"):
        TrainedWeights({"one": layer})


# ---- activation scales


def quantizers():
    """Three, with (rows, groups) of other sizes, and scales over ten orders of magnitude."""
    context = StepContext()
    made = [
        ActivationQuantizer(context, 16, InputGroups(4), steps=StepGroups.per_step(3)),
        ActivationQuantizer(context, 16, InputGroups(4, (2,)), steps=StepGroups.of_size(3, 2)),
        ActivationQuantizer(context, 16, InputGroups(4)),
    ]
    for index, quantizer in enumerate(made):
        exponent = torch.randn(quantizer.scale.shape, generator=generator(index)) * 3
        quantizer.set_parameters_(torch.pow(10.0, exponent), torch.full_like(exponent, 7.0))
    return made


def test_scales_are_shown_to_the_last_digits_and_settled_as_shown():
    made = quantizers()
    before = [quantizer.scale.clone() for quantizer in made]
    trained = TrainedScales(made)
    trained.show_()
    for quantizer, value in zip(made, before, strict=True):
        torch.testing.assert_close(quantizer.scale.data, value, rtol=1e-5, atol=0)
        assert quantizer.scale.requires_grad
    moved(trained)
    trained.show_()
    shown = [quantizer.scale.detach().clone() for quantizer in made]
    trained.settle_(trained.outcome())
    for quantizer, value, old in zip(made, shown, before, strict=True):
        assert torch.equal(quantizer.scale, value)
        assert not torch.equal(value, old)
        assert (value > 0).all()
        assert not quantizer.scale.requires_grad


def test_the_gradient_of_a_logarithm_is_the_scale_times_the_scales():
    made = quantizers()
    trained = TrainedScales(made)
    trained.show_()
    weights = [torch.randn(quantizer.scale.shape, generator=generator(9)) for quantizer in made]
    sum((w * q.scale.square()).sum() for w, q in zip(weights[:2], made[:2], strict=True)).backward()
    trained.gather_()
    logs = trained.variables()["scales"].detach().clone().requires_grad_(True)
    parts = logs.exp().split([quantizer.scale.numel() for quantizer in made])
    sum((w.flatten() * part.square()).sum() for w, part in zip(weights[:2], parts[:2], strict=True)).backward()
    torch.testing.assert_close(trained.variables()["scales"].grad, logs.grad, rtol=1e-4, atol=0)
    assert not trained.variables()["scales"].grad[-1:].any()  # the third was not used
    assert all(quantizer.scale.grad is None for quantizer in made)


def test_a_network_without_activation_quantizers_has_nothing_to_train():
    trained = TrainedScales([])
    trained.show_()
    trained.gather_()
    trained.settle_(trained.outcome())
    assert trained.variables()["scales"].numel() == 0
    assert trained.leaves() == []


@given(LAYERS, st.integers(0, 100))
@costly(30)
def test_scales_of_weights_are_trained_as_those_of_activations(layer, key):
    """Under weights that are rounded anew at every look, as adapters need it."""
    quantizer = layer.weight_quantizer
    layer.drop_rounding_()
    before = quantizer.scale.clone()
    trained = TrainedScales([quantizer], "weight scales")
    assert list(trained.variables()) == ["weight scales"]
    moved(trained, key)
    trained.show_()
    weight = layer.effective_weight()
    torch.testing.assert_close(quantizer.scale.data, trained.logs.exp().view_as(before))
    upstream = torch.randn(weight.shape, generator=generator(key))
    (weight * upstream).sum().backward()
    trained.gather_()
    scale, zero_point, levels = (tensor.detach() for tensor in quantizer.grid())
    ratio = layer.scaled_weight() / scale
    integers = torch.minimum(torch.maximum(ratio.round(), -zero_point), levels - 1 - zero_point)
    inside = (ratio >= -zero_point) & (ratio <= levels - 1 - zero_point)
    of_log = upstream * scale * torch.where(inside, integers - ratio, integers)
    expected = torch.stack([part.sum(1) for part in quantizer.rows(of_log)], 1).flatten().float()
    torch.testing.assert_close(trained.logs.grad, expected, rtol=1e-3, atol=1e-3)
    trained.settle_(trained.outcome())
    assert torch.equal(layer.effective_weight(), weight)
    assert not layer.effective_weight().requires_grad


# ---- comparing and copying


def test_agreement_is_cosine_and_ratio_over_all_tensors_together():
    ours = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    exact = [torch.tensor([0.0, 0.0]), torch.tensor([[10.0]])]
    assert agreement(ours, exact) == pytest.approx((0.8, 0.5))
    assert agreement(ours, [-2 * each for each in ours]) == pytest.approx((-1.0, 0.5))
    assert all(math.isnan(value) for value in agreement([torch.zeros(2)], [torch.zeros(2)]))


def test_a_copy_does_not_follow():
    variables = {"a": torch.ones(2)}
    kept = copies(variables)
    variables["a"] += 1
    assert kept["a"].tolist() == [1, 1]
    set_(variables, kept)
    assert variables["a"].tolist() == [1, 1]
