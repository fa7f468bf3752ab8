"""Statistics against NumPy and SciPy on captured activations, the pictures, and the artifact of a whole job."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from e2e.commands import TINY
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image
from scipy import stats
from tiny import dit, text_unet, unet
from workbench import workbench

from dmqbench.anatomy.statistics import Moments, input_statistics, short, weight_statistics
from dmqbench.calibration.capture import capture_inputs
from dmqbench.cli import parse_arguments
from dmqbench.config.ids import JobIds
from dmqbench.launch.sweeps import plan
from dmqbench.results.plots import anatomy as pictures
from dmqbench.results.plots import low_bits
from dmqbench.results.plots.anatomy import PICTURES, draw
from dmqbench.results.plots.render import render
from dmqbench.tasks import anatomy
from dmqbench.tasks.anatomy import anatomy_id
from dmqbench.tasks.anatomy import carry_out as make_anatomy

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


@costly(50)
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
        bench.denoising,
        bench.topology,
        bench.bank.cal,
        members=4,
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
            inputs = capture_inputs(bench.denoising, module, bench.bank.cal, points, 3)
            x = inputs.arguments[0][0][:].double().numpy()
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
    return plan(parse_arguments([f"store.root={store}", *TINY, "budget.trajectories=4", *overrides]))[0].job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    job = planned(tmp_path_factory.mktemp("store"), "method=rtn", "bits=w4a6", "bits.ranges=shared")
    return make_anatomy(job)


def test_a_job_leaves_its_numbers_and_pictures(folder):
    record = json.loads((folder / "anatomy.json").read_text())
    assert (record["model"], record["method"], record["bits"], record["trajectories"]) == ("ladder_1", "rtn", "w4a6", 4)
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
    features, codes = record["features"], record["features"]["codes"]
    assert codes["levels"] == 2**6 and set(codes["names"]) == set(quantized["layers"]["names"])
    assert {len(features[key]) for key in ("relative_error", "cosine", "change", "change_quantized")} == {4}
    assert {len(codes[key]) for key in ("mean_used", "mean_effective")} == {4}
    assert features["change"][0] is None and min(features["relative_error"]) > 0 and max(features["cosine"]) < 1
    assert record["rounded_to"] == [4]
    rows = {layer["name"]: layer["weight"]["rows"] for layer in layers}
    assert all(len(rows[layer["name"]]["kurtosis"]) == layer["weight_shape"][0] for layer in layers)
    heaviest = max((layer for layer in layers if not layer["embedding"]),
                   key=lambda layer: max(rows[layer["name"]]["kurtosis"]))["name"]  # fmt: skip
    assert record["row_histograms"]["layer"] == heaviest
    assert record["row_histograms"]["rows"][0]["kurtosis"] == max(rows[heaviest]["kurtosis"])
    assert {path.stem for path in folder.glob("*.png")} == set(PICTURES)
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5  # something is drawn


def test_full_precision_has_no_pictures_of_errors_and_is_made_once(folder, monkeypatch):
    job = planned(folder.parents[1], "method=fp")
    monkeypatch.setattr(pictures, "save", lambda figure, path: path.touch() or path)  # how they look is no matter here
    first = make_anatomy(job)
    record = json.loads((first / "anatomy.json").read_text())
    assert record["quantized"] is None and record["features"] is None and record["rounded_to"] == [2, 3, 4]
    assert {path.stem for path in first.glob("*.png")} == set(PICTURES) - {
        *("layer_errors", "step_errors", "activation_codes", "features"),
    }
    monkeypatch.setattr(anatomy, "examine", None)
    assert make_anatomy(job) == first


def test_quantizable_layers_do_not_change_what_is_said_of_the_model(folder):
    """Statistics are of the full-precision model, whether or not its layers were exchanged before."""
    paths = (folder, make_anatomy(planned(folder.parents[1], "method=fp")))
    one, other = (json.loads((path / "anatomy.json").read_text()) for path in paths)
    for a, b in zip(one["layers"], other["layers"], strict=True):
        assert a["name"] == b["name"]
        assert a["input"]["absmax"] == pytest.approx(b["input"]["absmax"], rel=1e-4)
        rows = [layer["weight"].pop("rows") for layer in (a, b)]
        assert a["weight"] == b["weight"] and rows[0]["kurtosis"] == rows[1]["kurtosis"]
        assert rows[0]["rounding"]["4"] == rows[1]["rounding"]["4"]
    assert one["sensitivity"]["mse"] == pytest.approx(other["sensitivity"]["mse"], rel=1e-3)


def test_pictures_of_a_model_without_skips_and_of_many_layers(tmp_path):
    """No skip, no variation, undefined kurtosis, more layers than labels: every picture that applies is drawn."""
    flat = {"min": 0.0, "max": 0.0, "mean": 0.0, "std": 0.0, "kurtosis": None, "absmax": 0.0}
    wide = {name: [value] * 50 for name, value in flat.items()}
    no_shares = {"2": {"by_kurtosis": None, "by_error": None}}
    layers = [
        {
            "name": f"blocks.{number}.a_layer_with_quite_a_long_name.projection",
            "boundaries": [],
            "input": flat,
            "embedding": False,
            "weight_shape": [7, 8],
            "weight": flat | {"rows": {"kurtosis": [None] * 7, "tenth": 0, "rounding": no_shares}},
            "steps": wide | {"absmax": [1.0 + number] * 50},
            "channels": {"absmax": [1.0] * 7 + [2.0 + number]},
            "skip": None,
        }
        for number in range(170)
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
    record |= {"sensitivity": disturbed, "features": None, "rounded_to": [2], "row_histograms": None}
    assert [path.stem for path in draw(record, tmp_path)] == [
        *("activation_ranges", "channel_absmax", "kurtosis", "sensitivity"),
    ]


def low_bit_record(features=None, bits=(2, 3)) -> dict:
    """Two layers of twelve rows and one of four; a network of one call."""
    kurtosis = [2.0 + 0.25 * row for row in range(12)]
    shares = {str(width): {"by_kurtosis": 0.1 * width, "by_error": 0.5} for width in bits}
    none = {str(width): {"by_kurtosis": None, "by_error": None} for width in bits}
    layers = [
        {"name": name, "weight_shape": [rows, 3], "weight": {"rows": own}}
        for name, rows, own in (
            ("a", 12, {"kurtosis": kurtosis, "tenth": 1, "rounding": shares}),
            ("b", 12, {"kurtosis": [8.0, None, *kurtosis[2:]], "tenth": 1, "rounding": shares}),
            ("c", 4, {"kurtosis": [None] * 4, "tenth": 0, "rounding": none}),
        )
    ]
    return {"model": "m", "method": "rtn", "bits": "w2a4", "layers": layers, "rounded_to": bits, "features": features}


def words_of(figure) -> str:
    """What stands below a figure, as it is drawn."""
    words = " ".join(found.get_text() for found in render(figure).findobj(Text))
    return " ".join(words.split())


def test_below_the_rows_stands_what_their_picture_shows():
    said = words_of(low_bits.weight_rows(low_bit_record()))
    assert "kurtosis of 23 rows: median 3.5, largest 8, above 6 in 1" in said
    assert "2 bits, median of 2 layers: the tenth of highest kurtosis carries 20.0%" in said and "3 bits" in said
    assert "that of largest error 50.0%; 8.3% if all rows erred alike" in said


def test_below_the_features_stands_how_much_they_change():
    features = {
        "trajectories": 2,
        "timesteps": [750, 500, 250, 0],
        "relative_error": [0.1] * 4,
        "cosine": [0.9] * 4,
        "change": [None, 0.1, 0.2, 0.4],
        "change_quantized": [None, 0.3, 0.4, 0.2],
        "codes": {
            "levels": 16,
            "mean_used": [15.0, 14.0, 13.0, 12.0],
            "mean_effective": [8.0, 7.0, 6.0, 5.0],
            "names": ["a", "b"],
            "effective": [[5.0] * 4, [3.0] * 4],
        },
    }
    record = low_bit_record(features)
    said = words_of(low_bits.features(record))
    assert "changes 2 times as much as that of full precision at the median call" in said
    assert "(0.5 to 3), and more than it at 2 of 3 calls" in said
    said = words_of(low_bits.activation_codes(record))
    assert "effective codes of 16: 8 at the first call, 5 at the last; fewest in b (3)" in said
    assert low_bits.activation_codes(low_bit_record({**features, "codes": None})) is None
    of_one_call = {**features, "timesteps": [0], "codes": None}
    of_one_call |= {key: features[key][:1] for key in ("relative_error", "cosine", "change", "change_quantized")}
    assert low_bits.features(low_bit_record(of_one_call)) is not None
