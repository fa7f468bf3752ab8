"""A result that is written again keeps what was measured before, and what only other versions know."""

import json
from dataclasses import replace

import pytest
from handmade import measured

from dmqbench.eval.evaluate import Evaluation
from dmqbench.eval.measurement import Measurement
from dmqbench.results.record import Cost, Timing
from dmqbench.results.result import Result, records_of
from dmqbench.store.artifacts import Store
from dmqbench.tasks.result import extended, write_result

ID = "0123456789abcdef"
LEAST = {"job_id": ID, "method": "rtn", "model": "digits", "bits": "w4a6"}


def made(found: dict, **entries) -> tuple[Result, Evaluation]:
    """A result, and the evaluation from which it is."""
    per_image = {name: [1.0] for name in found}
    measurements = {name: Measurement.from_json(record) for name, record in found.items()}
    result = Result.from_json(LEAST | {"metrics": found} | entries)
    return result, Evaluation(measurements, result.unavailable, [], per_image)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def content(written: Result) -> dict:
    return json.loads((written.folder / "result.json").read_text())


def test_what_is_not_measured_now_stays(store):
    write_result(store, *made({"psnr": measured("psnr", 30.0), "ssim": measured("ssim", 0.5)}), None)
    again = write_result(store, *made({"psnr": measured("psnr", 31.0, n=128)}), None)
    assert content(again) == again.to_json()
    assert (again.value("psnr"), again.value("ssim")) == (31.0, 0.5)
    psnr = [found.value for (metric, _), found in again.records.items() if metric == "psnr"]
    assert psnr == [30.0, 31.0], "another n is another protocol, and both are kept"
    assert json.loads((again.folder / "per_image.json").read_text()).keys() == {"psnr", "ssim"}


def test_a_record_of_the_same_protocol_is_replaced(store):
    write_result(store, *made({"psnr": measured("psnr", 30.0)}), None)
    again = write_result(store, *made({"psnr": measured("psnr", 29.0)}), None)
    assert [found.value for found in again.records.values()] == [29.0]


def test_what_is_no_longer_to_be_had_is_no_value(store):
    write_result(store, *made({"psnr": measured("psnr", 30.0), "ssim": measured("ssim", 0.5)}), None)
    again = write_result(store, *made({"psnr": measured("psnr", 30.0)}, unavailable={"ssim": "too small"}), None)
    assert [*again.measured] == ["psnr"] and again.unavailable == {"ssim": "too small"}
    assert {metric for metric, _ in again.records} == {"psnr", "ssim"}


def test_entries_of_another_version_survive(store):
    newer = {"idea": {"a": 1}, "cost": {"joules": 5}, "timing": {"export_s": 1.5, "calibrate_s": 1.0}}
    record = measured("ssim", 0.5) | {"device": "x"}
    first, evaluation = made({"ssim": record}, **newer)
    write_result(store, first, evaluation, None)
    again = content(write_result(store, *made({"psnr": measured("psnr", 30.0)}, timing={"calibrate_s": 2.0}), None))
    assert (again["idea"], again["cost"]["joules"], again["timing"]["export_s"]) == ({"a": 1}, 5, 1.5)
    assert again["timing"]["calibrate_s"] == 2.0
    assert again["metrics"]["ssim"] == record


def test_what_was_looked_up_took_no_time():
    old, _ = made({}, timing={"sample_s": 7.0, "diagnose_s": 3.0, "evaluate_s": 2.0})
    new = replace(old, timing=Timing(sample_s=0.0, diagnose_s=4.0, evaluate_s=1.0), cost=Cost(bops=3))
    found = extended(old, new)
    assert (found.timing.sample_s, found.timing.diagnose_s, found.timing.evaluate_s) == (7.0, 4.0, 1.0)
    assert found.cost.bops == 3 and found.records == records_of(found.measured)
