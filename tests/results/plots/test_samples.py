import numpy as np
import pytest
from PIL import Image

from dmqbench.results.plots.samples import Row, comparison


def grey(n: int = 5, size: int = 8, value: int = 100) -> np.ndarray:
    return np.full((n, 1, size, size), value, dtype=np.uint8)


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def find(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (pixels == colour).all(axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_shows_its_samples_in_order_at_the_scale(tmp_path, channels):
    levels = np.array([10, 40, 70], dtype=np.uint8)
    rows = [
        Row(f"row {number}", "", np.broadcast_to((levels + number)[:, None, None, None], (3, channels, 8, 8)))
        for number in range(3)
    ]
    pixels = drawn(comparison(rows, tmp_path / "picture.png", scale=3))
    tops = []
    for number in range(3):
        lefts = []
        for level in levels + number:
            ys, xs = np.nonzero(find(pixels, (level,) * 3))
            assert (np.ptp(ys) + 1, np.ptp(xs) + 1, len(ys)) == (24, 24, 24 * 24)
            lefts.append(xs.min())
        assert lefts == sorted(lefts)
        tops.append(ys.min())
    assert tops == sorted(tops)


def test_labels_stand_left_of_the_samples(tmp_path):
    pixels = drawn(comparison([Row("full precision", "8.1 MiB", grey())], tmp_path / "p.png"))
    left = np.nonzero(find(pixels, (100, 100, 100)))[1].min()
    ink = (pixels[:, : left - 1].sum(axis=-1) < 450).sum()
    assert ink > 100
    wider = drawn(comparison([Row("a much longer label than that", "", grey())], tmp_path / "q.png"))
    assert wider.shape[1] > pixels.shape[1]


def test_differences_are_hotter_where_they_are_larger_and_absent_where_equal(tmp_path):
    reference = grey(n=2)
    strong, weak = reference.copy(), reference.copy()
    strong[0] += 60
    weak[0] += 20
    rows = [Row("fp", "", reference), Row("weak", "", weak), Row("strong", "", strong)]
    pixels = drawn(comparison(rows, tmp_path / "p.png"))
    coloured = (pixels.max(axis=-1) - pixels.min(axis=-1)) > 30
    cells = coloured[:, : pixels.shape[1] // 2 + 200]
    hot = find(pixels, (90, 10, 40))
    assert hot.sum() >= 12 * 12, "the largest difference has the end of the scale"
    assert cells.sum() >= 2 * 12 * 12
    assert np.nonzero(coloured & ~hot)[0].min() < np.nonzero(hot)[0].min(), "the weak row stands above the strong"
    plain = drawn(comparison(rows, tmp_path / "q.png", differences=False))
    assert ((plain.max(axis=-1) - plain.min(axis=-1)) <= 30).all()
    assert plain.shape[0] < pixels.shape[0]


def test_identical_rows_have_no_scale(tmp_path):
    pixels = drawn(comparison([Row("fp", "", grey()), Row("rtn", "", grey())], tmp_path / "p.png"))
    assert ((pixels.max(axis=-1) - pixels.min(axis=-1)) <= 30).all()


def test_columns_are_bounded_by_the_fewest_samples_and_large_images_shrink(tmp_path):
    wide = drawn(comparison([Row("fp", "", grey(20))], tmp_path / "a.png", columns=16))
    short = drawn(comparison([Row("fp", "", grey(20)), Row("fp", "", grey(3))], tmp_path / "b.png", columns=16))
    assert wide.shape[1] - short.shape[1] == 13 * (24 + 4)
    small = drawn(comparison([Row("fp", "", grey(2, size=64))], tmp_path / "c.png", scale=0.25))
    assert find(small, (100, 100, 100)).sum() == 2 * 16 * 16


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Row("a", "", grey().astype(np.float32))],
        [Row("a", "", grey()[:, 0])],
        [Row("a", "", grey(0))],
        [Row("a", "", grey()), Row("b", "", grey(size=9))],
    ],
    ids=["none", "float", "three-dimensional", "empty", "sizes"],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(rows, tmp_path):
    with pytest.raises(ValueError, match=r"\S"):
        comparison(rows, tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []
