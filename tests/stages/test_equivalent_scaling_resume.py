"""Learned equivalent scaling that is killed or diverges: the same bits after a resumption, and nothing lost."""

import os
import signal
from functools import cache

import pytest
import torch
from forks import forked
from safetensors import safe_open
from safetensors.torch import load_file
from workbench import EQUIVALENT_SCALING, workbench

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import CalibrationDiverged
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.stages import equivalent_scaling
from dmqbench.stages.equivalent_scaling import EquivalentScaling

SETTINGS = {**EQUIVALENT_SCALING, "iterations": 4, "batch": 4, "samples": 12, "travel": 0.4}
VARIANTS = {
    "joint": {},
    "joint, deployed, patient": {"ranges": "deployed", "patience": 1},
    "cached": {"schedule": "cached", "memory_mib": 1},
    "cached, deployed, patient": {"schedule": "cached", "ranges": "deployed", "patience": 1},
}
POISONED = "mid_block.resnets.0.conv1"


@pytest.fixture(autouse=True, scope="module")
def short_units():
    """Units of two iterations; one thread, because the killed process must have split its sums alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equivalent_scaling, "SLICE", 2)
        yield
    torch.set_num_threads(threads)


def stage_of(cls=EquivalentScaling, **settings):
    bench = workbench(BitWidth(4, 4), steps=StepGroups.per_step(4))
    return cls.of(bench, **{**SETTINGS, **settings})


def finish(stage, path):
    checkpoint = UnitCheckpoint(path)
    checkpoint.resume(stage)
    run_stage(stage, "cpu", [checkpoint])
    return stage


@pytest.fixture(scope="module")
def whole(short_units, tmp_path_factory):
    """Variant → (its stage, carried out without a break, and the checkpoint that is left)."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def of(variant):
        path = folder / f"{variant}.safetensors"
        return finish(stage_of(**VARIANTS[variant]), path), path

    return of


def ending(act):
    """A stage class that calls ``act(stage)`` at (number of the unit, iteration)."""

    class Ending(EquivalentScaling):
        end = (0, 0)

        def iterate(self, unit, iteration):
            if (self.units().index(unit), iteration) == self.end:
                act(self)
            return super().iterate(unit, iteration)

    return Ending


def interrupt(stage):
    raise KeyboardInterrupt


def assert_same(stage, expected):
    state, wanted = stage.state(), expected.state()
    assert state.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(state[name].nan_to_num(-1.0), wanted[name].nan_to_num(-1.0)), name  # ranges come later
    assert stage.findings() == expected.findings()


def units_done(path):
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["units_done"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stage_that_was_interrupted_gives_the_same_bits_and_findings(variant, whole, tmp_path):
    path, settings = tmp_path / "checkpoint.safetensors", VARIANTS[variant]
    expected, _ = whole(variant)
    cls, last = ending(interrupt), len(expected.units()) - 1
    for end in ((3, 1), (last, 0)) if "schedule" in settings else ((1, 0), (1, 1)):
        stage = stage_of(cls, **settings)
        stage.end = end
        with pytest.raises(KeyboardInterrupt):
            finish(stage, path)
        assert units_done(path) == end[0]
    assert_same(finish(stage_of(**settings), path), expected)


def test_findings_can_be_told_by_a_stage_that_finds_its_work_done(whole):
    """Killed between its last unit and its artifact."""
    for variant, settings in VARIANTS.items():
        expected, path = whole(variant)
        stage = stage_of(**settings)
        UnitCheckpoint(path).resume(stage)
        assert stage.first_unit == len(stage.units())
        assert_same(stage, expected)


PATIENT = "joint, deployed, patient"


def killed(path):
    """What a process does that kills itself inside its second unit."""
    stage = stage_of(ending(lambda _: os.kill(os.getpid(), signal.SIGKILL)), **VARIANTS[PATIENT])
    stage.end = (1, 1)
    finish(stage, path)


def test_a_killed_process_is_continued_to_the_same_bits(whole, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with forked(killed, path, folder=tmp_path) as process:
        status, _, errors = process.wait(120)
    assert status == -signal.SIGKILL, errors
    assert units_done(path) == 1
    assert_same(finish(stage_of(**VARIANTS[PATIENT]), path), whole(PATIENT)[0])


def weight_is_nan(stage):
    quant_layers(stage.bench.network)[POISONED].weight.data[0, 0] = torch.nan


def input_is_nan(stage):
    layer = quant_layers(stage.bench.network)[POISONED]
    layer.register_forward_pre_hook(lambda _, args: (args[0] * torch.nan,))


def gradient_is_nan(stage):
    """While the loss is finite."""
    learner = stage.learners[POISONED]
    learn = learner.learn

    def learn_and_spoil(batch):
        loss = learn(batch)
        learner.scale.grad[0] = torch.inf
        return loss

    learner.learn = learn_and_spoil


POISONS = [(poison, "joint") for poison in (weight_is_nan, input_is_nan, gradient_is_nan)]
POISONS += [(poison, "cached") for poison in (weight_is_nan, gradient_is_nan)]  # there, inputs are kept before


@pytest.mark.parametrize(("poison", "schedule"), POISONS)
def test_what_is_not_finite_names_its_layer_and_spares_the_checkpoint(poison, schedule, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stage = stage_of(ending(poison), schedule=schedule, memory_mib=1)
    units = stage.units()
    done = units.index(POISONED) - 1 if schedule == "cached" else 1
    stage.end = (done, 1)  # the last iteration of a unit where all learn together: its checkpoint must not be written
    with pytest.raises(CalibrationDiverged) as caught:
        finish(stage, path)
    message = str(caught.value)
    assert message.startswith(f"stage equivalent_scaling, layer {POISONED}: loss ")
    assert "\n" not in message
    kept = units_done(path)
    assert kept == (done + 1 if schedule == "cached" else done)
    assert all(value.isfinite().all() for name, value in load_file(path).items() if name.endswith("equivalent_scale"))
    resumed = finish(stage_of(schedule=schedule, memory_mib=1), path)
    assert all(learner.scale.isfinite().all() for learner in resumed.learners.values())
