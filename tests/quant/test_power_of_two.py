"""Power-of-two scaling against plain loops, and laws of the vote."""

from collections import Counter

import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant import power_of_two
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.power_of_two import Ballot, candidate_errors

DEPTH, LEVELS = 3, 16


def python_errors(x, scale, zero_point, levels, depth):
    """errors[sample][channel][candidate], one value at a time."""
    result = []
    for sample, s_row, z_row in zip(x, scale.expand(len(x), -1), zero_point.expand(len(x), -1), strict=True):
        of_sample = []
        for channel, values in enumerate(sample):
            s, z = float(s_row[channel % len(s_row)]), int(z_row[channel % len(z_row)])
            of_candidates = []
            for candidate in range(depth + 1):
                q = s * 2.0 ** (candidate - depth)
                total = 0.0
                for value in values.flatten().tolist():
                    code = min(max(round(value / q) + z, 0), levels - 1)
                    total += (value - q * (code - z)) ** 2
                of_candidates.append(total / values.numel())
            of_sample.append(of_candidates)
        result.append(of_sample)
    return torch.tensor(result, dtype=torch.float64)


def python_election(errors, rows, count, threshold):
    """(exponent, agreement) [rows][C] by counting."""
    depth = errors.shape[-1] - 1
    exponents, agreements = [], []
    for row in range(count):
        members = [errors[i] for i in range(len(errors)) if rows[i] == row]
        exponents.append([])
        agreements.append([])
        for channel in range(errors.shape[1]):
            ballots = [min(range(depth + 1), key=lambda d, m=m, c=channel: float(m[c, d])) for m in members]
            counts = Counter(ballots)
            best = max(counts.values(), default=0)
            winner = min((d for d, n in counts.items() if n == best), default=depth)
            share = best / len(ballots) if ballots else 0.0
            exponents[-1].append(winner - depth if ballots and share >= threshold else 0)
            agreements[-1].append(share)
    return torch.tensor(exponents), torch.tensor(agreements, dtype=torch.float64)


@st.composite
def activations(draw):
    """x [N, C, …] whose channels differ in size by up to 2^6, float64 so that no tie is decided by rounding."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    samples, channels = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    spatial = draw(st.sampled_from([(), (3,), (2, 3)]))
    x = torch.randn(samples, channels, *spatial, generator=generator, dtype=torch.float64)
    sizes = torch.exp2(torch.randint(-5, 2, (channels,), generator=generator).double())
    return x * sizes.reshape(1, -1, *[1] * len(spatial)), generator


def range_of(x, levels=LEVELS):
    """Min-max scale and zero-point of the whole tensor, [1, 1]."""
    return tuple(table.reshape(1, 1) for table in affine_parameters(x.amin(), x.amax(), levels))


@given(activations(), st.integers(0, 4), st.sampled_from([4, 16, 256]), st.integers(0, 2))
@costly(60)
def test_errors_are_those_of_a_loop_over_single_values(case, depth, levels, parameters):
    x, generator = case
    shape = [(1, 1), (len(x), 1), (len(x), x.shape[1])][parameters]
    scale = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.01
    zero_point = torch.randint(0, levels, shape, generator=generator).double()
    errors = candidate_errors(x, scale, zero_point, levels, depth)
    assert errors.shape == (*x.shape[:2], depth + 1)
    torch.testing.assert_close(errors, python_errors(x, scale, zero_point, levels, depth), rtol=1e-9, atol=1e-15)


@given(activations())
@costly(20)
def test_errors_do_not_depend_on_how_samples_are_chunked(case):
    x, _ = case
    whole = candidate_errors(x, *range_of(x), LEVELS, DEPTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power_of_two, "CHUNK_ELEMENTS", 1)
        assert torch.equal(candidate_errors(x, *range_of(x), LEVELS, DEPTH), whole)


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    sizes = []
    real = power_of_two.quantize
    monkeypatch.setattr(power_of_two, "quantize", lambda x, *rest: sizes.append(x.numel()) or real(x, *rest))
    monkeypatch.setattr(power_of_two, "CHUNK_ELEMENTS", 4 * 5 * 9)
    candidate_errors(torch.randn(30, 5, 9), torch.ones(1, 1), torch.zeros(1, 1), LEVELS, DEPTH)
    assert max(sizes) == 4 * 5 * 9


@given(activations(), st.floats(0, 1), st.integers(1, 3))
@costly(80)
def test_the_election_counts_votes_row_by_row(case, threshold, rows):
    x, generator = case
    errors = candidate_errors(x, *range_of(x), LEVELS, DEPTH)
    member = torch.randint(0, rows, (len(x),), generator=generator)
    ballot = Ballot(rows, x.shape[1], DEPTH)
    for part in torch.arange(len(x)).split(2):  # in batches, as they come
        ballot.add(errors[part], member[part])
    exponent, agreement = python_election(errors, member.tolist(), rows, threshold)
    found = ballot.by_vote(threshold)
    assert found.exponent.dtype == torch.int8
    assert torch.equal(found.exponent.long(), exponent)
    assert torch.equal(found.agreement, agreement)
    chosen = ballot.by_error().exponent
    for row in range(rows):
        total = errors[member == row].sum(0)
        for channel in range(x.shape[1]):
            if not (member == row).any():
                assert chosen[row, channel] == 0
            else:
                least = float(total[channel, int(chosen[row, channel]) + DEPTH])
                assert least <= float(total[channel].min()) * (1 + 1e-12)


@given(activations())
@costly(30)
def test_at_threshold_zero_every_vote_is_accepted_and_above_one_none(case):
    x, _ = case
    ballot = Ballot(1, x.shape[1], DEPTH)
    ballot.add(candidate_errors(x, *range_of(x), LEVELS, DEPTH), torch.zeros(len(x), dtype=torch.long))
    assert torch.equal(ballot.by_vote(0.0).exponent.long(), ballot.votes.argmax(-1) - DEPTH)
    assert not ballot.by_vote(1.0 + 1e-9).exponent.any()


def test_a_share_of_exactly_the_threshold_is_accepted():
    """17 of 20 is 0.85: the published code compares with ≥, the paper's text with >."""
    errors = torch.ones(20, 2, 4)
    errors[:17, 0, 1] = errors[17:, 0, 3] = 0  # 17 against 3
    errors[:16, 1, 1] = errors[16:, 1, 3] = 0  # 16 against 4
    ballot = Ballot(1, 2, 3)
    ballot.add(errors, torch.zeros(20, dtype=torch.long))
    found = ballot.by_vote(0.85)
    assert found.exponent.tolist() == [[-2, 0]]
    assert found.agreement.tolist() == [[0.85, 0.8]]


def test_equal_errors_and_tied_votes_go_to_the_finest():
    equal = torch.zeros(1, 1, 4)
    ballot = Ballot(1, 1, 3)
    ballot.add(equal, torch.zeros(1, dtype=torch.long))
    assert ballot.by_vote(0.85).exponent.item() == -3  # also what an all-zero channel votes
    tied = torch.ones(4, 1, 4)
    tied[:2, 0, 2] = tied[2:, 0, 1] = 0
    ballot = Ballot(1, 1, 3)
    ballot.add(tied, torch.zeros(4, dtype=torch.long))
    assert ballot.by_vote(0.5).exponent.item() == -2
    assert ballot.by_vote(0.5).agreement.item() == 0.5


def on_the_grid(samples: int, width: int, scale: float, zero_point: int, generator) -> torch.Tensor:
    """Values [samples, width] that lie on the grid of ``scale`` and reach both its ends."""
    codes = torch.randint(0, LEVELS, (samples, width), generator=generator)
    codes[:, 0], codes[:, 1], codes[:, 2] = 0, LEVELS - 1, zero_point + 1
    return (codes - zero_point) * scale


@given(st.integers(0, 2**31), st.lists(st.integers(0, DEPTH), min_size=1, max_size=6), st.integers(1, LEVELS - 2))
def test_a_channel_smaller_than_the_range_by_a_power_of_two_votes_for_it(seed, smaller, zero_point):
    """Planted: channel c fills the grid s/2^k exactly, so that a coarser one rounds it and a finer one clips it."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.25
    x = torch.stack([on_the_grid(4, 30, scale / 2**k, zero_point, generator) for k in smaller], dim=1)
    errors = candidate_errors(x, torch.full((1, 1), scale), torch.full((1, 1), float(zero_point)), LEVELS, DEPTH)
    ballot = Ballot(1, len(smaller), DEPTH)
    ballot.add(errors, torch.zeros(len(x), dtype=torch.long))
    for found in (ballot.by_vote(1.0), ballot.by_error()):
        assert found.exponent[0].tolist() == [-k for k in smaller]
        assert (found.agreement == 1).all()


def test_planted_outlier_channels_are_what_scaling_repairs():
    """One channel 16 times the others: they get finer grids, it keeps its range, and their error falls by about 8²."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 12, 8, 8, generator=generator) * 2 - 1
    x[:, 5] *= 16
    scale, zero_point = range_of(x)
    errors = candidate_errors(x, scale, zero_point, LEVELS, DEPTH)
    ballot = Ballot(1, 12, DEPTH)
    ballot.add(errors, torch.zeros(32, dtype=torch.long))
    exponent = ballot.by_vote(0.85).exponent[0].long()
    assert exponent.tolist() == [-3] * 5 + [0] + [-3] * 6
    chosen = errors.mean(0).gather(-1, (exponent + DEPTH)[:, None])[:, 0]
    plain = errors.mean(0)[:, -1]
    others = torch.arange(12) != 5
    assert chosen[5] == plain[5]
    assert (plain[others] / chosen[others]).min() > 20


def test_a_channel_whose_outliers_only_some_samples_have_keeps_its_range():
    """Most samples would have the finer grid, which clips the others: the threshold is the guard."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(20, 1, 64, generator=generator) * 2 - 1
    x[:4] *= 8  # one in five fills the range
    scale, zero_point = range_of(x)
    ballot = Ballot(1, 1, DEPTH)
    ballot.add(candidate_errors(x, scale, zero_point, LEVELS, DEPTH), torch.zeros(20, dtype=torch.long))
    assert ballot.by_vote(0.85).agreement.item() == 0.8
    assert ballot.by_vote(0.85).exponent.item() == 0
    assert ballot.by_vote(0.75).exponent.item() == -3


def test_a_depth_that_cannot_be_shifted_is_refused():
    with pytest.raises(ValueError, match="depth 8: allowed are 0 to 7"):
        candidate_errors(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1), LEVELS, 8)
