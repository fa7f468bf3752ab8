"""Adam over the free variables of a stage: against torch's own, and resumed to the same bits."""

import math

import pytest
import torch

from dmqbench.calibration.trained_parameters import copies
from dmqbench.calibration.variable_optimizer import SMALL_GRADIENT, VariableOptimizer, cosine_decay, linear_decay


def descend(optimizer, variables, iterations):
    for iteration in iterations:
        for index, variable in enumerate(variables.values()):
            variable.grad = variable.detach() - 0.3 * index + 0.1 * math.sin(iteration)
        optimizer.step(iteration)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_adam_with_a_cosine_and_a_rate_for_each_variable(decay):
    """With a weight decay, of some variables alone, it is AdamW."""
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    rates = {"a": 0.1, "b": 0.02}
    ours = copies(start)
    descend(VariableOptimizer(ours, rates, 10, 1.0, weight_decay={"a": decay}), ours, range(10))
    for index, (name, value) in enumerate(start.items()):
        theirs = value.clone().requires_grad_(True)
        made = torch.optim.AdamW if name == "a" and decay else torch.optim.Adam
        adam = made([theirs], lr=rates[name], eps=SMALL_GRADIENT, weight_decay=decay if name == "a" else 0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: 0.5 * (1 + math.cos(math.pi * i / 10)))
        for iteration in range(10):
            theirs.grad = theirs.detach() - 0.3 * index + 0.1 * math.sin(iteration)
            adam.step()
            schedule.step()
        torch.testing.assert_close(ours[name], theirs.detach())


def test_a_gradient_of_one_sign_travels_half_the_rate_times_iterations():
    value = {"a": torch.zeros(1)}
    optimizer = VariableOptimizer(value, {"a": 0.3 / 50}, 50, 1.0)
    for iteration in range(50):
        value["a"].grad = torch.ones(1)
        optimizer.step(iteration)
    assert float(value["a"]) == pytest.approx(-0.15, rel=0.05)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_it_goes_on_to_the_same_bits(stop):
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    rates = {"a": 0.1, "b": 0.02}
    whole = copies(start)
    descend(VariableOptimizer(whole, rates, 10, 1.0), whole, range(10))
    part = copies(start)
    first = VariableOptimizer(part, rates, 10, 1.0)
    descend(first, part, range(stop))
    state = first.state()
    resumed = copies(part)
    second = VariableOptimizer(resumed, rates, 10, 1.0)
    second.load_state_(state)
    descend(second, resumed, range(stop, 10))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_size_of_errors_does_not_matter():
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    plain, large = copies(start), copies(start)
    ours, theirs = (VariableOptimizer(v, {"a": 0.1, "b": 0.1}, 4, unit) for v, unit in ((plain, 1.0), (large, 1024.0)))
    for iteration in range(4):
        for name in start:
            plain[name].grad = plain[name].detach() * 1e-4
            large[name].grad = large[name].detach() * 1e-4 * 1024
        ours.step(iteration)
        theirs.step(iteration)
    assert all(torch.equal(plain[name], large[name]) for name in start)


def test_a_gradient_that_would_win_next_to_nothing_moves_little():
    value = {"a": torch.zeros(2)}
    optimizer = VariableOptimizer(value, {"a": 1.0}, 10, 1.0)
    value["a"].grad = torch.tensor([1e-6, 1e-1])
    optimizer.step(0)
    assert abs(float(value["a"][0])) < 0.05 and float(value["a"][1]) == pytest.approx(-1.0, rel=1e-2)


def test_before_its_first_step_it_has_no_state():
    value = {"a": torch.zeros(1)}
    optimizer = VariableOptimizer(value, {"a": 1.0}, 2, 1.0)
    assert optimizer.state() == {}
    optimizer.load_state_({})
    value["a"].grad = torch.ones(1)
    optimizer.step(0)
    assert float(value["a"]) == pytest.approx(-1.0, rel=1e-4)


# ---- other decays, other epsilons


@pytest.mark.parametrize("decay", [cosine_decay, linear_decay])
def test_a_decay_falls_from_one_to_zero(decay):
    values = [decay(place / 8) for place in range(9)]
    assert values[0] == 1 and values[-1] == pytest.approx(0) and values[4] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)


def test_a_linear_decay_and_an_epsilon_are_those_of_torch():
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    rates = {"a": 0.1, "b": 0.02}
    ours = copies(start)
    descend(VariableOptimizer(ours, rates, 10, 1.0, linear_decay, 1e-3), ours, range(10))
    for index, (name, value) in enumerate(start.items()):
        theirs = value.clone().requires_grad_(True)
        adam = torch.optim.Adam([theirs], lr=rates[name], eps=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=10)
        for iteration in range(10):
            theirs.grad = theirs.detach() - 0.3 * index + 0.1 * math.sin(iteration)
            adam.step()
            schedule.step()
        torch.testing.assert_close(ours[name], theirs.detach())


# ---- rows that are used now and then

ROWS, ITERATIONS = 5, 12
LAZY = {"decay": linear_decay, "epsilon": 1e-8, "lazy": ["table"]}


def used_rows(iteration):
    """Row 0 always, row 1 every other time, row 2 first at the sixth, row 3 only at the first, row 4 never."""
    return [True, iteration % 2 == 0, iteration >= 5, iteration == 0, False]


def gradients(iteration):
    values = torch.randn(ROWS, generator=torch.Generator().manual_seed(iteration))
    return values * torch.tensor(used_rows(iteration))


def first_table():
    return {"table": torch.linspace(-1, 1, ROWS), "other": torch.ones(2)}


def train(optimizer, variables, iterations):
    for iteration in iterations:
        variables["table"].grad, variables["other"].grad = gradients(iteration), torch.tensor([1.0, 0.0])
        optimizer.step(iteration)


def test_a_row_that_no_sample_uses_does_not_move_by_a_bit():
    variables = first_table()
    optimizer = VariableOptimizer(variables, {"table": 0.1, "other": 0.1}, ITERATIONS, 1.0, **LAZY)
    for iteration in range(ITERATIONS):
        before = variables["table"].clone()
        train(optimizer, variables, [iteration])
        moved = (variables["table"] != before).tolist()
        assert moved == used_rows(iteration)


def test_rows_are_those_of_an_adam_whose_moments_wait_for_them():
    """Written out for every row by itself, and torch's Adam for sparse gradients, which is the same but for where
    epsilon is added."""
    ours = first_table()
    train(VariableOptimizer(ours, {"table": 0.1, "other": 0.1}, ITERATIONS, 1.0, **LAZY), ours, range(ITERATIONS))
    sparse = first_table()["table"][:, None].requires_grad_(True)
    adam = torch.optim.SparseAdam([sparse], lr=0.1)
    value, mean, square = (first_table()["table"].tolist(), [0.0] * ROWS, [0.0] * ROWS)
    for iteration in range(ITERATIONS):
        rate = 0.1 * (1 - iteration / ITERATIONS)
        gradient, rows = gradients(iteration), torch.tensor(used_rows(iteration)).nonzero().T
        adam.param_groups[0]["lr"] = rate
        sparse.grad = torch.sparse_coo_tensor(rows, gradient[rows[0], None], (ROWS, 1), check_invariants=True)
        adam.step()
        for row in rows[0].tolist():
            g = float(gradient[row])
            mean[row], square[row] = 0.9 * mean[row] + 0.1 * g, 0.999 * square[row] + 0.001 * g * g
            corrected = mean[row] / (1 - 0.9 ** (iteration + 1))
            value[row] -= rate * corrected / (math.sqrt(square[row] / (1 - 0.999 ** (iteration + 1))) + 1e-8)
    torch.testing.assert_close(ours["table"], torch.tensor(value), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["table"], sparse.detach()[:, 0], rtol=1e-5, atol=1e-5)


def test_a_variable_that_is_not_lazy_is_carried_on_by_its_moments():
    variables = {"table": torch.zeros(1), "other": torch.zeros(1)}
    optimizer = VariableOptimizer(variables, {"table": 0.1, "other": 0.1}, 4, 1.0, **LAZY)
    for gradient in (1.0, 0.0):
        variables["table"].grad, variables["other"].grad = torch.full((1,), gradient), torch.full((1,), gradient)
        before = copies(variables)
        optimizer.step(0)
    assert torch.equal(variables["table"], before["table"])
    assert float(variables["other"]) < float(before["other"])


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_lazy_rows_go_on_to_the_same_bits(stop):
    rates = {"table": 0.1, "other": 0.1}
    whole = first_table()
    train(VariableOptimizer(whole, rates, ITERATIONS, 1.0, **LAZY), whole, range(ITERATIONS))
    part = first_table()
    first = VariableOptimizer(part, rates, ITERATIONS, 1.0, **LAZY)
    train(first, part, range(stop))
    resumed = copies(part)
    second = VariableOptimizer(resumed, rates, ITERATIONS, 1.0, **LAZY)
    second.load_state_(first.state())
    train(second, resumed, range(stop, ITERATIONS))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
