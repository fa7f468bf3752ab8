import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.data.images import ImageError, require_images, require_pair, to_float01, to_signed, to_uint8


def _one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 1, 4, 4), r"float32 in \[0"),
        (torch.full((2, 1, 4, 4), float("nan")), "holding NaN"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), "2×4×4"),
        (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), "2×4×4×1"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "no images"),
        (np.zeros((2, 1, 4, 4), dtype=np.uint8), "ndarray"),
    ],
    ids=["float", "nan", "int64", "three-dimensional", "channels-last", "empty", "numpy"],
)
def test_what_is_not_an_image_is_refused_in_one_line(images, said):
    with pytest.raises(ImageError, match=said) as error:
        require_images(images)
    _one_line(error)


def test_images_that_do_not_pair_are_refused():
    a, b = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ImageError, match="3×1×4×4 and reference 2×1×4×4") as error:
        require_pair(a, b)
    _one_line(error)


def test_conversion_is_numpys_clip_and_half_to_even_rounding():
    halves = torch.tensor([[(2 * k + 1) / 255 - 1 for k in range(255)]], dtype=torch.float64).reshape(1, 1, 15, 17)
    x = torch.cat([halves.float(), torch.linspace(-1.5, 1.5, 255).reshape(1, 1, 15, 17)])
    expected = np.rint((np.clip(x.numpy(), -1, 1) + np.float32(1)) / np.float32(2) * np.float32(255))
    np.testing.assert_array_equal(to_uint8(x).numpy(), expected.astype(np.uint8))


def test_a_half_rounds_to_the_even_neighbour():
    # The midpoint is exact in binary: 127.5 -> 128.
    assert to_uint8(torch.zeros(1, 1, 1, 1)).item() == 128


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_samples_are_refused_and_counted(bad):
    x = torch.zeros(5, 3, 2, 2)
    x[1, 0, 0, 0] = x[4, 2, 1, 1] = bad
    with pytest.raises(ImageError, match="2 of 5 images") as error:
        to_uint8(x)
    _one_line(error)


def test_bytes_are_not_converted_twice():
    with pytest.raises(ImageError, match="uint8"):
        to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_every_grey_level_survives_the_way_through_floats(levels):
    images = torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    assert torch.equal(to_uint8(to_signed(images)), images)
    assert torch.equal(to_float01(images), images.float() / 255)
