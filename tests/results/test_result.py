"""A result is read and written without loss, and files of other versions are forgiven."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import measured
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.eval.measurement import Floor, Measurement
from dmqbench.results.record import (
    Artifacts,
    CalibrationPart,
    Cost,
    PlanFacts,
    Quantization,
    Run,
    Samples,
    Sizes,
    Timing,
)
from dmqbench.results.result import Result, records_of

STORE = Path(__file__).parents[1] / "recorded" / "store.tar.xz"
LEAST = {"method": "rtn", "model": "digits", "bits": "w4a6", "metrics": {}}

words = st.text("abc_/. é", min_size=1, max_size=6)
numbers = st.integers(0, 10**9) | st.floats(0, 1e9)
further = st.dictionaries(st.sampled_from(["new", "newer"]), st.none() | words | st.lists(numbers, max_size=2))


def some(values):
    return st.none() | values


def parts(kind, **entries):
    return st.builds(kind, **{name: some(values) for name, values in entries.items()}, further=further)


intervals = some(st.tuples(numbers, numbers))
floors = st.builds(Floor, st.sampled_from(["numerical", "other_seed"]), some(numbers), st.integers(1, 9), intervals)
measurements = st.builds(
    Measurement,
    value=numbers,
    ci95=intervals,
    n=st.integers(1, 9),
    protocol=st.sampled_from(["psnr/1 n=4 #00000000", "fd/2 seed=0 #0123abcd"]),
    exact=st.booleans(),
    higher_is_better=some(st.booleans()),
    floor=some(floors),
    extra=st.dictionaries(words, st.lists(numbers, max_size=3), max_size=2),
    further=further,
)
by_name = st.dictionaries(st.sampled_from(["psnr", "stand-in-fid", "fd"]), measurements)
costs = st.builds(
    Cost,
    bops=some(numbers),
    size_mib=parts(Sizes, all_layers=numbers, packed=numbers),
    full_precision_names=some(st.lists(words, max_size=2)),
    simulated=some(st.booleans()),
    further=further,
)
artifacts = st.builds(
    Artifacts,
    trajectories=some(words),
    stages=some(st.lists(st.tuples(words, words), max_size=3).map(tuple)),
    further=further,
)
calibration = st.lists(parts(CalibrationPart, seconds=numbers, peak_memory_mib=numbers), max_size=2).map(tuple)
runs = st.builds(
    Run,
    variant=some(words),
    task_kind=st.sampled_from(["generate", "edit"]),
    strength=some(numbers),
    artifacts=artifacts,
    plan=some(parts(PlanFacts, hash=words, mean_weight_bits=numbers)),
    calibration=calibration,
)
results = st.builds(
    Result,
    job_id=words,
    method=words,
    model_name=words,
    quantization=st.builds(Quantization, bits=words, scope=some(words), ranges=some(words))
    | st.builds(Quantization, bits=words, name=words, declared=st.sampled_from([(), ("bits",)])),
    dataset=some(words),
    seed=st.integers(0, 9),
    embedded=st.booleans(),
    config=st.dictionaries(words, st.dictionaries(words, numbers, max_size=2), max_size=2),
    samples=parts(Samples, quantized=words, fp=words, input=words),
    measured=by_name,
    records=by_name.map(records_of),
    unavailable=st.dictionaries(words, words, max_size=2),
    missing_weights=st.lists(words, max_size=2).map(tuple),
    cost=costs,
    timing=parts(Timing, calibrate_s=numbers, diagnose_s=numbers, unet_forwards_calibration=numbers),
    environment=st.dictionaries(words, words, max_size=2),
    run=some(runs),
    notes=some(st.lists(words, max_size=2).map(tuple)),
    further=further,
)


@given(results)
def test_what_was_written_is_read(result):
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def recorded() -> list[dict]:
    with tarfile.open(STORE) as archive:
        files = [archive.extractfile(name) for name in archive.getnames() if name.endswith("/result.json")]
        return [json.load(file) for file in files if file is not None]


def test_recorded_results_are_written_as_they_were():
    records = recorded()
    assert len(records) == 7
    assert [Result.from_json(record).to_json() for record in records] == records


@pytest.mark.parametrize("key", ["records", "plan", "calibration", "cost", "timing", "artifacts", "config", "samples"])
def test_an_older_file_lacks_an_entry(key):
    for record in recorded():
        older = {name: value for name, value in record.items() if name != key}
        read = Result.from_json(older)
        assert read.measured == Result.from_json(record).measured
        assert older.items() <= read.to_json().items()


def test_the_oldest_file_says_least():
    read = Result.from_json(LEAST, Path("runs/result/0123456789abcdef"))
    assert (read.job_id, read.label, read.model, read.seed) == ("0123456789abcdef", "rtn", "digits", 0)
    assert (read.task, read.given_plan, read.stages, read.calibration) == (None, None, (), ())
    assert (read.size_mib, read.calibration_seconds, read.calibration_calls) == (None, None, 0)
    assert read.samples.ids == {"fp": None, "quantized": None, "input": None}
    assert read.run is None and read.settings("budget") == {}


def test_an_older_file_does_not_tell_missing_weights_from_other_reasons():
    unavailable = {"fid": "no weights", "clip": "no prompts"}
    assert Result.from_json(LEAST | {"unavailable": unavailable}).missing_weights == ("fid", "clip")
    told = LEAST | {"unavailable": unavailable, "missing_weights": ["fid"]}
    assert Result.from_json(told).missing_weights == ("fid",)


def test_values_without_records_are_records():
    psnr = measured("psnr", 30.0)
    read = Result.from_json(LEAST | {"metrics": {"psnr": psnr}})
    assert read.records == {("psnr", psnr["protocol"]): read.measured["psnr"]}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"metrics": {"psnr": {"value": 1.0, "n": 4}}}, "is no result \\(KeyError: 'protocol'\\)"),
        ({"metrics": {"psnr": {"value": 1.0, "n": 4, "protocol": "psnr"}}}, "a value needs its protocol id"),
        ({"metrics": 5}, "is no result"),
        ({"cost": 5}, "is no result"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, entries, problem):
    (tmp_path / "result.json").write_text(json.dumps(LEAST | entries))
    with pytest.raises(ValueError, match=problem) as refused:
        Result.load(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "path", "label"),
    [
        ("local", "/somewhere/my_unet", "my_unet"),
        ("local", "/somewhere/my_unet/", "my_unet"),
        ("hub", "owner/name", "owner/name"),
        ("digits", None, "digits"),
        ("sd14", "/somewhere/checkpoint", "sd14"),
    ],
)
def test_a_model_of_ones_own_is_called_by_its_own_name(model, path, label):
    read = Result.from_json(LEAST | {"model": model, "config": {"model": {"path": path}}})
    assert read.model == label
    assert read.to_json()["model"] == model


def test_a_stand_in_is_no_measurement():
    metrics = {"psnr": measured("psnr", 30.0), "stand-in-lpips": measured("lpips", 0.1)}
    read = Result.from_json(LEAST | {"metrics": metrics})
    assert [*read.measurements] == ["psnr"] and [*read.measured] == [*metrics]
    assert read.value("psnr") == 30.0 and read.value("lpips") is None


def test_the_folder_is_no_part_of_the_content():
    read = Result.from_json(LEAST)
    assert replace(read, folder=Path("elsewhere")) == read
