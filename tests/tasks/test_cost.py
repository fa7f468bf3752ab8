"""What full-size networks cost, against the numbers of the methods' specification, which counts the official networks.

A diffusers network of the same architecture has the same layers; only the counts of bits are ours.
"""

from dataclasses import asdict, replace
from functools import cache
from math import prod

import pytest

from dmqbench.cli import main
from dmqbench.config.checked_job import FURTHER_SCOPE, PAPER_SCOPE
from dmqbench.config.compose import compose
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job
from dmqbench.config.schema import ModelConfig
from dmqbench.models.families import family_of
from dmqbench.models.sources import example_inputs, meta_model, meta_topology
from dmqbench.models.topology import trace
from dmqbench.quant.cost import CountedLayer, count_cost
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope
from dmqbench.tasks.cost import describe_cost

MIB = 2**20
LDM4 = "model=ldm4_imagenet"
CODE_RULE = Scope(
    **{"first_last": True, "embedding": True, "split": False, "ends_at_8": True},
    **{"shortcuts": False, "downsampling": False, "bare_attention": False},
)


@cache
def cost(*overrides):
    return describe_cost(make_job(compose([LDM4, "task=cost", *overrides])))


def ldm4():
    return meta_topology(ModelConfig("ldm4_imagenet", "architecture").checkpoint)


@cache
def code_rule():
    """Layers that the published code quantizes, found by diffusers' names, and its ends."""
    layers = {layer.name: layer for layer in ldm4()[0].layers}
    left_out = [name for name in layers if name.endswith("conv_shortcut") or "downsamplers" in name]
    ends = ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in", "conv_out"]
    return layers, left_out, ends


def test_full_precision_is_the_published_network():
    found = cost("method=fp")
    assert found["parameters"] == 400_920_579
    assert found["size_mib"] == {"all_layers": 1529.3906, "paper_code": 1529.3906, "packed": None}
    assert found["macs"] / 1e9 == pytest.approx(95.90 + 3.87, abs=0.01)
    assert found["attention_macs"] / 1e9 == pytest.approx(4.46, abs=0.005)
    assert found["bops"] / 1e12 == pytest.approx(102.16, abs=0.005)


def test_a_network_in_bfloat16_is_half_as_large_but_for_its_codes():
    """What is not quantized has 16 bits, activations among it, and the file holds it so."""
    jobs = [("method=fp",), ("method=rtn", "bits=w4a8"), ("method=rtn", "bits=w4a32")]
    usual, narrow = (
        [describe_cost(make_job(compose(["model=ladder_1", "task=cost", dtype, *job]))) for job in jobs]
        for dtype in ("model.dtype=float32", "model.dtype=bfloat16")
    )
    assert narrow[0]["size_mib"]["all_layers"] == pytest.approx(usual[0]["size_mib"]["all_layers"] / 2, abs=1e-4)
    assert narrow[0]["bops"] == usual[0]["bops"] / 4
    saved, of_file = (usual[1]["size_mib"][rule] - narrow[1]["size_mib"][rule] for rule in ("all_layers", "packed"))
    assert of_file > saved > 0  # some layers are in full precision
    assert 0.4 * usual[2]["bops"] < narrow[2]["bops"] < 0.51 * usual[2]["bops"]


@pytest.mark.parametrize(
    ("bits", "all_layers", "paper_code"),
    [("w8a8", 383.30, 423.06), ("w4a4", 192.29, 239.03), ("w3a4", 144.53, 193.03), ("w2a4", 96.78, 147.02)],
)
def test_sizes_are_those_of_the_specification(bits, all_layers, paper_code):
    for method in ("efficient_dm", "mpq_dm"):
        found = cost(f"method={method}", f"bits={bits}")["size_mib"]
        assert (found["all_layers"], found["paper_code"]) == pytest.approx((all_layers, paper_code), abs=0.005)


@pytest.mark.parametrize("method", ["efficient_dm", "mpq_dm"])
def test_the_papers_scope_quantizes_what_its_code_does(method):
    found = cost(f"method={method}", "bits=w4a6", "bits.scope=paper")
    layers, left_out, ends = code_rule()
    assert found["full_precision_names"] == left_out
    assert found["quantized_layers"] == 265
    kinds = [layer.kind for name, layer in layers.items() if name not in left_out]
    assert (kinds.count("linear"), kinds.count("conv2d")) == (184, 81)
    macs = {name: layer.macs for name, layer in layers.items()}
    at_8, left = sum(macs[name] for name in ends), sum(macs[name] for name in left_out)
    assert found["bops"] == 24 * (found["macs"] - at_8 - left) + 64 * at_8 + 1024 * left
    assert found["skip_layers"] == 0


def test_plus_counts_a_tenth_of_the_rows_at_one_bit_more():
    plain, plus = (cost("method=mpq_dm", "bits=w2a4", f"method.plus={flag}") for flag in ("false", "true"))
    layers, left_out, ends = code_rule()
    more = {name: x.weight_shape[0] // 10 * prod(x.weight_shape[1:]) for name, x in layers.items()}
    assert plus["size_mib"]["all_layers"] - plain["size_mib"]["all_layers"] == pytest.approx(
        sum(more.values()) / 8 / MIB, abs=2e-4
    )
    assert sum(more.values()) / 8 / MIB == pytest.approx(4.8, abs=0.05)  # what the paper says that it adds
    in_scope = sum(count for name, count in more.items() if name not in (*left_out, *ends))
    difference = plus["size_mib"]["paper_code"] - plain["size_mib"]["paper_code"]
    assert difference == pytest.approx(in_scope / 8 / MIB, abs=2e-4)
    quantized = [name for name in layers if name not in plus["full_precision_names"]]
    tenths = {name: layers[name].weight_shape[0] // 10 / layers[name].weight_shape[0] for name in quantized}
    extra = sum(4 * layers[name].macs * tenths[name] for name in quantized)
    assert plus["bops"] - plain["bops"] == pytest.approx(extra, abs=2)
    assert plus["size_mib"]["packed"] > plain["size_mib"]["packed"]


def test_ends_are_counted_at_the_bits_of_the_plan_that_was_reached():
    """A plan that was given may have others there than the scope."""
    job = make_job(compose([LDM4, "task=cost", "method=efficient_dm", "bits=w2a4", "bits.scope=paper"]))
    layers, _, ends = code_rule()
    plan = uniform_plan(ldm4()[0].layers, BitWidth(2, 4), CODE_RULE)
    flat = replace(plan, layers=tuple(replace(layer, weight_bits=2) for layer in plan.layers))
    assert describe_cost(job, plan) == describe_cost(job)
    usual, found = describe_cost(job), describe_cost(job, flat)
    assert usual["bops"] - found["bops"] == sum((8 - 2) * 8 * layers[name].macs for name in ends)
    saved = sum((8 - 2) * prod(layers[name].weight_shape) for name in ends) / 8 / MIB
    assert usual["size_mib"]["packed"] - found["size_mib"]["packed"] == pytest.approx(saved, abs=3e-4)
    for rule in ("all_layers", "paper_code"):
        assert usual["size_mib"][rule] == found["size_mib"][rule]


LSUN = {
    "bedrooms": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [224, 448, 672, 896],
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "attention_head_dim": 32,
    },
    "churches": {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [192, 384, 384, 768, 768],
        "down_block_types": [*["AttnDownBlock2D"] * 4, "DownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", *["AttnUpBlock2D"] * 4],
        "attention_head_dim": 24,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    },
}


@pytest.mark.parametrize(
    ("name", "parameters", "quantized", "sizes"),
    [
        ("bedrooms", 274_056_163, 73, (400.70, 293.73, 266.99, 240.24)),
        ("churches", 294_966_916, 109, (367.90, 242.04, 210.58, 179.12)),
    ],
)
def test_attentions_of_unconditional_networks_are_left_out_as_in_the_published_code(name, parameters, quantized, sizes):
    config = {"_class_name": "UNet2DModel", "layers_per_block": 2, **LSUN[name]}
    network = meta_model(config)
    topology = trace(network, *example_inputs(family_of(config), device="meta"))
    layers = [CountedLayer(layer.name, layer.weight_shape, layer.macs) for layer in topology.layers]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    for weight, size in zip((8, 4, 3, 2), sizes, strict=True):
        plan = uniform_plan(topology.layers, BitWidth(weight, 8), CODE_RULE)
        counted = count_cost(layers, plan, plan, parameters, 0, plan)
        assert counted.quantized_layers == quantized
        assert counted.size_mib["paper_code"] == pytest.approx(size, abs=0.005)


# ---- what a model without weights is for


@pytest.mark.parametrize("task", ["run", "trajectories", "calibrate", "sample", "evaluate", "anatomy"])
def test_what_needs_weights_is_refused_in_one_line(task, capsys, tmp_path):
    assert main([LDM4, f"task={task}", f"store.root={tmp_path}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dmqbench: task={task} needs weights, and those of ldm4_imagenet are not shipped")
    assert "allowed: plan, cost" in line
    assert not list(tmp_path.iterdir())


def test_a_plan_says_that_nothing_can_be_made(capsys, tmp_path):
    assert main([LDM4, "task=plan", "method=rtn", "bits=w4a8", f"store.root={tmp_path}"]) == 0
    first, *others, last = capsys.readouterr().out.splitlines()
    assert "Peak memory" in str(others) and "activation_range" in str(others)
    assert first == "rtn ldm4_imagenet w4a8: nothing can be made, as the weights of ldm4_imagenet are not shipped"
    assert last.startswith('{"model": "ldm4_imagenet", "method": "rtn", "bits": "w4a8"')


def test_why_a_size_is_not_known_stands_in_the_table(capsys, tmp_path):
    assert main(["task=cost", "method=dmq", "bits=w4a4", f"store.root={tmp_path}"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "not known: which layers get powers of two is found while calibrating" in shown
    assert '"packed": null' in shown


# ---- ids


def test_keys_of_a_scope_that_came_later_enter_ids_only_where_they_differ():
    job = make_job(compose(["method=rtn", "bits.scope=paper"]))
    job = replace(job, method=replace(job.method, paper_scope=dict(PAPER_SCOPE)))

    def quantized(**further):
        changed = replace(job.method, paper_scope={**PAPER_SCOPE, **further})
        return job_ids(replace(job, method=changed), "weights").quantized

    assert quantized(**FURTHER_SCOPE) == quantized()
    others = [quantized(**{key: not value}) for key, value in FURTHER_SCOPE.items()]
    assert len({quantized(), *others}) == 1 + len(FURTHER_SCOPE)


def test_the_common_scope_is_what_the_schema_says():
    assert asdict(Scope()) == PAPER_SCOPE | FURTHER_SCOPE
