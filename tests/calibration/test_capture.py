"""Captured inputs and outputs of modules against plain hooks on full forward passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import dit, flux, pixart, sd3, text_unet, unet
from workbench import workbench

from dmqbench.calibration.capture import capture_inputs, capture_outputs, memory_groups, run_points
from dmqbench.models.hooks import output_tensors

MODULES = {
    "resnet": (unet, "down_blocks.1.resnets.0"),
    "attention": (unet, "mid_block.attentions.0"),
    "layer": (unet, "down_blocks.0.downsamplers.0.conv"),
    "transformer block of a U-Net": (text_unet, "up_blocks.0.attentions.1.transformer_blocks.0"),
    "transformer block": (dit, "transformer_blocks.1"),
    "masked text": (pixart, "transformer_blocks.1"),
    "two streams": (sd3, "transformer_blocks.0"),
    "the last of two streams": (sd3, "transformer_blocks.1"),
    "one stream of two": (flux, "single_transformer_blocks.0"),
}
every_module = pytest.mark.parametrize(("build", "name"), MODULES.values(), ids=MODULES.keys())
POINTS, BATCH = 10, 4


def hooked(bench, module, points, guidance):
    """(args, kwargs, output, steps) of every batch, from hooks on whole forward passes."""
    seen = []

    def note(_, args, kwargs, output):
        seen.append((args, kwargs, output_tensors(output), bench.adapter.context.step.clone()))

    handle = module.register_forward_hook(note, with_kwargs=True)
    for part in points.split(BATCH):
        point = bench.bank.cal.at(part)
        with torch.no_grad():
            bench.adapter.denoise(point.x, point.timestep, point.cond, point.step, guidance)
    handle.remove()
    return seen


def leaves(args, kwargs):
    return torch.utils._pytree.tree_flatten((args, dict(sorted(kwargs.items()))))[0]


@every_module
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_captured_inputs_and_outputs_are_those_of_full_forwards(build, name, guidance):
    bench = workbench(network=build(), guidance=guidance)
    module = bench.network.get_submodule(name)
    points = bench.bank.cal.spread(POINTS)
    expected = hooked(bench, module, points, guidance)
    inputs = capture_inputs(bench.denoising, module, bench.bank.cal, points, BATCH)
    outputs = capture_outputs(bench.denoising, {name: module}, bench.bank.cal, points, BATCH)[name]
    branches = 1 if guidance == 1.0 or build is flux else 2  # which embeds the scale of guidance
    assert {len(inputs), *map(len, outputs)} == {branches * POINTS}
    for stream, output in enumerate(outputs):
        assert torch.equal(output[:], torch.cat([whole[stream] for _, _, whole, _ in expected]))
    assert torch.equal(inputs.step, torch.cat([step for *_, step in expected]))
    start = 0
    for args, kwargs, output, step in expected:
        index = torch.arange(start, start + len(step))
        chosen = inputs.select(index)
        assert torch.equal(chosen[2], step)
        for leaf, reference in zip(leaves(*chosen[:2]), leaves(args, kwargs), strict=True):
            if isinstance(reference, torch.Tensor):
                assert torch.equal(leaf, reference)
            else:
                assert leaf == reference
        with torch.no_grad(), bench.adapter.context.at(step):
            again = output_tensors(module(*chosen[0], **chosen[1]))
        assert len(again) == len(output) == len(outputs)
        assert all(map(torch.equal, again, output))
        start += len(step)


def test_any_samples_can_be_selected_in_any_order():
    bench = workbench()
    module = bench.network.get_submodule("mid_block.resnets.0")
    points = bench.bank.cal.spread(POINTS)
    inputs = capture_inputs(bench.denoising, module, bench.bank.cal, points, BATCH)
    index = torch.tensor([7, 0, 7])
    args, _, step = inputs.select(index)
    everything = inputs.select(torch.arange(POINTS))[0]
    assert torch.equal(args[0], everything[0][index])
    assert torch.equal(step, (points % bench.bank.cal.calls)[index])


def test_a_table_of_positions_as_long_as_a_batch_is_no_batch():
    bench, name, tokens = workbench(network=flux()), "transformer_blocks.0", 16 + 5
    module, points = bench.network.get_submodule(name), bench.bank.cal.spread(tokens)
    inputs = capture_inputs(bench.denoising, module, bench.bank.cal, points, tokens)
    outputs = capture_outputs(bench.denoising, {name: module}, bench.bank.cal, points, tokens)[name]
    index = torch.tensor([3, 17])
    args, kwargs, step = inputs.select(index)
    assert {len(table) for table in kwargs["image_rotary_emb"]} == {tokens}
    with torch.no_grad(), bench.adapter.context.at(step):
        again = output_tensors(module(*args, **kwargs))
    for output, whole in zip(again, outputs, strict=True):
        torch.testing.assert_close(output, whole[index])


def test_a_forward_for_inputs_ends_where_the_module_starts():
    bench = workbench()
    later = []
    bench.network.get_submodule("conv_out").register_forward_hook(lambda *_: later.append(1))
    module = bench.network.get_submodule("mid_block.resnets.0")
    capture_inputs(bench.denoising, module, bench.bank.cal, torch.arange(3), BATCH)
    assert later == []
    with pytest.raises(RuntimeError, match="step is not set"):
        _ = bench.adapter.context.step


def test_no_hook_is_left_behind_even_after_an_error():
    bench = workbench()
    module = bench.network.get_submodule("mid_block.resnets.0")
    points = bench.bank.cal.spread(2)
    capture_inputs(bench.denoising, module, bench.bank.cal, points, BATCH)
    with pytest.raises(IndexError):
        capture_outputs(bench.denoising, {"m": module}, bench.bank.cal, torch.tensor([10**6]), BATCH)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_many_outputs_come_from_one_pass():
    bench = workbench(network=unet())
    names = [name for _, name in list(MODULES.values())[:3]]
    calls = []
    bench.network.register_forward_hook(lambda *_: calls.append(1))
    modules = {name: bench.network.get_submodule(name) for name in names}
    points = bench.bank.cal.spread(POINTS)
    together = capture_outputs(bench.denoising, modules, bench.bank.cal, points, BATCH)
    assert len(calls) == 3
    for name in names:
        alone = capture_outputs(bench.denoising, {name: modules[name]}, bench.bank.cal, points, BATCH)
        assert all(torch.equal(one[:], other[:]) for one, other in zip(together[name], alone[name], strict=True))


def test_run_points_yields_the_sizes_of_its_batches():
    bench = workbench()
    assert list(run_points(bench.denoising, bench.bank.cal, torch.arange(10), 4)) == [4, 4, 2]


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(0, 120))
def test_memory_groups_keep_the_order_and_the_budget_and_are_not_smaller_than_needed(sizes, budget):
    named = {str(index): size for index, size in enumerate(sizes)}
    groups = memory_groups(named, budget)
    assert [name for group in groups for name in group] == list(named)
    totals = [sum(named[name] for name in group) for group in groups]
    for group, total in zip(groups, totals, strict=True):
        assert group
        assert total <= budget or len(group) == 1
    for following, total in zip(groups[1:], totals, strict=False):
        assert total + named[following[0]] > budget
