"""Findings are read where a manifest vouches for them, checked, and never an error."""

import json
from dataclasses import replace
from pathlib import Path

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

import dmqbench
from dmqbench.results.studies import stage_findings
from dmqbench.results.studies.equivalent_scaling import EquivalentScaling, falling
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.low_rank_tuning import LowRankTuning
from dmqbench.results.studies.outlier_allocation import OutlierAllocation, candidate_errors
from dmqbench.results.studies.power_of_two_scaling import PowerOfTwoScaling, VotedLayer, power_name
from dmqbench.results.studies.trajectory_reconstruction import TrajectoryReconstruction

KINDS = {kind.stage: kind for kind in stage_findings()}


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def read(bench: FindingsBench, row=None) -> tuple[dict, str]:
    """The findings of a job by stage, and what is wrong with them."""
    row = row or bench.results()[0]
    reader = FindingsReader(bench.root)
    problems = dict.fromkeys(reader.problem(row, kind) for kind in KINDS.values())
    return {stage: reader.of(row, kind) for stage, kind in KINDS.items()}, "; ".join(filter(None, problems))


def sound_findings() -> dict:
    made = {SCALING: scaling(), POWERS: powers(), TRAJECTORY: trajectory(), ALLOCATION: allocation(), TUNING: tuning()}
    assert made.keys() == KINDS.keys()
    return made


def parsed(found: dict) -> dict:
    return {stage: KINDS[stage].from_json(one) for stage, one in found.items()}


def test_findings_of_the_stages_that_are_shown_are_read(bench):
    bench.made("dmq", "w4a4", 30.0, sound_findings() | {"weight_range": None})
    assert read(bench) == (parsed(sound_findings()), "")


def test_what_a_file_says_is_what_is_known():
    made = sound_findings()
    found = parsed(made)
    scaled, layer = found[SCALING], made[SCALING]["channels"][LAYER]
    assert vars(scaled.channels[LAYER]) == {key: tuple(values) for key, values in layer.items()}
    assert vars(scaled.layers[LAYER]) == {"error_before": 0.4, "error": 0.2, "disparity": 3.0}
    weighting = made[SCALING]["weighting"]
    assert scaled.weighting.weights == tuple(weighting["lambda"]) and scaled.weighting.name == "adaptive"
    assert scaled.weighting.errors == tuple(weighting["error"]) and scaled.weighting.bin_of_call == (0, 1, 2, 3)
    voted, wanted = found[POWERS].layers["blocks.1.conv"], made[POWERS]["layers"]["blocks.1.conv"]
    assert voted.exponents == {-3: 1, -2: 0, -1: 3, 0: 5} and voted.agreement == tuple(wanted["agreement"])
    assert (voted.scaled, voted.error_before, voted.error) == (3 / 8, 0.8, 0.4)
    assert (found[POWERS].selection, found[POWERS].samples) == ("vote", 80)
    assert (found[TRAJECTORY].horizon, found[TRAJECTORY].gradient) == (2, "identity")
    rows, wanted = found[ALLOCATION].layers[2], made[ALLOCATION]["layers"][2]
    assert rows.bits == tuple(wanted["bits"]) and (rows.tenths, rows.moved) == (2, 2)
    assert rows.errors == tuple(wanted["errors"]) and rows.kurtosis == tuple(wanted["kurtosis"])
    tuned = found[TUNING]
    assert (tuned.rank, tuned.distillation, tuned.window, tuned.best_iteration) == (32, "relation", 2, 80)
    assert tuned.noise["after"] == tuple(made[TUNING]["noise_error_after"])
    assert tuned.distilled["before"] == tuple(made[TUNING]["distilled_error_before"])


def test_a_job_without_stages_findings_or_artifacts_has_none_and_no_problem(bench):
    bench.job("rtn", "w4a4", 20.0)
    bench.made("dmq", "w4a4", 30.0, {SCALING: None})
    bench.job("dmq", "w4a6", 30.0, artifacts={"stages": [[SCALING, "c" * 16]]})  # pruned from the store
    for row in bench.results():
        assert read(bench, row) == (dict.fromkeys(KINDS), "")


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
    bench.made("dmq", "w4a4", 30.0, sound_findings() | {stage: damage})
    found, problem = read(bench)
    assert found == parsed(sound_findings()) | {stage: None}
    assert stage in problem and "damaged" in problem and "\n" not in problem


def test_a_file_that_was_changed_after_it_was_published_is_not_believed(bench):
    bench.made("dmq", "w4a4", 30.0, {SCALING: scaling()})
    [path] = (bench.root / "quantized").glob("*/findings.json")
    path.write_text(json.dumps(scaling(disparity=9.0)))
    found, problem = read(bench)
    assert found[SCALING] is None and "damaged" in problem


@pytest.mark.parametrize("stages", [[[SCALING, "../../etc"]], [[SCALING]], "abc", 7, [[SCALING, None]], {"a": 1}])
def test_a_damaged_list_of_stages_is_one_line(bench, stages):
    bench.job("dmq", "w4a4", 30.0, artifacts={"stages": stages})
    found, problem = read(bench)
    assert found[SCALING] is None and problem.startswith("no findings") and problem.count("no findings") == 1


def test_a_stage_that_jobs_share_is_read_once(bench, monkeypatch):
    shared = bench.stage(scaling())
    for bits in ("w4a4", "w4a6", "w4a8"):
        bench.job("dmq", bits, 30.0, artifacts={"stages": [[SCALING, shared]]})
    reads = []
    load = FindingsReader._read
    monkeypatch.setattr(FindingsReader, "_read", lambda self, *place: reads.append(place) or load(self, *place))
    reader, wanted = FindingsReader(bench.root), EquivalentScaling.from_json(scaling())
    assert all(reader.of(row, EquivalentScaling) == wanted for row in bench.results()) and len(reads) == 1


def test_numbers_that_figures_share():
    found = PowerOfTwoScaling.from_json(powers())
    assert found.rows == 4 and PowerOfTwoScaling.from_json(powers(layers=0)).rows == 0
    assert found.exponents == [0, -1, -2, -3]
    layer = found.layers["blocks.1.conv"]
    assert [layer.share(exponent) for exponent in (0, -1, -2, -3, -4)] == [5 / 9, 3 / 9, 0, 1 / 9, 0]
    assert VotedLayer({}, (), 0.0, 0.0, 0.0).share(0) == 0
    assert falling((1.0, 3.0, 3.0, 2.0)) == [1, 2, 3, 0]
    assert [power_name(exponent) for exponent in (0, -1, -3)] == ["the whole scale", "1/2", "1/8"]
    means = {name: sum(layer.agreement) for name, layer in found.layers.items()}
    assert found.least_agreed == sorted(means, key=lambda name: means[name])


def gradients(found: TrajectoryReconstruction) -> list:
    return [(span.calls, span.cosine, span.ratio) for span in found.spans]


def test_groups_of_calls_and_what_is_known_of_them():
    found = TrajectoryReconstruction.from_json(trajectory(horizon=3, calls=8, factor=0.5, cosine=None))
    assert found.groups == [range(0, 3), range(3, 6), range(6, 8)]
    assert found.boundaries(8) == [0, 3, 6, 8] and found.boundaries(50) == [], "calibrated for 8 calls"
    assert found.errors["before"] == pytest.approx([0.03, 0.06, 0.08])
    assert found.errors["after"] == pytest.approx([0.015, 0.06, 0.04])
    assert gradients(found) == [(calls, None, 1.2) for calls in found.groups]


def test_groups_that_share_parameters_have_one_gradient():
    made = trajectory(horizon=2, calls=4)
    first, second = made["spans"]
    joined = {key: first[key] + second[key] for key in ("groups", "error_before", "error_after")}
    found = TrajectoryReconstruction.from_json(made | {"spans": [first | joined]})
    assert found.groups == [range(0, 2), range(2, 4)] and found.errors["before"] == [0.02, 0.04]
    assert gradients(found) == [(range(0, 4), 0.9, 1.2)]


def test_what_mixed_precision_did_to_the_rows():
    made = allocation(layers=3)
    found = OutlierAllocation.from_json(made)
    assert found.widths == [1, 2, 3]
    last = found.layers[2]
    assert [last.share(bits) for bits in (1, 2, 3, 4)] == pytest.approx([0.2, 0.6, 0.2, 0])
    assert last.ratios == pytest.approx([1, 1.1 / 1.2, 1 / 1.2, 1.1 / 1.2, 1, 1.3 / 1.2])
    assert replace(last, errors=(0.0, 0.1)).ratios == [None, None]
    left = (1 * (1 / 1.1) * (1 / 1.2)) ** (1 / 3)
    said = "rows by kurtosis, 2 bits in the mean; 2 of 3 layers mixed; error over that of equal bits, geometric mean "
    assert found.note == f"{said}{left:.3f}"
    limited = OutlierAllocation.from_json(made | {"limit": "no weight has less than 1 bit"})
    assert "no weight has less" in limited.note
    only_more = OutlierAllocation.from_json(made | {"settings": made["settings"] | {"plus": True}})
    titles = [candidate_errors(one).panels[0].x.title for one in (found, only_more)]
    assert titles[0].endswith("a bit less") and titles[1] == "rows with a bit more"


def test_windows_lie_in_the_middle_of_their_calls():
    def centres(**facts) -> list[float]:
        return LowRankTuning.from_json(tuning(**facts)).window_centres

    assert centres(window=3, calls=9) == [1, 4, 7] and centres(distillation="none") == []
    assert centres(window=3, calls=8) == [1, 4, 6], "the last one ends with the last call"
    notes = [LowRankTuning.from_json(tuning(distillation)).note for distillation in ("relation", "none")]
    assert "relation over windows of 2 calls" in notes[0] and "windows" not in notes[1]


def test_studies_are_about_stages_that_there_are():
    assert {*KINDS} <= {path.stem for path in (Path(dmqbench.__file__).parent / "stages").glob("*.py")}
