"""The probe against facts worked out by hand, against torch's own operation counter, and on full-size shapes."""

import pytest
import torch
from tiny import dit, flux, inputs, pixart, sd3, text_unet, unet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dmqbench.models.attention import attention_modules, set_explicit_attention_
from dmqbench.models.families import family_of
from dmqbench.models.folders import ModelSource
from dmqbench.models.sources import example_inputs, meta_model, meta_topology
from dmqbench.models.topology import feature_module, trace
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext

NETWORKS = pytest.mark.parametrize("build", [unet, text_unet, dit])


def traced(network, batch=2):
    return trace(network, *inputs(network, batch))


@pytest.mark.parametrize("build", [unet, text_unet])
def test_skips_of_a_unet_are_the_shortcuts_of_its_up_blocks(build):
    # Skips are taken from the end of [conv_in 16, resnet 16, downsampler 16, resnet 32]; each is joined to what the
    # layer before put out: 32, 32, 32 and 16 channels.
    assert {layer.name: layer.boundaries for layer in traced(build()).layers if layer.boundaries} == {
        "up_blocks.0.resnets.0.conv_shortcut": (32,),
        "up_blocks.0.resnets.1.conv_shortcut": (32,),
        "up_blocks.1.resnets.0.conv_shortcut": (32,),
        "up_blocks.1.resnets.1.conv_shortcut": (16,),
    }


def test_a_transformer_has_no_skips():
    assert not any(layer.boundaries for layer in traced(dit()).layers)


@pytest.mark.parametrize("build", [unet, text_unet, dit])
def test_shortcuts_of_a_network_are_what_diffusers_calls_so(build):
    """Found without their names; the outputs of attentions and the first layer are added to something, too."""
    topology = traced(build())
    assert {layer.name for layer in topology.layers if layer.shortcut} == {
        name for name in topology.by_name if name.endswith("conv_shortcut")
    }


class Sums(nn.Module):
    """Residual sums of every kind, under names that say nothing."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        names = ("stem", "inner", "outer", "first", "second", "late", "early", "same", "vector")
        for name in names:
            self.add_module(name, nn.Conv2d(4, 4, 1))
        self.linear = nn.Linear(4, 4)

    def add(self, a, b):
        return a.add_(b) if self.in_place else a + b

    def forward(self, x):
        x = self.stem(x)  # the residual stream itself
        x = self.add(self.second(torch.relu(self.first(x))), x)  # a branch beside the identity
        branch = self.outer(torch.relu(self.inner(x)))
        x = self.add(self.late(x), branch)  # a shortcut that runs after its branch
        shortcut = self.early(x)
        x = self.add(torch.tanh(x * 2).transpose(2, 3), shortcut)  # and one that runs before
        x = self.add(self.same(x), torch.ones(4, 4))  # a constant is no branch
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.linear(tokens) + tokens * 2  # channels of linear layers are not the axis
        return self.vector(tokens.transpose(1, 2).unflatten(2, (4, 4))) + 1


@pytest.mark.parametrize("in_place", [False, True])
def test_a_shortcut_is_a_convolution_added_to_what_a_branch_made_of_its_input(in_place):
    topology = trace(Sums(in_place), (torch.randn(1, 4, 4, 4),), {})
    assert {layer.name for layer in topology.layers if layer.shortcut} == {"late", "early"}


class Joins(nn.Module):
    """Concatenations of every kind, under names that say nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(9, 9, 1) for _ in range(5))
        self.f = nn.Linear(9, 9)
        self.g = nn.Conv2d(9, 9, 1)
        self.never = nn.Conv2d(9, 9, 1)

    def forward(self, x):
        parts = x.split([2, 3, 4], dim=1)
        joined = torch.cat(parts, dim=1)
        self.a(joined)
        self.b(torch.concat((parts[0], x[:, :7]), -3))
        self.c(torch.cat([x, x], dim=2))
        self.d(torch.relu(joined))
        self.e(torch.concatenate(tensors=[joined]))
        self.f(torch.cat([part.mean((2, 3)) for part in parts], dim=1))
        return self.a(self.g(joined + 0))


def test_only_a_direct_channel_concatenation_sets_boundaries():
    topology = trace(Joins(), (torch.randn(1, 9, 4, 4),), {})
    found = {layer.name: layer.boundaries for layer in topology.layers}
    assert found == {"a": (2, 5), "b": (2,), "c": (), "d": (), "e": (), "f": (), "g": ()}


def test_a_layer_that_runs_twice_keeps_its_first_place_and_adds_its_macs():
    topology = trace(Joins(), (torch.randn(1, 9, 4, 4),), {})
    assert [layer.name for layer in topology.layers] == ["a", "b", "c", "d", "e", "f", "g"]
    assert [layer.order for layer in topology.layers] == list(range(7))
    assert topology.by_name["a"].macs == 2 * 81 * 16
    assert topology.by_name["g"].macs == 81 * 16
    assert topology.by_name["c"].macs == 81 * 32
    assert topology.by_name["f"].macs == 81


def test_layers_that_never_run_are_absent():
    topology = trace(Joins(), (torch.randn(1, 9, 4, 4),), {})
    assert "never" not in topology.by_name
    assert "never" not in [unit.name for unit in topology.units]


def test_kinds_groups_and_shapes():
    network = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Conv1d(6, 6, 1))
    first, second = trace(network, (torch.randn(3, 4, 10),), {}).layers
    assert (first.kind, first.groups, first.weight_shape) == ("conv1d", 2, (6, 2, 3))
    assert first.macs == 6 * 8 * 2 * 3
    assert (second.kind, second.groups, second.macs) == ("conv1d", 1, 6 * 8 * 6)


@pytest.mark.parametrize("build", [unet, text_unet, dit, pixart, sd3, flux])
def test_macs_equal_the_operations_that_torch_counts(build):
    network = build()
    topology = traced(network, batch=1)
    off = AttentionQuantizers(StepContext(), 256)
    set_explicit_attention_(network, dict.fromkeys(attention_modules(network), off))  # fused ones are not all counted
    args, kwargs = inputs(network, batch=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*args, **kwargs)
    assert 2 * (topology.macs + topology.attention_macs) == counter.get_total_flops()
    assert len(topology.attentions) == len(attention_modules(network))


@NETWORKS
def test_meta_and_real_networks_have_the_same_topology_for_any_batch(build):
    network = build()
    config = {**network.config, "_class_name": type(network).__name__}
    args, kwargs = example_inputs(family_of(config), device="meta", tokens=5)
    on_meta = trace(meta_model(config), args, kwargs)
    assert on_meta == traced(network, batch=1) == traced(network, batch=3)


@NETWORKS
def test_units_partition_the_layers_in_execution_order(build):
    topology = traced(build())
    assert sorted(name for unit in topology.units for name in unit.layers) == sorted(topology.by_name)
    starts = [topology.by_name[unit.layers[0]].order for unit in topology.units]
    assert starts == sorted(starts)
    for unit in topology.units:
        orders = [topology.by_name[name].order for name in unit.layers]
        assert orders == sorted(orders)
        assert unit.kind == "block" or unit.layers == (unit.name,)


def test_units_are_the_outermost_blocks_and_the_layers_between_them():
    assert [(unit.name, unit.kind, len(unit.layers)) for unit in traced(text_unet()).units[:10]] == [
        ("time_embedding.linear_1", "layer", 1),
        ("time_embedding.linear_2", "layer", 1),
        ("conv_in", "layer", 1),
        ("down_blocks.0.resnets.0", "block", 3),
        ("down_blocks.0.downsamplers.0.conv", "layer", 1),
        ("down_blocks.1.resnets.0", "block", 4),
        ("down_blocks.1.attentions.0.proj_in", "layer", 1),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0",
            "block",
            10,
        ),  # 2 × (q, k, v, out) and the feed-forward
        ("down_blocks.1.attentions.0.proj_out", "layer", 1),
        ("mid_block.resnets.0", "block", 3),
    ]
    attention_unit = next(unit for unit in traced(unet()).units if unit.name == "mid_block.attentions.0")
    assert attention_unit.kind == "block"
    assert [name.rpartition("attentions.0.")[2] for name in attention_unit.layers] == [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    ]


@pytest.mark.parametrize(
    ("build", "first", "last"),
    [
        (unet, "conv_in", "conv_out"),
        (text_unet, "conv_in", "conv_out"),
        (dit, "pos_embed.proj", "proj_out_2"),
    ],
)
def test_first_and_last_layers_see_the_sample(build, first, last):
    topology = traced(build())
    assert (topology.first.name, topology.last.name) == (first, last)


@pytest.mark.parametrize("build", [unet, text_unet])
def test_the_feature_of_a_unet_is_all_that_its_last_projection_needs(build):
    """Norm, activation and last convolution, applied by hand to what goes into the module, give the network's output;
    it is what the last block puts out."""
    network = build()
    args, kwargs = inputs(network)
    seen, last_block = [], []
    feature_module(network, traced(network)).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.up_blocks[-1].register_forward_hook(lambda _, __, output: last_block.append(output))
    output = network(*args, **kwargs)[0]
    [feature] = seen
    assert feature.shape == (2, 16, 8, 8)
    torch.testing.assert_close(feature, last_block[0], rtol=0, atol=0)
    norm = network.conv_norm_out
    by_hand = torch.nn.functional.group_norm(feature, norm.num_groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(network.conv_out(torch.nn.functional.silu(by_hand)), output)


def test_the_feature_of_a_network_without_a_last_norm_goes_into_its_last_layer():
    transformer = dit()
    assert feature_module(transformer, traced(transformer)) is transformer.proj_out_2
    sums = Sums(in_place=False)
    assert feature_module(sums, trace(sums, (torch.randn(1, 4, 4, 4),), {})) is sums.vector


def test_embedding_layers_of_a_unet_are_those_on_vectors():
    for build in (unet, text_unet):
        topology = traced(build())
        assert {layer.name for layer in topology.layers if layer.embedding} == {
            name for name in topology.by_name if "time_emb" in name
        }


def test_tracing_leaves_nothing_behind():
    network = unet()
    traced(network)
    with pytest.raises(ValueError, match="class_labels"):
        trace(network, inputs(network)[0], {"return_dict": False})
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "linears", "skips", "shortcuts", "quantizable", "gmacs"),
    [
        ("ddpm_cifar10", 35_746_307, 65, 48, 12, 13, 87, 6.1),
        ("ldm4_bedroom", 274_056_163, 67, 88, 12, 15, 129, 96.1),
        ("ldm4_ffhq", 274_056_163, 67, 88, 12, 15, 129, 96.1),
        ("ldm4_celebahq", 274_056_163, 67, 88, 12, 15, 129, 96.1),
        ("ldm8_church", 294_966_916, 89, 121, 15, 17, 171, 18.64),
        ("ldm4_imagenet", 400_920_579, 99, 184, 12, 15, 257, 99.8),
        ("sd14", 859_520_964, 98, 184, 12, 14, 256, 338.7),
        # The original's 675,129,632 hold 294,912 of fixed positions, and the embedding of time and label once.
        ("dit_xl_256", 675_129_632 - 294_912 + 27 * 2_777_472, 1, 254, 0, 0, 196, 114.4),
        ("sdxl", 2_567_463_684, 51, 743, 9, 11, 771, 2_989),
        ("pixart_sigma", 610_856_096, 1, 286, 0, 0, 280, 2_155),
        ("sd3_medium", 2_028_328_000, 1, 340, 0, 0, 333, 3_006),
        ("flux_dev", 11_901_408_320, 0, 504, 0, 0, 494, 29_756),
    ],
)
def test_full_size_networks_have_the_counts_of_the_originals(
    name, parameters, convolutions, linears, skips, shortcuts, quantizable, gmacs
):
    topology, found = meta_topology(ModelSource("architecture", name))
    kinds = [layer.kind for layer in topology.layers]
    assert found == parameters
    assert (kinds.count("conv2d"), kinds.count("linear")) == (convolutions, linears)
    assert sum(bool(layer.boundaries) for layer in topology.layers) == skips
    assert sum(layer.shortcut for layer in topology.layers) == shortcuts  # DMQ's code scales 15, 17 and 14 such layers
    assert sum(not layer.embedding for layer in topology.layers) - 2 == quantizable
    assert topology.macs / 1e9 == pytest.approx(gmacs, rel=0.01)  # as commonly reported for these models
