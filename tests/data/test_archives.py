"""Images of other programs: read as they are, or refused in one line. The oracle is what the test wrote."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy
from PIL import Image

from dmqbench.data.archive_info import LARGEST_ARCHIVE, LARGEST_SIDE, ArchiveError
from dmqbench.data.archives import archive_hash, content_hash, inspect, read_batches, read_images
from dmqbench.data.npz_images import arrays_in


def pixels(count=5, channels=3, height=6, width=7, seed=0):
    """Random uint8 [N, C, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), np.uint8)


def save_npz(path: Path, images, **arrays) -> Path:
    """As ADM does: channels last, called arr_0."""
    np.savez(path, images.transpose(0, 2, 3, 1), **arrays)
    return path


def save_folder(folder: Path, images, name="{}.png", **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
            folder / name.format(number), **options
        )
    return folder


def header_only(path: Path, shape, dtype="|u1", fortran=False, payload=b"", deflate=False) -> Path:
    """An archive whose array announces ``shape`` and has ``payload``."""
    content = io.BytesIO()
    npy.write_array_header_1_0(content, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("arr_0.npy", content.getvalue() + payload)
    return path


def refusal(path) -> str:
    """What ``inspect`` says: one line that names the file."""
    with pytest.raises(ArchiveError) as caught:
        inspect(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert message == f"{caught.value.path}: {caught.value.reason}"
    return caught.value.reason


# ---- what is read


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["channels first", "channels last"])
def test_an_archive_gives_the_pixels_that_were_saved(tmp_path, channels, save, layout):
    images = pixels(70, channels)
    save(tmp_path / "x.npz", images.transpose(layout))
    info = inspect(tmp_path / "x.npz")
    assert (info.count, info.shape, info.note) == (70, (channels, 6, 7), None)
    np.testing.assert_array_equal(read_images(tmp_path / "x.npz"), images)
    assert archive_hash(tmp_path / "x.npz") == content_hash(images)


@costly(30)
@given(
    st.integers(1, 9), st.sampled_from([1, 3]), st.integers(4, 9), st.integers(4, 9), st.integers(1, 12), st.booleans()
)
def test_any_archive_and_any_folder_come_back(tmp_path_factory, count, channels, height, width, limit, as_folder):
    path = tmp_path_factory.mktemp("case")
    images = pixels(count, channels, height, width, seed=count)
    path = save_folder(path, images) if as_folder else save_npz(path / "x.npz", images)
    np.testing.assert_array_equal(read_images(path, limit), images[:limit])
    parts = list(read_batches(path, batch=3))
    assert [len(part) for part in parts[:-1]] == [3] * (len(parts) - 1)
    np.testing.assert_array_equal(np.concatenate(parts), images)


def test_the_same_pixels_have_one_hash_whatever_holds_them(tmp_path):
    images = pixels(12)
    archive = save_npz(tmp_path / "x.npz", images)
    folder = save_folder(tmp_path / "folder", images)
    assert archive_hash(archive) == archive_hash(folder) == content_hash(images)
    other = images.copy()
    other[3, 1, 2, 0] ^= 1
    assert content_hash(other) != content_hash(images)
    assert content_hash(images.reshape(12, 3, 7, 6)) != content_hash(images)


def test_two_arrays_of_images_are_not_chosen_from(tmp_path):
    np.savez(tmp_path / "x.npz", quantized=pixels(4), full=pixels(4))
    with pytest.raises(ArchiveError, match=r"several arrays of images \(quantized, full\)"):
        inspect(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["labels", "arr_0"], "arr_0"),
        (["labels", "samples"], "samples"),
        (["labels", "images"], "images"),
        (["x", "labels"], "x"),
    ],
)
def test_which_array_of_an_archive_holds_the_images(tmp_path, names, chosen):
    images = pixels(4)
    arrays: dict[str, Any] = {name: images if name == chosen else np.arange(4) for name in names}
    np.savez(tmp_path / "x.npz", **arrays)
    np.testing.assert_array_equal(read_images(tmp_path / "x.npz"), images)
    assert {name: header.shape for name, header in arrays_in(tmp_path / "x.npz").items()} == {
        name: array.shape for name, array in arrays.items()
    }


def test_files_are_taken_in_the_order_in_which_a_reader_counts(tmp_path):
    images = pixels(12, 1)
    folder = save_folder(tmp_path, images, "img{}.png")
    assert sorted(path.name for path in folder.iterdir())[1] == "img1.png"
    assert sorted(path.name for path in folder.iterdir())[2] == "img10.png"
    np.testing.assert_array_equal(read_images(folder), images)
    np.testing.assert_array_equal(read_images(folder, limit=3), images[:3])


def test_grey_bilevel_and_palette_files(tmp_path):
    colours = np.array([[255, 0, 0], [0, 128, 255]], np.uint8)
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8) % 2
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette(colours.tobytes())
    (tmp_path / "palette").mkdir()
    palette.save(tmp_path / "palette" / "0.png")
    np.testing.assert_array_equal(read_images(tmp_path / "palette")[0], colours[indices].transpose(2, 0, 1))
    (tmp_path / "bilevel").mkdir()
    Image.fromarray(indices.astype(bool)).save(tmp_path / "bilevel" / "0.png")
    np.testing.assert_array_equal(read_images(tmp_path / "bilevel")[0, 0], indices * 255)
    assert inspect(save_folder(tmp_path / "grey", pixels(2, 1))).channels == 1


@pytest.mark.parametrize(("suffix", "lossy"), [("png", None), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")])
def test_files_that_may_have_lost_detail_are_read_and_noted(tmp_path, suffix, lossy):
    smooth = np.tile(np.linspace(0, 255, 16, dtype=np.uint8), (3, 1, 16, 1))
    info = inspect(save_folder(tmp_path, smooth, f"{{}}.{suffix}"))
    assert (info.note is None) == (lossy is None)
    assert lossy is None or lossy in str(info.note)
    difference = read_images(tmp_path).astype(int) - smooth
    assert abs(difference).max() <= (0 if lossy is None else 20)


def test_other_files_of_a_folder_are_left_alone(tmp_path):
    images = pixels(2)
    save_folder(tmp_path, images)
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "._0.png").write_bytes(b"what macOS leaves")
    (tmp_path / "9.png").mkdir()
    np.testing.assert_array_equal(read_images(tmp_path), images)


# ---- what is refused


def test_what_is_not_there_or_empty(tmp_path):
    assert refusal(tmp_path / "absent.npz") == "there is no such file or folder"
    assert refusal(tmp_path) == "no .png, .jpg, .jpeg, .webp files in this folder"
    save_folder(tmp_path / "class0", pixels(1))
    assert refusal(tmp_path).endswith("those in its subfolders are not read")
    np.savez(tmp_path / "x.npz", np.zeros((0, 8, 8, 3), np.uint8))
    assert refusal(tmp_path / "x.npz") == "array arr_0 holds no images (0×8×8×3)"
    np.savez(tmp_path / "x.npz")
    assert refusal(tmp_path / "x.npz").startswith("an archive without arrays")
    np.save(tmp_path / "x.npy", pixels())
    assert refusal(tmp_path / "x.npy") == "a bare array; save it with np.savez(file, images)"
    with pytest.raises(ValueError, match="limit=0"):
        next(read_batches(save_npz(tmp_path / "y.npz", pixels()), limit=0))


@pytest.mark.parametrize(
    ("values", "said", "advice"),
    [
        (np.linspace(-1, 1, 2 * 8 * 8 * 3), "float64 in [-1, 1]", ".round().astype(np.uint8)"),
        (
            np.linspace(0, 1, 2 * 8 * 8 * 3).astype(np.float32),
            "float32 in [0, 1]",
            "by (x * 255).round().astype(np.uint8)",
        ),
        (np.linspace(0, 255, 2 * 8 * 8 * 3).astype(np.float32), "float32 in [0, 255]", "by x.round().astype(np.uint8)"),
        (np.arange(2 * 8 * 8 * 3) % 256, "int64 in [0, 255]", "by x.astype(np.uint8)"),
        (np.full(2 * 8 * 8 * 3, np.nan, np.float16), "float16 in [nan, nan] with NaN", "uint8 in [0, 255] is needed"),
        (np.zeros(2 * 8 * 8 * 3, bool), "bool", "uint8 in [0, 255] is needed"),
        (np.zeros(2 * 8 * 8 * 3, "U5"), "<U5", "uint8 in [0, 255] is needed"),
    ],
)
def test_values_that_are_not_bytes_are_refused_with_their_range(tmp_path, values, said, advice):
    np.savez(tmp_path / "x.npz", values.reshape(2, 8, 8, 3))
    reason = refusal(tmp_path / "x.npz")
    assert reason.startswith(f"array arr_0 holds {said}; uint8 in [0, 255] is needed")
    assert advice in reason


def test_pickled_objects_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    array = np.empty(2, object)
    array[:] = [Bomb(), Bomb()]
    np.savez(tmp_path / "x.npz", array)
    assert "pickled objects, which are never opened" in refusal(tmp_path / "x.npz")
    assert arrays_in(tmp_path / "x.npz")["arr_0"].dtype.hasobject


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((8, 8, 3), "shape 8×8×3; N×H×W×C with C = 1 or 3 is needed"),
        ((2, 8, 8), "shape 2×8×8; N×H×W×C"),
        ((2, 8, 8, 2), "shape 2×8×8×2; N×H×W×C"),
        ((2, 8, 8, 4), "drop the fourth channel"),
        ((2, 4, 8, 8), "drop the fourth channel"),
        ((2, 3, 8, 3), "shape 2×3×8×3, which is N×H×W×C or N×C×H×W"),
        ((2, 1, 1, 1), "which is N×H×W×C or N×C×H×W"),
        ((), "shape a scalar"),
    ],
)
def test_shapes_that_are_not_images_or_could_be_two_things(tmp_path, shape, said):
    np.savez(tmp_path / "x.npz", np.zeros(shape, np.uint8))
    assert said in refusal(tmp_path / "x.npz")


def test_values_in_fortran_order(tmp_path):
    np.savez(tmp_path / "x.npz", np.asfortranarray(pixels().transpose(0, 2, 3, 1)))
    assert "np.ascontiguousarray" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_files_that_are_no_archives(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    assert refusal(tmp_path / "x.npz").startswith("damaged, or not an npz archive")


def test_an_archive_that_is_damaged_inside(tmp_path):
    path = save_npz(tmp_path / "x.npz", pixels(40))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert inspect(path).count == 40  # the header is whole
    with pytest.raises(ArchiveError, match="damaged"):
        read_images(path)
    path.write_bytes(save_npz(path, pixels(40)).read_bytes()[:-200])
    assert refusal(path).startswith("damaged")


@pytest.mark.parametrize("member", [b"", b"no header", npy.magic(3, 0) + b"\0" * 40, npy.magic(1, 0) + b"\xff\xff{"])
def test_a_member_that_is_no_array(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", member)
    assert refusal(tmp_path / "x.npz").startswith("damaged")


def test_fewer_bytes_than_the_header_announces(tmp_path):
    path = header_only(tmp_path / "x.npz", (10, 8, 8, 3), payload=bytes(8 * 8 * 3 * 4))
    assert inspect(path).count == 10
    assert len(read_images(path, limit=4)) == 4
    with pytest.raises(ArchiveError, match="fewer than the 10 images that it announces"):
        read_images(path)


def test_sizes_that_no_samples_have_are_refused_unread(tmp_path):
    path = tmp_path / "x.npz"
    header_only(path, (1, LARGEST_SIDE + 1, 8, 3))
    assert f"at most {LARGEST_SIDE}×{LARGEST_SIDE} are read" in refusal(path)
    header_only(path, (LARGEST_ARCHIVE, 8, 8, 3))
    assert "GiB of pixels; at most 64 GiB are read" in refusal(path)
    header_only(path, (-5, 8, 8, 3))
    assert "no images" in refusal(path)
    header_only(path, (10**30, 8, 8, 3), "<f8")
    assert refusal(path)


def test_a_bomb_costs_no_more_memory_than_what_is_asked_for(tmp_path):
    """2 GiB of zeros announced in 20 kB: the first images are read, the rest is never unpacked."""
    path = header_only(tmp_path / "x.npz", (2**31 // 192, 8, 8, 3), payload=bytes(2**24), deflate=True)
    assert path.stat().st_size < 2**15
    assert not read_images(path, limit=2).any()
    header_only(path, (2**35 // 192, 8, 8, 3))
    with pytest.raises(ArchiveError, match="do not fit into memory; at most"):
        read_images(path)


def test_files_of_a_folder_that_do_not_belong_together(tmp_path):
    save_folder(tmp_path, pixels(3))
    Image.fromarray(pixels(1, 3, 9, 9)[0].transpose(1, 2, 0)).save(tmp_path / "7.png")
    for read in (inspect, read_images):
        with pytest.raises(ArchiveError, match=r"7\.png: is 3×9×9 .*, and 0\.png before it is 3×6×7"):
            read(tmp_path)
    Image.fromarray(pixels(1, 1)[0, 0]).save(tmp_path / "7.png")
    with pytest.raises(ArchiveError, match=r"7\.png: is 1×6×7"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("mode", "suffix", "said"),
    [
        ("RGBA", "png", "transparency"),
        ("LA", "png", "transparency"),
        ("I;16", "png", "8 bits, grey or RGB, are needed"),
        ("CMYK", "jpg", "pixels of kind CMYK"),
    ],
)
def test_files_whose_pixels_would_have_to_be_changed(tmp_path, mode, suffix, said):
    Image.new(mode, (8, 8)).save(tmp_path / f"0.{suffix}")
    with pytest.raises(ArchiveError, match=said):
        inspect(tmp_path)


def test_a_palette_with_a_transparent_colour(tmp_path):
    Image.new("P", (8, 8)).save(tmp_path / "0.png", transparency=0)
    with pytest.raises(ArchiveError, match="transparency"):
        inspect(tmp_path)


def test_files_with_several_frames(tmp_path):
    frames = [Image.fromarray(image.transpose(1, 2, 0)) for image in pixels(3)]
    frames[0].save(tmp_path / "0.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ArchiveError, match="has 3 frames"):
        inspect(tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n cut off"])
def test_files_that_are_no_images(tmp_path, content):
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"0\.png: (not a PNG, JPEG, WEBP file|damaged)"):
        inspect(tmp_path)


def test_a_format_that_is_not_listed_hides_behind_no_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.bmp")
    (tmp_path / "0.bmp").rename(tmp_path / "0.png")
    with pytest.raises(ArchiveError, match="whatever its name says"):
        inspect(tmp_path)


def test_a_truncated_file_is_found_when_it_is_read(tmp_path):
    save_folder(tmp_path, pixels(3, height=64, width=64))
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArchiveError, match=r"1\.png: damaged"):
        read_images(tmp_path)


def test_an_image_that_announces_too_many_pixels(tmp_path):
    """A PNG header of 30000×30000 without the pixels."""
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    content = bytearray((tmp_path / "0.png").read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(ArchiveError, match="announces more than"):
        inspect(tmp_path)
