"""Noise and labels: streams that never meet, and draws that depend on nothing but their coordinates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.data.noise import derived_seed, draw_batch, draw_labels, initial_noise, step_noise

STREAMS = ("cal", "val", "eval")
SHAPE = (1, 2, 2)


def words(noise):
    """Every sample as bytes."""
    return [sample.numpy().tobytes() for sample in noise]


def test_no_draw_is_shared_by_streams_seeds_indices_or_calls():
    indices = range(400)
    draws = [words(initial_noise(stream, seed, indices, SHAPE)) for stream in STREAMS for seed in range(4)]
    draws += [
        words(step_noise(stream, seed, range(100), call, SHAPE))
        for stream in STREAMS
        for seed in range(3)
        for call in range(4)
    ]
    flat = [word for part in draws for word in part]
    assert len(flat) == 3 * 4 * 400 + 3 * 3 * 4 * 100
    assert len(set(flat)) == len(flat)


def test_no_single_number_is_shared_either():
    """A draw could be another's, shifted: pooled values of float32 normals repeat only by chance."""
    values = [initial_noise(stream, 0, range(50), (16,)).flatten().tolist() for stream in STREAMS]
    pooled = [number for stream in values for number in stream]
    assert len(set(pooled)) >= len(pooled) - 2


def test_keys_that_read_alike_are_different_seeds():
    keys = [("cal", 1, 23), ("cal", 12, 3), ("cal", "1", 23), ("cal", 1, 2, 3), ("ca", "l", 1, 23), ("val", 1, 23)]
    assert len({derived_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derived_seed(*key) < 2**63 for key in keys)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), st.sampled_from(STREAMS), st.integers(0, 5))
def test_a_sample_does_not_depend_on_who_shares_its_batch(indices, stream, seed):
    together = initial_noise(stream, seed, indices, SHAPE)
    later = step_noise(stream, seed, indices, 7, SHAPE)
    labels = draw_labels(stream, seed, indices, 10)
    for position, index in enumerate(indices):
        assert torch.equal(together[position], initial_noise(stream, seed, [index], SHAPE)[0])
        assert torch.equal(later[position], step_noise(stream, seed, [index], 7, SHAPE)[0])
        assert labels[position] == draw_labels(stream, seed, [index], 10)[0]


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initial_noise("cal", 0, [3], SHAPE), draw_labels("cal", 0, [3], 10), draw_batch(0, "s", "u", 0, 9, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = initial_noise("cal", 0, [3], SHAPE), draw_labels("cal", 0, [3], 10), draw_batch(0, "s", "u", 0, 9, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("stream", STREAMS)
def test_noise_is_standard_normal(stream):
    noise = torch.cat([initial_noise(stream, 0, range(500), (40,)), step_noise(stream, 0, range(500), 1, (40,))])
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 6 / len(noise) ** 0.5


def test_labels_of_evaluation_take_turns():
    assert draw_labels("eval", 5, range(3, 14), 4).tolist() == [index % 4 for index in range(3, 14)]


@pytest.mark.parametrize("stream", ["cal", "val", "eval"])
def test_drawn_labels_are_even(stream):
    labels = draw_labels(stream, 0, range(3000), 10, balanced=False)
    assert labels.dtype == torch.int64
    counts = labels.bincount(minlength=10)
    assert len(counts) == 10
    assert ((counts - 300).abs() < 5 * (3000 * 0.1 * 0.9) ** 0.5).all()
    assert not torch.equal(labels, draw_labels(stream, 1, range(3000), 10, balanced=False))
    assert torch.equal(labels[[7, 3]], draw_labels(stream, 0, [7, 3], 10, balanced=False))


def test_labels_of_calibration_and_validation_are_unrelated():
    agree = (draw_labels("cal", 0, range(3000), 10) == draw_labels("val", 0, range(3000), 10)).float().mean()
    assert abs(agree - 0.1) < 5 * (0.09 / 3000) ** 0.5


COORDINATES = {"seed": 0, "stage": "weights", "unit": "mid_block", "iteration": 3}
OTHERS = {"seed": 1, "stage": "weight", "unit": "mid_bloc", "iteration": 4}


def test_a_batch_is_a_function_of_its_coordinates():
    batch = draw_batch(**COORDINATES, population=1000, size=32)
    assert torch.equal(batch, draw_batch(**COORDINATES, population=1000, size=32))
    for name, value in OTHERS.items():
        other = draw_batch(**{**COORDINATES, name: value}, population=1000, size=32)
        assert not torch.equal(batch, other), name


@given(st.integers(0, 60), st.integers(1, 80), st.integers(0, 100))
def test_a_batch_has_no_repeats_and_never_more_than_there_are(population, size, iteration):
    batch = draw_batch(0, "stage", "unit", iteration, population, size)
    assert len(batch) == min(population, size) == len(batch.unique())
    assert all(0 <= index < population for index in batch.tolist())


def test_batches_cover_the_population_evenly():
    counts = torch.cat([draw_batch(0, "s", "u", i, 40, 10) for i in range(400)]).bincount(minlength=40)
    assert ((counts - 100).abs() < 5 * (400 * 0.25 * 0.75) ** 0.5).all()
