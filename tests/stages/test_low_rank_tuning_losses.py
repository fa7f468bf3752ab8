"""The losses of low-rank tuning and their gradients, against ``tuning.Plain``: sample by sample, branch by branch."""

from dataclasses import replace

import pytest
import torch
from tuning import Plain, begun, ranged, run
from workbench import sampler

from dmqbench.calibration.stage import curve_iterations
from dmqbench.calibration.windows import draw_windows
from dmqbench.data.bank import TrajectoryBank
from dmqbench.quant.spec import StepGroups

CHAOS = 0.02
"""Relative: a last bit of a sum over another batch changes a code here and there."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def poised(bench, **changed):
    """A stage before an iteration, with adapters that are somewhere, and the same in ``Plain`` on another bench."""
    stage = begun(bench, **changed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, adapter in stage.adapters.items():
            size = stage.layers[name.rpartition(".")[0]].weight_quantizer.scale.mean()
            adapter += size * torch.randn(adapter.shape, generator=generator)
    return stage


def gradients_of(stage, iteration):
    """The loss of an iteration and the gradients that its optimizer is given."""
    found = {}

    def note(_):
        found.update({name: value.grad.clone() for name, value in stage._variables().items()})

    stage.optimizer.step = note
    loss = stage.iterate(stage.units()[0], iteration)
    return float(loss.detach()), found


def gathered(plain, name):
    """What the leaves of ``plain`` say of the variable ``name`` of the stage."""
    if name.endswith(("adapter_down", "adapter_up")):
        return plain.leaves[name].grad
    key = "weight_quantizer" if name == "weight scales" else "activation_quantizer"
    owners = [leaf.grad for leaf_name, leaf in plain.leaves.items() if leaf_name.endswith(key)]
    return torch.cat([gradient.flatten() for gradient in owners])


CASES = {
    "noise alone": ({}, {}),
    "noise alone, guided": ({"guidance": 3.0}, {"window": 1}),
    "relation": ({}, {"distillation": "relation", "distillation_weight": 0.7}),
    "relation, guided, as published": (
        {"guidance": 3.0},
        {"distillation": "relation", "distillation_weight": 100.0, "loss": "published", "window": 3},
    ),
    "feature, shared ranges": (
        {"steps": StepGroups.shared()},
        {"distillation": "feature", "distillation_weight": 2.0, "window": 4},
    ),
    "feature as published": ({}, {"distillation": "feature", "distillation_weight": 0.1, "loss": "published"}),
}


@pytest.mark.parametrize(("options", "changed"), CASES.values(), ids=CASES.keys())
def test_an_iteration_has_the_loss_and_the_gradients_of_its_definition(options, changed):
    """Normalised: both parts over what they are on validation trajectories before training, predictions call by call.
    Published: the sum of squares and λ times the sum over samples and rows, up to one factor for all."""
    bench = ranged(trajectories=3, **options)
    stage = poised(bench, batch=6, **changed)
    facts, published = stage.facts, changed.get("loss") == "published"
    settings = stage.settings
    weight, window, kind = settings.distillation_weight, settings.window, settings.distillation
    plain = Plain(ranged(trajectories=3, **options), stage.adapters)
    drawn = draw_windows(bench.seed, stage.name, "all", 1, bench.bank.cal, window, max(1, 6 // window))
    listed = [(*pair, window) for pair in zip(drawn.trajectory.tolist(), drawn.first.tolist(), strict=True)]
    before = None if published else facts["noise before"].tolist()
    noise, distilled, values, terms = plain.parts(bench.bank.cal, listed, kind, before)
    expected = noise / values
    if published:
        expected = (noise + weight * distilled) / values / facts["noise before"].mean()
    elif kind != "none":
        expected = expected + weight * distilled / terms / facts["distilled before"].mean()
    expected.backward()
    loss, found = gradients_of(stage, 1)
    assert loss == pytest.approx(float(expected.detach()), rel=CHAOS)
    for name, gradient in found.items():
        wanted = gathered(plain, name)
        assert wanted.norm() > 0, name
        assert float(gradient.norm() / wanted.norm()) == pytest.approx(1, rel=CHAOS), name
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)
        assert cosine > 1 - CHAOS, name


def one_window_of_everything(**options):
    """A bench that is validated on the trajectories that it is calibrated on."""
    bench = ranged(trajectories=4, **options)
    return replace(bench, bank=TrajectoryBank(bench.bank.val, bench.bank.val, bench.seed))


WHOLE = {"window": 4, "batch": 16}


@pytest.mark.parametrize("distillation", ["relation", "feature"])
def test_the_weight_is_the_ratio_of_both_parts_before_training(distillation):
    loss, _ = gradients_of(
        begun(one_window_of_everything(), distillation=distillation, distillation_weight=0.25, **WHOLE), 0
    )
    assert loss == pytest.approx(1.25, rel=1e-4)


def test_the_published_weight_is_of_the_sums():
    stage = begun(
        one_window_of_everything(), distillation="relation", distillation_weight=100.0, loss="published", **WHOLE
    )
    val = stage.bench.bank.val
    with torch.no_grad():
        noise, distilled, *_ = Plain(one_window_of_everything(), stage.adapters).parts(
            val, [(one, 0, 4) for one in range(4)], "relation"
        )
    loss, _ = gradients_of(stage, 0)
    assert loss == pytest.approx(1 + 100 * float(distilled / noise), rel=1e-3)


@pytest.mark.parametrize("distillation", ["relation", "feature"])
def test_what_is_distilled_pulls_at_the_student_by_itself(distillation):
    """In the published code it does not."""
    stage = poised(ranged(), distillation=distillation, distillation_weight=1.0)
    pulls = []
    for weight in (0.0, 1.0):
        stage.settings = replace(stage.settings, distillation_weight=weight)
        pulls.append(gradients_of(stage, 0)[1])
        for adapter in stage.adapters.values():
            adapter.grad = None
    for name, gradient in pulls[1].items():
        assert (gradient - pulls[0][name]).norm() > 1e-3 * pulls[0][name].norm(), name


# ---- what is recorded


@pytest.mark.parametrize(("distillation", "loss"), [("none", "normalised"), ("relation", "published")])
def test_the_parts_of_the_loss_are_recorded_apart_and_make_up_the_whole(distillation, loss):
    bench = ranged()
    stage = run(bench, distillation=distillation, distillation_weight=0.3, loss=loss, iterations=5, checks=2)
    curves = {}
    for event in bench.record.of("curve"):
        [line] = event["lines"]
        assert event["over"] == "iteration"
        curves[event["chart"], line["name"]] = dict(zip(event["at"], line["values"], strict=True))
    parts = ["noise"] if distillation == "none" else ["noise", "distilled"]
    charts = ["loss/low_rank_tuning", *(f"loss/low_rank_tuning/{part}" for part in parts)]
    assert set(curves) == {(chart, unit) for chart in charts for unit in stage.units()}
    assert len(stage.units()) == 2
    for unit in stage.units():
        assert set(curves[charts[0], unit]) == curve_iterations(stage.iterations(unit))
        for iteration, total in curves[charts[0], unit].items():
            parts = [curves[chart, unit][iteration] for chart in charts[1:]]
            assert total == pytest.approx(sum(w * part for w, part in zip((1, 0.3), parts, strict=False)), rel=1e-6)
            assert all(part > 0 for part in parts)


def test_settings_and_errors_are_told_of_every_call_and_every_window():
    """Seven calls are three windows of two, and one that shares a call with the third."""
    bench = ranged(steps=StepGroups.shared(), plan=sampler("ddim", 7))
    found = run(bench, distillation="feature", window=2, rank=2, batch=5).findings()
    assert found["settings"] == {"rank": 2, "distillation": "feature", "window": 2}
    for when in ("before", "after"):
        assert len(found[f"noise_error_{when}"]) == 7 and len(found[f"distilled_error_{when}"]) == 4
        assert all(error > 0 for error in found[f"noise_error_{when}"] + found[f"distilled_error_{when}"])
    assert run(ranged()).findings()["distilled_error_before"] is None


def test_a_window_may_be_the_whole_trajectory_and_a_batch_smaller_than_a_window():
    stage = run(ranged(), window=4, batch=1, distillation="relation")
    assert len(stage.findings()["distilled_error_after"]) == 1
    assert all(value.isfinite().all() for value in stage.state().values())


def test_held_out_errors_of_what_is_distilled_are_those_of_the_definition():
    bench = ranged()
    stage = begun(bench, distillation="relation")
    plain = Plain(ranged(), stage.adapters)
    for place, first in enumerate((0, 2)):
        windows = [(one, first, 2) for one in range(len(bench.bank.val))]
        with torch.no_grad():
            _, distilled, _, rows = plain.parts(bench.bank.val, windows, "relation")
        assert float(stage.facts["distilled before"][place]) == pytest.approx(float(distilled) / rows, rel=CHAOS)
