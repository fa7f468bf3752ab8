"""Stages that are killed, damaged or diverge: the same bits after a resumption, and nothing lost."""

import os
import signal

import pytest
import torch
from forks import forked
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from workbench import ACTIVATION_RANGE, ACTIVATION_RECONSTRUCTION, MSE, WEIGHT_RECONSTRUCTION, workbench

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import CalibrationDiverged
from dmqbench.quant.layers import freeze_weight_, quant_layers
from dmqbench.quant.spec import BitWidth
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.reconstruction import ActivationReconstruction, WeightReconstruction


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums may be split over threads, and the killed process must have split them alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(bench, cls=WeightReconstruction, **settings):
    """A stage of learned rounding, with the ranges that it starts from."""
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    return cls.of(bench, **WEIGHT_RECONSTRUCTION, **settings)


def activations(bench, cls=ActivationReconstruction, **settings):
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    freeze_weight_(bench.network)
    run_stage(ActivationRange.of(bench, **ACTIVATION_RANGE), "cpu", [])
    return cls.of(bench, **ACTIVATION_RECONSTRUCTION, **settings)


def finish(stage, path):
    checkpoint = UnitCheckpoint(path)
    checkpoint.resume(stage)
    run_stage(stage, "cpu", [checkpoint])
    return stage.state()


def assert_same_bits(state, expected):
    assert state.keys() == expected.keys()
    for name in expected:
        assert state[name].dtype == expected[name].dtype
        assert torch.equal(state[name], expected[name]), name


@pytest.fixture(scope="module")
def uninterrupted():
    stage = weights(workbench())
    run_stage(stage, "cpu", [])
    return stage.state()


def units_done(path):
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["units_done"])


def interrupted(base, end, error):
    """A stage class that raises ``error`` at (number of the unit, iteration)."""

    class Interrupted(base):
        def iterate(self, unit, iteration):
            if (self.units().index(unit), iteration) == end:
                raise error
            return super().iterate(unit, iteration)

    return Interrupted


def killed(path, *end):
    """What a process does that gets SIGKILL at the start of one iteration."""

    class Killed(WeightReconstruction):
        def iterate(self, unit, iteration):
            if (self.units().index(unit), iteration) == end:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().iterate(unit, iteration)

    run_stage(weights(workbench(), Killed), "cpu", [UnitCheckpoint(path)])


def test_a_stage_killed_inside_a_unit_and_resumed_gives_the_same_bits(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with forked(killed, path, 3, 4, folder=tmp_path) as process:
        status, _, errors = process.wait(120)
    assert status == -signal.SIGKILL, errors
    assert units_done(path) == 3
    bench = workbench()
    stage = weights(bench)
    assert_same_bits(finish(stage, path), uninterrupted)
    assert [event["unit"] for event in bench.record.of("unit")][1:] == list(stage.units()[3:])
    assert [name.name for name in tmp_path.iterdir()] == [path.name]


def test_the_peak_of_memory_is_that_of_all_runs(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr("dmqbench.calibration.stage.memory_facts", lambda device: {"peak_memory_mib": 700})
    with pytest.raises(KeyboardInterrupt):
        finish(weights(workbench(), interrupted(WeightReconstruction, (2, 0), KeyboardInterrupt)), path)
    for peak, expected in ((600, 700), (800, 800)):
        monkeypatch.setattr(
            "dmqbench.calibration.stage.memory_facts", lambda device, peak=peak: {"peak_memory_mib": peak}
        )
        stage = weights(workbench())
        finish(stage, path)
        stage.note_memory()
        assert stage.peaks == {"peak_memory_mib": expected}


@pytest.mark.parametrize("end", [(0, 2), (1, 0), (5, 5)])
def test_ctrl_c_keeps_the_finished_units(uninterrupted, tmp_path, end):
    path = tmp_path / "checkpoint.safetensors"
    stage = weights(workbench(), interrupted(WeightReconstruction, end, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finish(stage, path)
    assert path.exists() == (end[0] > 0)
    if path.exists():
        assert units_done(path) == end[0]
    stage = weights(workbench())
    assert_same_bits(finish(stage, path), uninterrupted)


def test_interrupted_at_every_unit_in_turn(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    for unit in (1, 3, 5):
        stage = weights(workbench(), interrupted(WeightReconstruction, (unit, 1), KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finish(stage, path)
    assert_same_bits(finish(weights(workbench()), path), uninterrupted)


def test_learned_activation_steps_are_resumed_to_the_same_bits(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    reference = activations(workbench())
    run_stage(reference, "cpu", [])
    stage = activations(workbench(), interrupted(ActivationReconstruction, (4, 3), KeyboardInterrupt))
    before = stage.state()
    with pytest.raises(KeyboardInterrupt):
        finish(stage, path)
    state = finish(activations(workbench()), path)
    assert_same_bits(state, reference.state())
    scales = [name for name in state if name.endswith("activation_quantizer.scale")]
    assert sum(not torch.equal(state[name], before[name]) for name in scales) > len(scales) / 2


def test_a_finished_stage_does_nothing_more(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    first = finish(weights(workbench()), path)
    bench = workbench()
    stage = weights(bench)
    bench.record.events.clear()
    assert_same_bits(finish(stage, path), first)
    assert bench.record.events == []


def test_progress_and_cost_travel_with_the_state(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stage = weights(workbench(), interrupted(WeightReconstruction, (4, 0), KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finish(stage, path)
    resumed = weights(workbench())
    UnitCheckpoint(path).resume(resumed)
    assert resumed.first_unit == 4
    assert 0 < resumed.network_forwards <= stage.network_forwards
    assert resumed.watch == stage.watch and stage.watch.seconds > 0 and stage.watch.processor_seconds > 0
    done = {layer for unit in resumed.units()[:4] for layer in quant_layers(resumed.module(unit))}
    assert done
    fixed = [layer.fixed_weight is not None for layer in quant_layers(resumed.bench.network).values()]
    assert 0 < sum(fixed) < len(fixed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The content of a checkpoint after four units."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    stage = weights(workbench(), interrupted(WeightReconstruction, (4, 0), KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finish(stage, path)
    return path.read_bytes()


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


def progress_raised(content):
    """The same tensors, with another number of finished units."""
    return content.replace(b'"units_done":"4"', b'"units_done":"5"')


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "not a checkpoint": lambda content: b"hello" * 100,
    "zeroed": lambda content: bytes(len(content)),
    "a bit flipped in the last tensor": lambda content: flipped(content, len(content) - 3),
    "a bit flipped in the middle": lambda content: flipped(content, len(content) // 2),
    "another progress": progress_raised,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_discarded_with_a_line(checkpoint, damage, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    content = damage(checkpoint)
    assert content != checkpoint
    path.write_bytes(content)
    bench = workbench()
    stage = weights(bench)
    before = stage.state()
    UnitCheckpoint(path).resume(stage)
    (line,) = bench.record.of("checkpoint_discarded")
    assert line["stage"] == "weight_reconstruction"
    assert line["reason"]
    assert stage.first_unit == 0
    assert stage.network_forwards == 0
    assert_same_bits(stage.state(), before)


def test_after_a_damaged_checkpoint_the_stage_starts_over(uninterrupted, checkpoint, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(checkpoint[:-100])
    stage = weights(workbench())
    assert_same_bits(finish(stage, path), uninterrupted)
    assert units_done(path) == len(stage.units())


def test_a_checkpoint_of_other_bits_is_discarded(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(checkpoint)
    bench = workbench(BitWidth(4, 6))
    stage = weights(bench)
    before = stage.state()
    UnitCheckpoint(path).resume(stage)
    (line,) = bench.record.of("checkpoint_discarded")
    assert "other bit-widths" in line["reason"]
    assert_same_bits(stage.state(), before)


def test_a_foreign_file_of_tensors_is_discarded(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    bench = workbench()
    stage = weights(bench)
    save_file(stage.state(), path)
    UnitCheckpoint(path).resume(stage)
    assert len(bench.record.of("checkpoint_discarded")) == 1
    assert stage.first_unit == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_unit_and_keeps_the_checkpoint(uninterrupted, tmp_path, value):
    class Diverging(WeightReconstruction):
        def iterate(self, unit, iteration):
            loss = super().iterate(unit, iteration)
            return loss * value if (self.units().index(unit), iteration) == (3, 2) else loss

    path = tmp_path / "checkpoint.safetensors"
    stage = weights(workbench(), Diverging)
    with pytest.raises(CalibrationDiverged) as caught:
        finish(stage, path)
    message = str(caught.value)
    assert stage.units()[3] in message
    assert "weight_reconstruction" in message
    assert "iteration 2" in message
    assert "\n" not in message
    assert units_done(path) == 3
    assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    assert_same_bits(finish(weights(workbench()), path), uninterrupted)


def test_a_checkpoint_holds_calibration_state_only(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(checkpoint)
    stage = weights(workbench())
    names = {name.rpartition(".")[2] for name in load_file(path)}
    assert names == {"scale", "zero_point", "levels", "codes"}
    assert not any("activation" in name for name in load_file(path))
    assert next(iter(stage.state_dict()), None) is None  # the network is no submodule: Lightning never sees it
