"""Low-rank tuning that is stopped, inside a unit and between two, goes on to the same bits."""

from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tuning import interrupted, ranged, run, stage_of

from dmqbench.calibration.checkpoint import PROGRESS, UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.quant.spec import BitWidth

ALONE = {"seed": 3}
KINDS = {
    "noise alone": (ALONE, {}),
    "relation": ({}, {"distillation": "relation"}),
    "guided, lazily moved rows": ({"guidance": 2.0}, {"batch": 2}),
    "weights alone": ({"bits": BitWidth(3, 32)}, {}),
    "activations alone": ({"bits": BitWidth(32, 4)}, {}),
}
LENGTH = {"iterations": 5, "checks": 3}
"""Units of two, two and one iterations."""


@pytest.fixture(autouse=True)
def one_thread():
    """Sums must be split alike in runs that are compared to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def whole(kind):
    """A stage that was carried out without a break, to be looked at only."""
    options, changed = KINDS[kind]
    return run(ranged(**options), **LENGTH, **changed)


def finish(stage, path):
    checkpoint = UnitCheckpoint(path)
    checkpoint.resume(stage)
    run_stage(stage, "cpu", [checkpoint])
    return stage


def units_done(path):
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["units_done"])


def assert_same(stage, expected):
    state, wanted = stage.state(), expected.state()
    assert state.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(state[name], wanted[name]), name
    assert stage.findings() == expected.findings()
    assert stage.network_forwards == expected.network_forwards


def carried(path):
    return {name.removeprefix(PROGRESS) for name in load_file(path) if name.startswith(PROGRESS)}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_every_unit_it_goes_on_to_the_same_bits_and_findings(kind, tmp_path):
    options, changed = KINDS[kind]
    settings, expected = {**LENGTH, **changed}, whole(kind)
    assert expected.findings()["best_iteration"] > 0
    path, units = tmp_path / "checkpoint.safetensors", expected.units()
    assert [expected.iterations(unit) for unit in units] == [2, 2, 1]
    curves = []
    for number, unit in enumerate(units):
        stage = stage_of(ranged(**options), interrupted((number, expected.iterations(unit) - 1)), **settings)
        with pytest.raises(KeyboardInterrupt):
            finish(stage, path)
        assert not path.exists() if number == 0 else units_done(path) == number
        curves += stage.bench.record.of("curve")
    last = finish(stage_of(ranged(**options), **settings), path)
    assert_same(last, expected)
    assert curves + last.bench.record.of("curve") == expected.bench.record.of("curve")
    done = stage_of(ranged(**options), **settings)  # killed between its last unit and its artifact
    UnitCheckpoint(path).resume(done)
    assert done.first_unit == len(units)
    assert_same(done, expected)


def test_between_units_a_checkpoint_holds_what_the_next_one_needs_and_at_the_end_facts_alone(tmp_path):
    path, settings = tmp_path / "checkpoint.safetensors", {**LENGTH, "distillation": "relation"}
    with pytest.raises(KeyboardInterrupt):
        finish(stage_of(ranged(), interrupted((1, 0)), **settings), path)
    between = carried(path)
    assert {name.partition(":")[0] for name in between} == {"facts", "variable", "best", "adam"}
    names = {name for name in load_file(path) if not name.startswith(PROGRESS)}
    assert any(name.endswith("adapter_up") for name in names)
    assert not any(name.endswith(("codes", ".weight", ".bias")) for name in names)
    finish(stage_of(ranged(), **settings), path)
    steps = {name for name in between if name.startswith("facts:step ")}
    wanted = {f"facts:{part} {when}" for part in ("noise", "distilled") for when in ("before", "after")}
    assert carried(path) == steps | wanted | {"facts:best iteration"}
    names = {name for name in load_file(path) if not name.startswith(PROGRESS)}
    assert not any("adapter" in name for name in names)


def test_it_does_not_go_on_where_the_first_units_state_is_damaged(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finish(stage_of(ranged(**ALONE), interrupted((2, 0)), **LENGTH), path)
    path.write_bytes(path.read_bytes()[:-64])
    bench = ranged(**ALONE)
    assert_same(finish(stage_of(bench, **LENGTH), path), whole("noise alone"))
    assert len(bench.record.of("checkpoint_discarded")) == 1
