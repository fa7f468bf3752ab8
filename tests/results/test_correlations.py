"""Correlations of proxies with a metric against NumPy and SciPy, and which jobs they leave out."""

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from dmqbench.results.correlations import FEWEST, PROXIES, correlate, correlations
from dmqbench.results.diagnosis import load_diagnosis
from dmqbench.results.result import Result


def diagnosis(layer=-2.0, injected=-3.0, accumulated=-1.0, **changes) -> dict:
    proxies = {"layer_error": layer, "injected_error": injected, "accumulated_error": accumulated}
    return {"version": 1, "timesteps": [1], "steps": {}, "layers": None, "proxies": proxies} | changes


def result(folder, value, found=None, **record) -> Result:
    folder.mkdir()
    if found is not None:
        (folder / "diagnosis.json").write_text(json.dumps(found))
    measured = {"value": value, "ci95": None, "n": 4, "protocol": "psnr/1 #00000000", "exact": value is None}
    metrics = {} if value is ... else {"psnr": measured}
    entries = {"method": "rtn", "model": "digits", "bits": "w4a6", "metrics": metrics}
    return Result.from_json(entries | record, folder)


def jobs(tmp_path, proxies, values) -> list[Result]:
    return [
        result(tmp_path / str(number), value, diagnosis(layer=proxy, injected=-proxy, accumulated=7.0))
        for number, (proxy, value) in enumerate(zip(proxies, values, strict=True))
    ]


def test_numbers_are_those_of_the_definitions(tmp_path):
    x, y = [-2.0, -1.5, -1.0, -0.4, 0.3], [31.0, 25.0, 27.0, 18.0, 16.0]
    layer, injected, accumulated = correlations(jobs(tmp_path, x, y))
    assert [found.proxy for found in (layer, injected, accumulated)] == list(PROXIES)
    pearson = np.corrcoef(x, y)[0, 1]
    assert layer.correlation is not None and injected.correlation is not None
    assert layer.correlation.pearson == pytest.approx(pearson)
    assert injected.correlation.pearson == pytest.approx(-pearson)
    assert layer.correlation.spearman == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    half = 1.959964 / np.sqrt(5 - 3)  # Fisher's transform of r is nearly normal with this width
    assert layer.correlation.ci95 == pytest.approx(
        np.tanh([np.arctanh(pearson) - half, np.arctanh(pearson) + half]), rel=1e-5
    )
    assert (layer.correlation.verdict, injected.correlation.verdict) == ("falls", "rises")
    assert [point.metric for point in layer.points] == y and layer.n == 5
    assert layer.points[0][:2] == ("rtn", "w4a6")
    assert accumulated.correlation is None  # the same for all jobs


def test_few_jobs_cannot_tell(tmp_path):
    found = correlations(jobs(tmp_path, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]))[0]
    assert (found.correlation, found.n) == (None, FEWEST - 1)
    assert correlations([])[0].n == 0


def test_jobs_without_a_point_are_left_out_and_counted(tmp_path):
    results = [
        *jobs(tmp_path, [1.0, 2.0], [3.0, 2.0]),
        result(tmp_path / "exact", None, diagnosis()),
        result(tmp_path / "undiagnosed", 5.0),
        result(tmp_path / "another", 5.0),
        result(tmp_path / "unmeasured", ..., diagnosis()),
        result(tmp_path / "no layers", 5.0, diagnosis(layer=None)),
    ]
    layer, injected, _ = correlations(results)
    assert layer.left_out == {
        "identical to full precision": 1,
        "without a diagnosis": 2,
        "without the metric": 1,
        "without this proxy": 1,
    }
    assert (layer.n, injected.n) == (2, 3)


def test_the_name_that_an_author_gave_is_the_label(tmp_path):
    found = correlations([result(tmp_path / "a", 5.0, diagnosis(), name="theirs")])[0]
    assert found.points[0].method == "theirs"


def test_a_diagnosis_is_read_or_refused(tmp_path):
    assert load_diagnosis(tmp_path) is None
    path = tmp_path / "diagnosis.json"
    path.write_text(json.dumps(diagnosis()))
    assert load_diagnosis(tmp_path) == diagnosis()
    path.write_text(json.dumps(diagnosis(version=2)))
    assert load_diagnosis(tmp_path) is None
    for text, problem in (("[1]", "not a diagnosis"), ('{"version": 1}', "lacks timesteps"), ("{", "not valid JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            load_diagnosis(tmp_path)


NUMBERS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=FEWEST, max_size=12)


@given(NUMBERS, st.floats(0.1, 10), st.floats(-5, 5))
def test_correlations_do_not_know_units(points, factor, offset):
    x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    found, scaled, negated = correlate(x, y), correlate(factor * x + offset, y), correlate(-x, y)
    assert found is not None and scaled is not None and negated is not None
    assert -1 - 1e-9 <= found[2].low <= found[0] + 1e-9 and found[0] - 1e-9 <= found[2].high <= 1 + 1e-9
    assert scaled[:2] == pytest.approx(found[:2], abs=1e-6)
    assert negated[:2] == pytest.approx([-found[0], -found[1]], abs=1e-6)
