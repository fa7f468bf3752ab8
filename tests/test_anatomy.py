"""Statistics against NumPy and SciPy on captured activations, the pictures, and the artifact of a whole job."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from e2e.commands import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from tiny import dit, text_unet, unet
from workbench import workbench

from dmqbench import anatomy
from dmqbench.anatomy import anatomy_id, make_anatomy
from dmqbench.anatomy_plots import PICTURES, draw
from dmqbench.cli import parse_arguments
from dmqbench.eval.anatomy_statistics import Moments, input_statistics, short, weight_statistics
from dmqbench.ids import JobIds
from dmqbench.methods.capture import capture_inputs
from dmqbench.planning import plan

NAMES = ("mean", "std", "kurtosis", "low", "high", "absmax")


def expected(values: np.ndarray, axis=None) -> dict[str, np.ndarray]:
    return {
        "mean": values.mean(axis=axis),
        "std": values.std(axis=axis),
        "kurtosis": stats.kurtosis(values, axis=axis, fisher=False),
        "low": values.min(axis=axis),
        "high": values.max(axis=axis),
        "absmax": np.abs(values).max(axis=axis),
    }


def check(found: Moments, values: np.ndarray, axis=None) -> None:
    for name, wanted in expected(values, axis).items():
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-6, atol=1e-9, err_msg=name)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_moments_of_parts_combine_to_those_of_the_whole(seed, sizes, offset):
    draws = np.random.default_rng(seed)
    parts = [draws.exponential(draws.uniform(0.1, 3), (3, size)) + offset for size in sizes]
    merged = None
    for part in parts:
        merged = Moments.of(torch.from_numpy(part)).merged(merged)
    whole = np.concatenate(parts, axis=1)
    assert merged.count.tolist() == [whole.shape[1]] * 3
    for name in ("mean", "variance", "low", "high"):
        wanted = {"mean": whole.mean(1), "variance": whole.var(1), "low": whole.min(1), "high": whole.max(1)}[name]
        np.testing.assert_allclose(getattr(merged, name), wanted, rtol=1e-7, atol=1e-9)
    if whole.shape[1] > 3:
        np.testing.assert_allclose(merged.kurtosis, stats.kurtosis(whole, axis=1, fisher=False), rtol=1e-5)
        np.testing.assert_allclose(merged.pooled().kurtosis, stats.kurtosis(whole, axis=None, fisher=False), rtol=1e-5)
    torch.testing.assert_close(
        merged.pooled().m3, Moments.of(torch.from_numpy(whole).flatten()).m3, rtol=1e-5, atol=1e-6
    )


def test_values_that_are_all_the_same_have_no_kurtosis():
    found = Moments.of(torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    assert found.kurtosis.isnan().tolist() == [True, True, False]
    assert found.to_json()["kurtosis"] == [None, None, 1.5]


def test_numbers_are_shortened_and_undefined_ones_become_null():
    assert short([[1 / 3, float("nan")], None, 123456789.0]) == [[0.333333, None], None, 123457000.0]


@pytest.mark.parametrize(
    ("builder", "guidance"),
    [(unet, 1.0), (unet, 2.0), (text_unet, 2.0), (dit, 1.0)],
    ids=["unet", "unet, guided", "text_unet, guided", "dit"],
)
def test_statistics_of_inputs_are_those_of_the_captured_activations(builder, guidance):
    bench = workbench(network=builder(), trajectories=5, guidance=guidance)
    seen = []
    found = input_statistics(
        bench.adapter,
        bench.topology,
        bench.bank.cal,
        members=4,
        guidance=guidance,
        chunk=3,
        advance=lambda: seen.append(1),
    )
    assert len(seen) == 4 * 2  # calls × batches
    assert list(found) == [layer.name for layer in bench.topology.layers]
    layers = [bench.topology.first, bench.topology.last]
    layers += [
        layer for layer in bench.topology.layers if layer.boundaries or layer.embedding or layer.kind == "linear"
    ][-4:]
    for layer in layers:
        module = bench.network.get_submodule(layer.name)
        captured = []
        for call in range(4):
            points = torch.arange(4) * 4 + call
            inputs = capture_inputs(bench.adapter, module, bench.bank.cal, points, 3, guidance)
            x = inputs.arguments[0][0].double().numpy()
            captured.append(np.moveaxis(x, -1 if layer.kind == "linear" else 1, 0).reshape(module.weight.shape[1], -1))
        one = found[layer.name]
        check(one.channels, np.concatenate(captured, axis=1), axis=1)
        check(one.whole, np.concatenate(captured, axis=1))
        edges = (0, *layer.boundaries, module.weight.shape[1])
        for call, values in enumerate(captured):
            check(one.steps[call], values)
            for part in range(len(edges) - 1):
                check(one.parts[call, part], values[edges[part] : edges[part + 1]])
    assert not any(module._forward_pre_hooks for module in bench.network.modules())


def test_statistics_of_a_weight():
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] *= 10
    found = weight_statistics(weight)
    check(found.whole, weight.double().numpy())
    rows = np.abs(weight.numpy()).reshape(6, -1).max(axis=1)
    assert found.row_ratio == pytest.approx(rows.max() / np.median(rows), rel=1e-6)
    assert weight_statistics(torch.zeros(3, 2)).to_json()["row_absmax_ratio"] is None


def test_an_id_names_what_the_numbers_depend_on():
    ids = JobIds("a" * 16, (), None, "b" * 16, "c" * 16)
    other_samples, other_trajectories = replace(ids, samples="f" * 16), replace(ids, trajectories="e" * 16)
    different = [
        (ids, "fp"),
        (ids, "rtn"),
        (other_samples, "rtn"),
        (other_trajectories, "rtn"),
        (other_trajectories, "fp"),
    ]
    assert len({anatomy_id(*each) for each in different}) == len(different)
    assert anatomy_id(ids, "fp") == anatomy_id(other_samples, "fp")


def planned(store, *overrides):
    small = ("budget.trajectories=4", "budget.validation=4", "model=digits")
    return plan(parse_arguments([f"store.root={store}", *SMALL, *small, *overrides]))[0].job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    job = planned(tmp_path_factory.mktemp("store"), "method=rtn", "bits=w4a6", "bits.ranges=shared")
    return make_anatomy(job)


def test_a_job_leaves_its_numbers_and_pictures(folder):
    record = json.loads((folder / "anatomy.json").read_text())
    assert (record["model"], record["method"], record["bits"], record["trajectories"]) == ("digits", "rtn", "w4a6", 4)
    layers = record["layers"]
    assert len(record["timesteps"]) == 4
    for layer in layers:
        assert {len(values) for values in layer["steps"].values()} == {4}
        assert {len(values) for values in layer["channels"].values()} == {layer["weight_shape"][1]}
        assert layer["input"]["absmax"] == max(layer["channels"]["absmax"]) == max(layer["steps"]["absmax"])
    skips = [layer for layer in layers if layer["skip"]]
    assert skips
    for layer in skips:
        main, skip = layer["skip"]["parts"]
        widths = [np.subtract(part["max"], part["min"]) for part in (main, skip)]
        np.testing.assert_allclose(layer["skip"]["range_ratio"], np.maximum(*widths) / np.minimum(*widths), rtol=1e-4)
    disturbed = record["sensitivity"]
    assert (disturbed["calls"], disturbed["timesteps"]) == ([0, 1, 2, 3], record["timesteps"])
    assert disturbed["trajectories"] == 4 and disturbed["stream"] == "val"
    for key in ("mse", "psnr"):
        np.testing.assert_allclose(disturbed[key], np.mean(disturbed["per_trajectory"][key], axis=1), rtol=1e-4)
    quantized = record["quantized"]
    assert set(quantized["layers"]["names"]) < {layer["name"] for layer in layers}
    assert quantized["trajectories"] == 4
    assert {path.stem for path in folder.glob("*.png")} == set(PICTURES)
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5  # something is drawn


def test_full_precision_has_no_pictures_of_errors_and_is_made_once(folder, monkeypatch):
    job = planned(folder.parents[1], "method=fp")
    first = make_anatomy(job)
    record = json.loads((first / "anatomy.json").read_text())
    assert record["quantized"] is None
    assert {path.stem for path in first.glob("*.png")} == set(PICTURES) - {"layer_errors", "step_errors"}
    monkeypatch.setattr(anatomy, "examine", None)
    assert make_anatomy(job) == first


def test_quantizable_layers_do_not_change_what_is_said_of_the_model(folder):
    """Statistics are of the full-precision model, whether or not its layers were exchanged before."""
    paths = (folder, make_anatomy(planned(folder.parents[1], "method=fp")))
    one, other = (json.loads((path / "anatomy.json").read_text()) for path in paths)
    for a, b in zip(one["layers"], other["layers"], strict=True):
        assert a["name"] == b["name"]
        assert a["input"]["absmax"] == pytest.approx(b["input"]["absmax"], rel=1e-4)
        assert a["weight"] == b["weight"]
    assert one["sensitivity"]["mse"] == pytest.approx(other["sensitivity"]["mse"], rel=1e-3)


def test_pictures_of_a_model_without_skips_and_of_many_layers(tmp_path):
    """No skip, no variation, undefined kurtosis, more layers than labels: every picture that applies is drawn."""
    flat = {"min": 0.0, "max": 0.0, "mean": 0.0, "std": 0.0, "kurtosis": None, "absmax": 0.0}
    wide = {name: [value] * 50 for name, value in flat.items()}
    layers = [
        {
            "name": f"blocks.{number}.a_layer_with_quite_a_long_name.projection",
            "boundaries": [],
            "input": flat,
            "weight": flat,
            "steps": wide | {"absmax": [1.0 + number] * 50},
            "channels": {"absmax": [1.0] * 7 + [2.0 + number]},
            "skip": None,
        }
        for number in range(400)
    ]
    disturbed = {
        "trajectories": 2,
        "relative_rms": 0.1,
        "timesteps": list(range(20)),
        "injected": [0.0] * 20,
        "mse": [0.0] * 19 + [1e-3],
        "psnr": [None] * 19 + [40.0],
        "per_trajectory": {"mse": [[0.0, 0.0]] * 19 + [[0.0, 2e-3]], "psnr": [[None, None]] * 19 + [[None, 40.0]]},
    }
    record = {"model": "m", "sampler": "ddim", "timesteps": list(range(50)), "layers": layers, "quantized": None}
    record |= {"sensitivity": disturbed}
    assert [path.stem for path in draw(record, tmp_path)] == [
        *("activation_ranges", "channel_absmax", "kurtosis", "sensitivity"),
    ]
