"""What is restored or edited: every stream has images of its own."""

import numpy as np
import pytest
import torch
from PIL import Image

from dmqbench.data.archive_info import LEAST_IMAGES, ArchiveError
from dmqbench.data.degradation import super_resolution_condition
from dmqbench.data.image_streams import ImageStreams, file_streams, own_streams
from dmqbench.data.own_images import OWN_IMAGES

STREAMS = ("cal", "val", "eval")


def each_once(streams: ImageStreams) -> dict[str, set[bytes]]:
    """The images of every stream by their bytes, as samples see them."""
    sizes = {stream: len(streams.images[stream]) for stream in STREAMS}
    return {
        stream: {image.numpy().tobytes() for image in streams.pixels(stream, range(size))}
        for stream, size in sizes.items()
    }


def share_nothing(streams: ImageStreams) -> bool:
    seen = each_once(streams)
    return all(not seen[a] & seen[b] for a, b in (("cal", "val"), ("cal", "eval"), ("val", "eval")))


def pictures(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, channels), dtype=np.uint8)


def test_streams_of_digits_share_no_image_and_evaluate_held_out_ones():
    from dmqbench.data.digits import load_split

    streams = own_streams("digits")
    assert share_nothing(streams)
    assert {stream: len(images) for stream, images in streams.images.items()} == {"cal": 719, "val": 718, "eval": 360}
    held_out, labels = load_split()[1]
    assert (streams.signed("eval", range(360)) - held_out).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(streams.labels_of("eval", range(360), 10), labels)


def test_what_is_said_of_shipped_images_is_what_is_shipped():
    for name, shape in OWN_IMAGES.items():
        assert own_streams(name).images["eval"].shape[1:] == shape


@pytest.mark.parametrize("count", [4, 5, 17])
def test_streams_of_a_file_share_no_image_and_leave_none_out(tmp_path, count):
    np.savez(tmp_path / "mine.npz", pictures(count))
    streams = file_streams(tmp_path / "mine.npz")
    assert share_nothing(streams)
    assert sum(len(images) for images in streams.images.values()) == count
    assert min(len(images) for images in streams.images.values()) >= 1


def test_an_image_that_is_there_twice_is_used_once(tmp_path):
    different = pictures(6)
    np.savez(tmp_path / "mine.npz", np.concatenate([different, different[::-1]]))
    streams = file_streams(tmp_path / "mine.npz")
    assert share_nothing(streams)
    assert sum(len(images) for images in streams.images.values()) == 6
    assert torch.equal(streams.images["eval"], torch.from_numpy(different[::2].transpose(0, 3, 1, 2)))


def test_a_folder_is_read_as_an_archive_is(tmp_path):
    for number, image in enumerate(pictures(5, channels=3)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    np.savez(tmp_path / "mine.npz", pictures(5, channels=3))
    for stream in STREAMS:
        assert torch.equal(file_streams(tmp_path).images[stream], file_streams(tmp_path / "mine.npz").images[stream])


def test_too_few_different_images_are_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "same.npz", np.repeat(pictures(1), 8, axis=0))
    with pytest.raises(ArchiveError, match=f"holds 1 different images; at least {LEAST_IMAGES}") as caught:
        file_streams(tmp_path / "same.npz")
    assert "\n" not in str(caught.value)


def test_sample_i_has_image_i_mod_size_and_labels_follow():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    own = ImageStreams({"eval": images}, {"eval": torch.tensor([7, 8, 9])})
    assert own.pixels("eval", [0, 4, 302])[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert own.labels_of("eval", [0, 4, 302], 10).tolist() == [7, 8, 9]
    unknown = ImageStreams({"eval": images})
    assert unknown.labels_of("eval", [0, 4, 302], 10).tolist() == [0, 4, 2]


def test_super_resolution_averages_areas_and_enlarges_bilinearly():
    image = np.random.default_rng(1).uniform(-1, 1, (12, 8))
    means = image.reshape(3, 4, 2, 4).mean(axis=(1, 3))

    def enlarged(values: np.ndarray) -> np.ndarray:
        """Along the first axis, four times: samples lie in the middle of their areas; the ends are held."""
        old, new = (np.arange(len(values)) + 0.5) * 4, np.arange(4 * len(values)) + 0.5
        return np.stack([np.interp(new, old, column) for column in values.T], axis=1)

    expected = enlarged(enlarged(means).T).T
    found = super_resolution_condition(torch.from_numpy(image)[None, None], 4)
    assert np.abs(found[0, 0].numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("factor", [0, 1, 3, 32])
def test_a_factor_must_divide_the_image(factor):
    with pytest.raises(ValueError, match="factor"):
        super_resolution_condition(torch.zeros(1, 1, 16, 16), factor)
