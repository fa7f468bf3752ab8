"""One layer's equivalent scale in training: planted outliers, dead channels, the best state so far."""

import math

import pytest
import torch
from torch import nn

from dmqbench.calibration.layer_views import LayerBatch
from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import CLIPPINGS
from dmqbench.quant.layers import quant_layers, quantize_layers_
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.scaling import SMALLEST_EQUIVALENT_SCALE
from dmqbench.quant.spec import BitWidth
from dmqbench.quant.weighting import TimestepWeighting
from dmqbench.stages.scale_learner import ScaleLearner

W4A4 = BitWidth(4, 4)


def learner_of(channel_values, *, bits=W4A4, kind="linear", clipping=CLIPPINGS[0], seed=0):
    """(learner, its one batch): a layer of 16 channels, some of which have inputs of their own."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(16, 12) if kind == "linear" else nn.Conv2d(16, 12, 3))
    plan = PrecisionPlan((LayerPlan("0", bits.weight, bits.activation),))
    quantize_layers_(network, plan, StepContext())
    layer = next(iter(quant_layers(network).values()))
    x = torch.randn(*((64, 16) if kind == "linear" else (16, 16, 5, 5)))
    for channel, change in channel_values.items():
        x[:, channel] = change(x[:, channel])
    with torch.no_grad():
        output = layer.apply_weight(x, layer.weight, layer.bias)
    nothing = torch.zeros(len(x), dtype=torch.long)
    learner = ScaleLearner(layer, TimestepWeighting("uniform", 1.0, 0.9), 1, True, False, 2**20, clipping)
    return learner, LayerBatch(x, output, nothing, nothing)


def shrinkage(learner, batch, iterations=300, rate=0.02):
    """Error under the learned τ over the error without scaling."""
    before = learner.errors(batch).mean()
    optimizer = torch.optim.Adam([learner.scale], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        learner.learn(batch)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            learner.scale.clamp_(min=SMALLEST_EQUIVALENT_SCALE)
    return float(learner.errors(batch).mean() / before)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_planted_outlier_channel_loses_half_its_harm(kind):
    """As much as the best scale of that channel alone would take away, which a search over it finds."""
    learner, batch = learner_of({3: lambda x: 30 * x}, bits=BitWidth(8, 4), kind=kind)
    unscaled = learner.errors(batch).mean()
    candidates = torch.ones(40, 16)
    candidates[:, 3] = torch.logspace(0, 2, 40)
    best = min(float(learner.errors(batch, scale).mean() / unscaled) for scale in candidates)
    found = shrinkage(learner, batch)
    assert found < 0.55
    assert found < 1.1 * best
    assert int(learner.scale.argmax()) == 3
    assert learner.scale[3] > 5 * learner.scale.median()


def test_constant_and_dead_channels_do_no_harm():
    learner, batch = learner_of({0: torch.zeros_like, 1: lambda x: torch.full_like(x, 3.0), 2: lambda x: x * 1e-20})
    assert shrinkage(learner, batch, iterations=100) < 1
    assert learner.scale.isfinite().all()
    assert (learner.scale >= SMALLEST_EQUIVALENT_SCALE).all()


def test_an_input_that_is_all_zero_leaves_everything_finite():
    learner, batch = learner_of({channel: torch.zeros_like for channel in range(16)})
    assert learner.learn(batch) == 0
    assert learner.scale.grad is not None and learner.scale.grad.isfinite().all()


def test_the_best_scale_is_kept_once_patience_ends():
    learner, _ = learner_of({})
    for value, error, stopped in ((1.0, 5.0, False), (2.0, 3.0, False), (3.0, 4.0, False), (4.0, math.nan, True)):
        with torch.no_grad():
            learner.scale.fill_(value)
        learner.judge(error, patience=2)
        assert learner.stopped == stopped
    assert (learner.scale == 2).all()
    learner.judge(0.0, patience=2)  # nothing is judged any more
    assert learner.best_error == 3


def test_a_better_look_renews_patience():
    learner, _ = learner_of({})
    for error in (5.0, 6.0, 4.0, 4.5, 3.0, 3.5):
        learner.judge(error, patience=2)
    assert not learner.stopped
    learner.judge(3.0, patience=2)  # no better than the best
    assert learner.stopped


def test_progress_is_taken_up_where_it_was_left():
    learner, batch = learner_of({})
    learner.learn(batch)
    learner.judge(2.0, patience=3)
    learner.judge(2.5, patience=3)
    other, _ = learner_of({})
    other.load_progress_(learner.progress())
    assert torch.equal(other.running, learner.running) and other.running > 0
    assert torch.equal(other.best, learner.best)
    assert (other.best_error, other.looks_since, other.stopped) == (2.0, 1, False)


def test_the_loss_is_a_share_of_the_outputs_energy():
    learner, batch = learner_of({}, kind="conv")
    errors = learner.errors(batch)
    energy = batch.output.square().sum(1).mean()
    assert learner.learn(batch) == pytest.approx(float(errors.mean() / energy), rel=1e-5)


def test_clipping_after_rounding_finds_better_scales_of_one_large_channel():
    """W4A6, 30-fold: the ends of min-max ranges round onto the grid; counted as outside, they give τ no hold."""
    left = {
        clipping: [
            shrinkage(*learner_of({3: lambda x: 30 * x}, bits=BitWidth(4, 6), clipping=clipping, seed=seed), 150, 0.04)
            for seed in range(3)
        ]
        for clipping in CLIPPINGS
    }
    for published, other in zip(left["after_rounding"], left["before_rounding"], strict=True):
        assert published < 0.7 * other
