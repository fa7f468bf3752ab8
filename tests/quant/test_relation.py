"""Relation distillation against the map written out, the laws of its value and gradient, and what it keeps."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmqbench.quant.relation import relation_divergence, smoothed, tokens

SHAPES = ((1, 1, 1), (1, 5, 3), (3, 7, 2), (2, 16, 8))


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The whole maps [B, P, P]."""
    student, teacher = (F.normalize(each, dim=-1, eps=1e-12) for each in (student, teacher))
    of_student, of_teacher = ((each @ each.mT / temperature).log_softmax(-1) for each in (student, teacher))
    total = F.kl_div(of_student, of_teacher, log_target=True, reduction="sum")
    return total / (student.shape[0] * student.shape[1])


def value_and_gradient(divergence, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    value = divergence(leaf, teacher)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.07, 5.0])
@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_value_and_gradient_are_those_of_the_whole_map(shape, temperature, block):
    student, teacher = features(*shape), features(*shape, seed=1)
    ours = partial(relation_divergence, temperature=temperature, block=block)
    expected = value_and_gradient(partial(naive, temperature=temperature), student, teacher)
    for mine, theirs in zip(value_and_gradient(ours, student, teacher), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("block", [1, 20, 2**20])
def test_the_gradient_is_that_of_finite_differences(block):
    student, teacher = features(2, 5, 3).requires_grad_(), features(2, 5, 3, seed=1)
    weighted = partial(relation_divergence, teacher=teacher, temperature=0.5, block=block)
    assert torch.autograd.gradcheck(lambda x: 3 * weighted(x), student)


def test_the_teacher_has_no_gradient():
    student, teacher = features(2, 5, 3), features(2, 5, 3, seed=1).requires_grad_()
    assert not relation_divergence(student, teacher).requires_grad
    value = relation_divergence(student.requires_grad_(), teacher)
    assert torch.autograd.grad(value, (student, teacher), allow_unused=True)[1] is None


def test_blocks_change_nothing_but_rounding():
    student, teacher = (features(2, 64, 12, seed=seed, dtype=torch.float32) for seed in (0, 1))
    whole = value_and_gradient(partial(relation_divergence, block=2**20), student, teacher)
    for block in (1, 1000, 2 * 64 * 63):
        parts = value_and_gradient(partial(relation_divergence, block=block), student, teacher)
        for mine, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-7)


def test_without_gradients_the_value_is_the_same():
    student, teacher = features(2, 5, 3).requires_grad_(), features(2, 5, 3, seed=1)
    with torch.no_grad():
        silent = relation_divergence(student, teacher)
    assert not silent.requires_grad and torch.equal(silent, relation_divergence(student, teacher).detach())


# ---- laws


def test_it_is_zero_for_equal_maps_and_above_zero_for_others():
    teacher = features(2, 9, 4)
    value, gradient = value_and_gradient(relation_divergence, teacher, teacher)
    assert float(value) == 0.0 and torch.equal(gradient, torch.zeros_like(gradient))
    assert all(float(relation_divergence(features(2, 9, 4, seed=seed), teacher)) > 1e-3 for seed in range(1, 9))
    nearly = teacher.clone()
    nearly[1, 3, 2] += 0.1
    assert 0 < float(relation_divergence(nearly, teacher)) < 1e-3


def test_only_directions_count_and_only_among_each_other():
    """Any positive length of each vector, and any rotation of the channels common to a sample."""
    student, teacher = features(2, 9, 4), features(2, 9, 4, seed=1)
    lengths = features(2, 9, 1, seed=2).exp()
    rotation = torch.linalg.qr(features(2, 4, 4, seed=3))[0]
    expected = relation_divergence(student, teacher)
    torch.testing.assert_close(relation_divergence(student * lengths @ rotation, teacher), expected)
    torch.testing.assert_close(relation_divergence(student, 7.5 * teacher @ rotation), expected)
    scaled_one_channel = student * torch.tensor([4.0, 1, 1, 1])
    assert not torch.isclose(relation_divergence(scaled_one_channel, teacher), expected, rtol=1e-3)


def test_positions_have_no_order_and_samples_no_relations():
    student, teacher = features(3, 9, 4), features(3, 9, 4, seed=1)
    expected = relation_divergence(student, teacher)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(relation_divergence(student[:, order], teacher[:, order]), expected)
    assert not torch.isclose(relation_divergence(student[:, order], teacher), expected, rtol=1e-3)
    alone = [relation_divergence(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), expected)


def test_two_positions_by_hand():
    """Student: both alike, so rows of ½. Teacher: at right angles, so rows of e/(1+e) and 1/(1+e)."""
    student = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    p = torch.tensor(1.0, dtype=torch.float64).sigmoid()
    expected = p * (2 * p).log() + (1 - p) * (2 * (1 - p)).log()
    torch.testing.assert_close(relation_divergence(student, teacher), expected)


def test_a_position_without_a_direction_moves_nothing():
    student, teacher = features(1, 6, 3), features(1, 6, 3, seed=1)
    student[0, 2] = 0
    value, gradient = value_and_gradient(relation_divergence, student, teacher)
    torch.testing.assert_close(value, naive(student, teacher))
    assert gradient.isfinite().all() and not gradient[0, 2].any() and gradient[0, 1].any()


# ---- the window


def test_a_feature_map_and_its_tokens_are_the_same_positions():
    feature = features(2, 3, 4, 5)
    assert torch.equal(tokens(feature)[1, 2 * 5 + 3], feature[1, :, 2, 3])
    assert tokens(features(2, 20, 3)).shape == tokens(feature).shape == (2, 20, 3)
    with pytest.raises(ValueError, match=r"shape \[3, 4\] has no positions"):
        tokens(features(3, 4))


def test_a_windows_gradient_reaches_every_call_that_is_not_held_fixed():
    calls = [features(2, 3, 4, 4, seed=seed).requires_grad_() for seed in range(3)]
    teacher = smoothed([features(2, 3, 4, 4, seed=seed) for seed in range(3, 6)])
    torch.testing.assert_close(smoothed(calls), tokens((calls[0] + calls[1] + calls[2]) / 3))
    every = torch.autograd.grad(relation_divergence(smoothed(calls), teacher), calls)
    assert all(torch.equal(gradient, every[0]) and gradient.any() for gradient in every)
    held = smoothed([calls[0], calls[1].detach(), calls[2].detach()])
    first, second, _ = torch.autograd.grad(relation_divergence(held, teacher), calls, allow_unused=True)
    assert torch.equal(first, every[0]) and second is None


class Denoiser(nn.Module):
    """Two layers; the feature is what enters the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def distilled(detach: bool, factor: float) -> tuple[float, list[Tensor]]:
    """Loss and gradients of a student after two calls: noise by squared error, relations by the published formula.

    The features come from forward hooks. The published code stores ``output.clone().detach()`` there.
    """
    torch.manual_seed(0)
    student, teacher = Denoiser(), Denoiser()
    stored: dict[Denoiser, list[Tensor]] = {student: [], teacher: []}

    def keep(network: Denoiser, _: nn.Module, __: object, output: Tensor) -> None:
        stored[network].append(output.clone().detach() if detach else output)

    for network in (student, teacher):
        network.body.register_forward_hook(partial(keep, network))
    loss = torch.zeros(())
    for _ in range(2):
        x = torch.randn(2, 1, 4, 4)
        loss = loss + F.mse_loss(student(x), teacher(x).detach(), reduction="sum")
    maps = []
    for network in (student, teacher):
        feature = F.normalize(torch.stack(stored[network]).mean(dim=0), dim=1).flatten(2)
        maps.append(feature.mT @ feature)
    relations = F.kl_div(maps[0].log_softmax(-1), maps[1].detach().softmax(-1), reduction="sum")
    loss = loss + factor * relations
    loss.backward()
    ours = relation_divergence(smoothed(stored[student]), smoothed(stored[teacher]))
    torch.testing.assert_close(relations, ours * 2 * 16, rtol=1e-4, atol=1e-6)
    return float(loss.detach()), [torch.as_tensor(parameter.grad) for parameter in student.parameters()]


def test_the_published_form_is_printed_and_trains_nothing():
    without, plain = distilled(detach=True, factor=0.0)
    published, detached = distilled(detach=True, factor=100.0)
    same, attached = distilled(detach=False, factor=100.0)
    assert published > without + 1 and published == same
    assert all(torch.equal(one, other) for one, other in zip(plain, detached, strict=True))
    assert any(not torch.allclose(one, other) for one, other in zip(plain, attached, strict=True))


# ---- memory and mistakes


def kept_elements(divergence, positions: int) -> int:
    """The elements that are kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    student, teacher = features(2, positions, 4).requires_grad_(), features(2, positions, 4, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = divergence(student, teacher)
    assert value.requires_grad
    return sum(kept.values())


def test_what_is_kept_grows_with_the_positions_and_the_maps_with_their_square():
    ours = [kept_elements(relation_divergence, positions) for positions in (64, 128)]
    assert ours[1] == 2 * ours[0] <= 2 * 4 * 2 * 64 * 4
    whole = [kept_elements(naive, positions) for positions in (64, 128)]
    assert whole[1] > 3.5 * whole[0] and whole[1] > 10 * ours[1]


class LargestResult(TorchDispatchMode):
    """The most elements that any one operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize(("block", "rows"), [(1, 1), (2 * 64 * 8, 8)])
def test_no_piece_of_the_map_is_larger_than_a_block(block, rows):
    student, teacher = features(2, 64, 3).requires_grad_(), features(2, 64, 3, seed=1)
    with LargestResult() as largest:
        relation_divergence(student, teacher, block=block).backward()
    assert largest.elements == max(2 * 64 * rows, 2 * 64 * 3)


@pytest.mark.parametrize(
    ("shapes", "temperature", "said"),
    [
        (((2, 4, 3), (2, 5, 3)), 1.0, "[2, 4, 3] and [2, 5, 3]"),
        (((4, 3), (4, 3)), 1.0, "expected the same [B, P, C] twice"),
        (((0, 4, 3), (0, 4, 3)), 1.0, "[0, 4, 3]"),
        (((2, 4, 3), (2, 4, 3)), 0.0, "temperature 0.0"),
    ],
)
def test_what_is_no_pair_of_features_is_refused(shapes, temperature, said):
    with pytest.raises(ValueError) as refused:
        relation_divergence(*(torch.ones(shape) for shape in shapes), temperature=temperature)
    assert said in str(refused.value) and "\n" not in str(refused.value)
