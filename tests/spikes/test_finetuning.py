"""One step of fine-tuning with low-rank adapters: rows at 1 to 4 bits, the same modules as teacher, guidance on."""

from dataclasses import replace

import pytest
import torch
from tiny import unet
from workbench import adapter_of, set_min_max_ranges_

from dmqbench.quant.layers import freeze_, quant_layers, quantization, quantize_layers_, set_quantization_
from dmqbench.quant.plan import PrecisionPlan, uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, BitWidth, StepGroups
from dmqbench.quant.state import calibration_state, load_calibration_state_

BATCH, CALLS, GUIDANCE = 3, 4, 3.0
ADAPTERS = ("adapter_down", "adapter_up")


def mixed_plan(topology):
    """Rows of every layer take turns at 1, 2, 3 and 4 bits."""
    uniform = uniform_plan(topology.layers, BitWidth(4, 6), COMMON_SCOPE)
    layers = tuple(
        replace(layer, weight_bits=tuple(1 + row % 4 for row in range(topology.by_name[layer.name].weight_shape[0])))
        for layer in uniform.layers
    )
    return PrecisionPlan(layers, uniform.full_precision)


def mixed_network():
    adapter = adapter_of(unet())
    plan = mixed_plan(adapter.topology())
    quantize_layers_(adapter.network, plan, adapter.context, StepGroups.per_step(CALLS))
    return adapter


class FineTuning:
    def __init__(self):
        self.adapter = mixed_network()
        self.network = self.adapter.network
        self.x = torch.randn(BATCH, *self.adapter.sample_shape, generator=torch.Generator().manual_seed(0))
        self.timestep = torch.tensor([900, 500, 100])
        self.step = torch.tensor([0, 1, 3])
        self.cond = self.adapter.conditioner.conditions("cal", 0, range(BATCH))
        set_min_max_ranges_(self.adapter, self.x, self.timestep, self.cond, self.step)
        self.layers = quant_layers(self.network)
        generator = torch.Generator().manual_seed(1)
        for layer in self.layers.values():
            for parameter in layer.add_adapter_(4, generator):
                parameter.requires_grad_(True)
        set_quantization_(self.network, weight=True, activation=True)

    @property
    def parameters(self):
        return [getattr(layer, name) for layer in self.layers.values() for name in ADAPTERS]

    def denoise(self):
        return self.adapter.denoise(self.x, self.timestep, self.cond, self.step, GUIDANCE)

    def teacher(self):
        with torch.no_grad(), quantization(self.network, weight=False, activation=False):
            return self.denoise()

    def loss(self):
        return (self.denoise() - self.teacher()).square().mean()

    def train(self, steps, learning_rate=1e-3):
        optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            losses.append(self.loss().item())
        return losses


def test_every_row_has_its_own_number_of_levels():
    for layer in FineTuning().layers.values():
        levels = layer.weight_quantizer.levels
        assert levels[:4].tolist() == [2, 4, 8, 16]
        for part in layer.weight_quantizer.rows(layer.effective_weight().detach()):
            assert all(len(row.unique()) <= count for row, count in zip(part, levels.tolist(), strict=True))


def test_one_step_lowers_the_loss_on_the_same_batch():
    before, after = FineTuning().train(1)
    assert after < 0.98 * before


def test_some_steps_lower_it_further():
    losses = FineTuning().train(8)
    assert losses[-1] < 0.8 * losses[0]


def test_teacher_and_student_are_one_network_called_once_each_with_both_branches():
    tuning = FineTuning()
    sizes = []
    tuning.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    tuning.loss()
    assert sizes == [2 * BATCH, 2 * BATCH]


def test_the_teacher_is_the_untouched_network_before_and_after_training():
    tuning, reference = FineTuning(), adapter_of(unet())
    with torch.no_grad():
        expected = reference.denoise(tuning.x, tuning.timestep, tuning.cond, tuning.step, GUIDANCE)
    assert torch.equal(tuning.teacher(), expected)
    tuning.train(2)
    assert torch.equal(tuning.teacher(), expected)


def test_the_weights_of_the_model_are_not_changed_by_a_bit():
    tuning = FineTuning()
    original = dict(unet().named_parameters())
    tuning.train(2)
    kept = {name: parameter for name, parameter in tuning.network.named_parameters() if name in original}
    assert kept.keys() == original.keys()
    for name, parameter in kept.items():
        assert torch.equal(parameter, original[name]), name
        assert parameter.grad is None


def test_gradients_reach_the_adapters_of_every_layer():
    tuning = FineTuning()
    tuning.loss().backward()
    for name, layer in tuning.layers.items():  # ΔW = up · down starts at zero with up: down has to wait a step
        assert layer.adapter_up.grad.isfinite().all(), name
        assert layer.adapter_up.grad.any(), name
        assert not layer.adapter_down.grad.any(), name
    tuning = FineTuning()
    tuning.train(1)
    tuning.network.zero_grad()
    tuning.loss().backward()
    for name, layer in tuning.layers.items():
        for adapter in ADAPTERS:
            assert getattr(layer, adapter).grad.any(), (name, adapter)


@pytest.fixture(scope="module")
def trained():
    tuning = FineTuning()
    tuning.train(3, learning_rate=1e-2)
    return tuning


@torch.no_grad()
def test_a_trained_adapter_changes_the_codes():
    tuning = FineTuning()
    before = [layer.weight_quantizer.integers(layer.scaled_weight()) for layer in tuning.layers.values()]
    with torch.enable_grad():
        tuning.train(3, learning_rate=1e-2)
    after = [layer.weight_quantizer.integers(layer.scaled_weight()) for layer in tuning.layers.values()]
    changed = sum((new != old).sum().item() for new, old in zip(after, before, strict=True))
    assert changed > 0.01 * sum(codes.numel() for codes in before)


@torch.no_grad()
def test_merging_keeps_the_output_and_needs_the_adapters_no_more(trained):
    training_forward = trained.denoise()
    freeze_(trained.network)
    merged = trained.denoise()
    scale = training_forward.abs().max()
    torch.testing.assert_close(merged / scale, training_forward / scale, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())

    state = calibration_state(trained.network)
    assert any(name.endswith(ADAPTERS) for name in state)
    lean = {name: value for name, value in state.items() if not name.endswith(ADAPTERS)}
    fresh = mixed_network()
    load_calibration_state_(fresh.network, lean)
    set_quantization_(fresh.network, weight=True, activation=True)
    assert all(layer.adapter_up is None for layer in quant_layers(fresh.network).values())
    output = fresh.denoise(trained.x, trained.timestep, trained.cond, trained.step, GUIDANCE)
    assert torch.equal(output, merged)


@torch.no_grad()
def test_without_codes_the_adapters_are_needed(trained):
    freeze_(trained.network)
    state = {
        name: value
        for name, value in calibration_state(trained.network).items()
        if not name.endswith((*ADAPTERS, ".codes"))
    }
    fresh = mixed_network()
    load_calibration_state_(fresh.network, state)
    set_quantization_(fresh.network, weight=True, activation=True)
    output = fresh.denoise(trained.x, trained.timestep, trained.cond, trained.step, GUIDANCE)
    assert not torch.allclose(output, trained.denoise(), atol=1e-3)
