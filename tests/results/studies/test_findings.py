"""Findings are read where a manifest vouches for them, checked, and never an error."""

import json

import pytest
from handmade_findings import (
    ALLOCATION,
    POWERS,
    SCALING,
    TRAJECTORY,
    TUNING,
    FindingsBench,
    allocation,
    powers,
    scaling,
    trajectory,
    tuning,
)

from dmqbench.results.studies.findings import (
    FindingsReader,
    agreements,
    allocation_note,
    boundaries_of,
    candidates_title,
    end_errors,
    error_ratios,
    exponent_share,
    exponents_of,
    falling,
    groups_of,
    least_agreed,
    power_name,
    rows_of_steps,
    tuning_note,
    width_share,
    widths_of,
    window_centres,
)


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def only(bench: FindingsBench):
    [row] = bench.results()
    return FindingsReader(bench.root).of(row)


def test_findings_of_the_stages_that_are_shown_are_read(bench):
    stages = {SCALING: scaling(), "weight_range": None, POWERS: powers(), TRAJECTORY: trajectory()}
    stages |= {ALLOCATION: allocation(), TUNING: tuning()}
    bench.made("dmq", "w4a4", 30.0, stages)
    found = only(bench)
    assert (found.scaling, found.powers, found.trajectory, found.problem) == (scaling(), powers(), trajectory(), "")
    assert (found.allocation, found.tuning) == (allocation(), tuning())


def test_a_job_without_stages_findings_or_artifacts_has_none_and_no_problem(bench):
    bench.job("rtn", "w4a4", 20.0)
    bench.made("dmq", "w4a4", 30.0, {SCALING: None})
    bench.job("dmq", "w4a6", 30.0, artifacts={"stages": [[SCALING, "c" * 16]]})  # pruned from the store
    for row in bench.results():
        found = FindingsReader(bench.root).of(row)
        assert (found.scaling, found.powers, found.trajectory, found.problem) == (None, None, None, "")


def changed(found: dict, *path, value) -> str:
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(found)


LAYER = "blocks.0.conv"


@pytest.mark.parametrize(
    ("stage", "damage"),
    [
        (SCALING, "{"),
        (SCALING, "[]"),
        (SCALING, "{}"),
        (SCALING, changed(scaling(), "weighting", "bin_of_call", value=[0, 1, 9])),
        (SCALING, changed(scaling(), "weighting", "bin_of_call", value=[True])),
        (SCALING, changed(scaling(), "weighting", "error", value=[0.1])),
        (SCALING, changed(scaling(), "layers", LAYER, "disparity", value="large")),
        (SCALING, changed(scaling(), "layers", LAYER, "held_out_error", value=-1.0)),
        (SCALING, changed(scaling(), "channels", LAYER, "input_after", value=[1.0])),
        (SCALING, changed(scaling(), "channels", LAYER, "scale", value=[1.0, 1.0, 1.0, 1.0, True])),
        (SCALING, changed(scaling(), "channels", LAYER, "weight_before", value=["x"] * 5)),
        (POWERS, changed(powers(), "layers", LAYER, "agreement", value=[0.5])),
        (POWERS, changed(powers(), "layers", LAYER, "exponents", value={"2": 1})),
        (POWERS, changed(powers(), "layers", LAYER, "exponents", value={"-999999999": 1})),
        (POWERS, changed(powers(), "layers", LAYER, "exponents", value={"few": 1})),
        (POWERS, changed(powers(), "samples", value=0)),
        (POWERS, changed(powers(), "selection", value=None)),
        (POWERS, changed(powers(), "layers", value=None)),
        (TRAJECTORY, "{}"),
        (TRAJECTORY, changed(trajectory(), "spans", value=[])),
        (TRAJECTORY, changed(trajectory(), "spans", value=None)),
        (TRAJECTORY, changed(trajectory(), "settings", "horizon", value=0)),
        (TRAJECTORY, changed(trajectory(), "settings", "gradient", value=None)),
        (TRAJECTORY, changed(trajectory(), "spans", 0, "groups", value=[])),
        (TRAJECTORY, changed(trajectory(), "spans", 0, "groups", value=[[1, 1]])),
        (TRAJECTORY, changed(trajectory(), "spans", 0, "groups", value=[[0]])),
        (TRAJECTORY, changed(trajectory(), "spans", 1, "groups", value=[[3, 3]])),
        (TRAJECTORY, changed(trajectory(), "spans", 1, "groups", value=[[2, 1]])),
        (TRAJECTORY, changed(trajectory(), "spans", 1, "error_after", value=[0.1, 0.1])),
        (TRAJECTORY, changed(trajectory(), "spans", 1, "error_before", value=[-0.1])),
        (TRAJECTORY, changed(trajectory(), "spans", 0, "gradient_cosine", value=1.1)),
        (TRAJECTORY, changed(trajectory(), "spans", 0, "gradient_ratio", value="1")),
        (ALLOCATION, "{}"),
        (ALLOCATION, changed(allocation(), "layers", value=[])),
        (ALLOCATION, changed(allocation(), "mean_bits", value="2")),
        (ALLOCATION, changed(allocation(), "limit", value=3)),
        (ALLOCATION, changed(allocation(), "settings", "rows", value=None)),
        (ALLOCATION, changed(allocation(), "layers", 1, "bits", value=[2] * 9)),
        (ALLOCATION, changed(allocation(), "layers", 1, "bits", value=[2.5] * 10)),
        (ALLOCATION, changed(allocation(), "layers", 1, "bits", value=[0] * 10)),
        (ALLOCATION, changed(allocation(), "layers", 1, "errors", value=[0.1] * 7)),
        (ALLOCATION, changed(allocation(), "layers", 1, "errors", value=[])),
        (ALLOCATION, changed(allocation(), "layers", 1, "tenths", value=6)),
        (ALLOCATION, changed(allocation(), "layers", 1, "tenths", value=-1)),
        (ALLOCATION, changed(allocation(), "layers", 1, "moved", value="1")),
        (ALLOCATION, changed(allocation(), "layers", 1, "kurtosis", value=[3.0])),
        (TUNING, "{}"),
        (TUNING, changed(tuning(), "settings", "window", value=0)),
        (TUNING, changed(tuning(), "settings", "distillation", value=None)),
        (TUNING, changed(tuning(), "best_iteration", value=None)),
        (TUNING, changed(tuning(), "noise_error_after", value=[0.1])),
        (TUNING, changed(tuning(), "noise_error_before", value=[])),
        (TUNING, changed(tuning(), "distilled_error_after", value=None)),
        (TUNING, changed(tuning(), "distilled_error_before", value=[None] * 3)),
    ],
)
def test_damaged_findings_are_one_line_and_the_others_stay(bench, stage, damage):
    sound = {SCALING: scaling(), POWERS: powers(), TRAJECTORY: trajectory(), ALLOCATION: allocation(), TUNING: tuning()}
    bench.made("dmq", "w4a4", 30.0, sound | {stage: damage})
    found = only(bench)
    read = {SCALING: found.scaling, POWERS: found.powers, TRAJECTORY: found.trajectory}
    read |= {ALLOCATION: found.allocation, TUNING: found.tuning}
    assert read == sound | {stage: None}
    assert stage in found.problem and "damaged" in found.problem and "\n" not in found.problem


def test_a_file_that_was_changed_after_it_was_published_is_not_believed(bench):
    bench.made("dmq", "w4a4", 30.0, {SCALING: scaling()})
    [path] = (bench.root / "quantized").glob("*/findings.json")
    path.write_text(json.dumps(scaling(disparity=9.0)))
    assert only(bench).scaling is None and "damaged" in only(bench).problem


@pytest.mark.parametrize("stages", [[[SCALING, "../../etc"]], [[SCALING]], "abc", 7, [[SCALING, None]], {"a": 1}])
def test_a_damaged_list_of_stages_is_one_line(bench, stages):
    bench.job("dmq", "w4a4", 30.0, artifacts={"stages": stages})
    found = only(bench)
    assert found.scaling is None and found.problem.startswith("no findings")


def test_a_stage_that_jobs_share_is_read_once(bench, monkeypatch):
    shared = bench.stage(scaling())
    for bits in ("w4a4", "w4a6", "w4a8"):
        bench.job("dmq", bits, 30.0, artifacts={"stages": [[SCALING, shared]]})
    reads = []
    load = FindingsReader._read
    monkeypatch.setattr(FindingsReader, "_read", lambda self, *place: reads.append(place) or load(self, *place))
    reader = FindingsReader(bench.root)
    assert all(reader.of(row).scaling == scaling() for row in bench.results()) and len(reads) == 1


def test_numbers_that_figures_share():
    found = powers()
    assert rows_of_steps(found) == 4 and rows_of_steps({"layers": {}}) == 0
    assert exponents_of(found) == [0, -1, -2, -3]
    layer = found["layers"]["blocks.1.conv"]
    assert [exponent_share(layer, exponent) for exponent in (0, -1, -2, -3, -4)] == [5 / 9, 3 / 9, 0, 1 / 9, 0]
    assert exponent_share({"exponents": {}}, 0) == 0
    assert falling([1.0, 3.0, 3.0, 2.0]) == [1, 2, 3, 0]
    assert [power_name(exponent) for exponent in (0, -1, -3)] == ["the whole scale", "1/2", "1/8"]
    means = {name: sum(layer["agreement"]) for name, layer in found["layers"].items()}
    assert least_agreed(found) == sorted(means, key=lambda name: means[name])


def test_groups_of_calls_and_what_is_known_of_them():
    found = trajectory(horizon=3, calls=8, factor=0.5, cosine=None)
    assert groups_of(found) == [range(0, 3), range(3, 6), range(6, 8)]
    assert boundaries_of(found, 8) == [0, 3, 6, 8] and boundaries_of(found, 50) == [], "calibrated for 8 calls"
    assert end_errors(found, "before") == pytest.approx([0.03, 0.06, 0.08])
    assert end_errors(found, "after") == pytest.approx([0.015, 0.06, 0.04])
    assert list(agreements(found)) == [(calls, None, 1.2) for calls in groups_of(found)]


def test_groups_that_share_parameters_have_one_gradient():
    found = trajectory(horizon=2, calls=4)
    first, second = found["spans"]
    joined = {key: first[key] + second[key] for key in ("groups", "error_before", "error_after")}
    found["spans"] = [first | joined]
    assert groups_of(found) == [range(0, 2), range(2, 4)] and end_errors(found, "before") == [0.02, 0.04]
    assert list(agreements(found)) == [(range(0, 4), 0.9, 1.2)]


def test_what_mixed_precision_did_to_the_rows():
    found = allocation(layers=3)
    assert widths_of(found) == [1, 2, 3]
    last = found["layers"][2]
    assert [width_share(last, bits) for bits in (1, 2, 3, 4)] == pytest.approx([0.2, 0.6, 0.2, 0])
    assert error_ratios(last) == pytest.approx([1, 1.1 / 1.2, 1 / 1.2, 1.1 / 1.2, 1, 1.3 / 1.2])
    assert error_ratios({"errors": [0.0, 0.1]}) == [None, None]
    left = (1 * (1 / 1.1) * (1 / 1.2)) ** (1 / 3)
    said = "rows by kurtosis, 2 bits in the mean; 2 of 3 layers mixed; error over that of equal bits, geometric mean "
    assert allocation_note(found) == f"{said}{left:.3f}"
    assert "no weight has less" in allocation_note(found | {"limit": "no weight has less than 1 bit"})
    assert candidates_title(found).endswith("a bit less")
    assert candidates_title({"settings": {"plus": True}}) == "rows with a bit more"


def test_windows_lie_in_the_middle_of_their_calls():
    assert window_centres(tuning(window=3, calls=9)) == [1, 4, 7] and window_centres(tuning("none")) == []
    assert window_centres(tuning(window=3, calls=8)) == [1, 4, 6], "the last one ends with the last call"
    assert "relation over windows of 2 calls" in tuning_note(tuning()) and "windows" not in tuning_note(tuning("none"))
