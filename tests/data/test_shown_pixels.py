"""Pixels are what a viewer shows, or the file is refused by its name: a table of format × property.

The oracle is what the test drew, turned by numpy or converted by Pillow's ImageCms, never the reader itself.
"""

import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

from dmqbench.data import image_folders
from dmqbench.data.archive_info import ArchiveError
from dmqbench.data.archives import archive_hash, content_hash, inspect, read_images, stored_hash

WIDTH, HEIGHT = 8, 6


def drawn(channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, C] or [H, W] without any symmetry, in smooth colours that JPEG keeps."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [40 + 20 * x + 5 * y + seed, 200 - 15 * x + 3 * y, 30 + 25 * y + 4 * x]
    picture = np.stack(planes, -1).astype(np.uint8)
    return picture if channels == 3 else picture[..., 0]


def png(values: np.ndarray, depth: int, colour: int, before: list = (), after: list = ()) -> bytes:  # type: ignore[assignment]
    """A PNG file made by hand: rows of bytes, and chunks around the pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in values)
    parts = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def saved(values: np.ndarray, form: str, mode: str | None = None, **options) -> bytes:
    file = BytesIO()
    image = Image.fromarray(values)
    options = {"quality": 100, "subsampling": 0, **options} if form == "JPEG" else options
    options = {"lossless": True, **options} if form == "WEBP" else options
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = to_lab.apply(image)
    elif mode is not None:
        image = image.convert(mode)
    image.save(file, form, **options)
    return file.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def of_camera(space: int | None, index: str | None = None) -> Image.Exif:
    """What cameras write of the colours: a number, and which of the standard's two kinds of files it is."""
    exif = Image.Exif()
    if space is not None:
        exif.get_ifd(0x8769)[0xA001] = space
    if index is not None:
        exif.get_ifd(0x8769)[0xA005] = {1: index, 2: b"0100"}
    return exif


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows, from the table in the EXIF standard: where the 0th row and the 0th column are."""
    way: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda v: v,
        2: lambda v: v[:, ::-1],
        3: lambda v: v[::-1, ::-1],
        4: lambda v: v[::-1],
        5: lambda v: v.swapaxes(0, 1),
        6: lambda v: v[::-1].swapaxes(0, 1),
        7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
        8: lambda v: v[:, ::-1].swapaxes(0, 1),
    }
    return way[orientation](values)


def profile(name: str = "sRGB") -> bytes:
    """An ICC profile: of sRGB, or one whose red and blue are exchanged, as no viewer shows bytes."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if name != "sRGB":
        count = struct.unpack(">I", content[128:132])[0]
        place = {bytes(content[132 + 12 * n : 136 + 12 * n]): 136 + 12 * n for n in range(count)}
        red, blue = (slice(place[tag], place[tag] + 8) for tag in (b"rXYZ", b"bXYZ"))
        content[red], content[blue] = content[blue], content[red]
    return bytes(content)


def frames(form: str) -> bytes:
    file = BytesIO()
    Image.fromarray(drawn()).save(file, form, save_all=True, append_images=[Image.fromarray(drawn(seed=9))])
    return file.getvalue()


def with_key(values: np.ndarray, mode: str, transparency) -> bytes:
    return saved(values, "PNG", mode, transparency=transparency)


GREY, COLOUR = drawn(1), drawn(3)
SIXTEEN = COLOUR.astype(">u2") * 256 + 129
EXIF_CHUNK = (b"eXIf", oriented(6).tobytes().removeprefix(b"Exif\0\0"))
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
XMP_TEXT = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
EXIF_BYTES = b"Exif\0\0" + EXIF_CHUNK[1]
RAW_EXIF = (
    b"tEXt",
    b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(EXIF_BYTES), EXIF_BYTES.hex().encode()),
)
"""As ImageMagick writes it."""
ADOBE = of_camera(0xFFFF, "R03")
LAB = saved(COLOUR, "TIFF", "LAB")
SHADES = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 16

READ: dict[str, tuple[str, bytes, np.ndarray, int]] = {
    # name: (suffix, file, what a viewer shows, levels by which a lossy format may be off)
    "PNG grey": (".png", saved(GREY, "PNG"), GREY, 0),
    "PNG colour": (".png", saved(COLOUR, "PNG"), COLOUR, 0),
    "PNG bilevel": (".png", saved(GREY > 99, "PNG"), (GREY > 99) * np.uint8(255), 0),
    "PNG grey of 4 bits": (
        ".png",
        png((SHADES[:, ::2] * 16 + SHADES[:, 1::2]).astype(np.uint8), 4, 0),
        (SHADES * 17).astype(np.uint8),
        0,
    ),
    "PNG palette": (
        ".png",
        saved(COLOUR, "PNG", "P"),
        np.asarray(Image.fromarray(COLOUR).convert("P").convert("RGB")),
        0,
    ),
    "PNG sRGB chunk beside a gamma": (
        ".png",
        png(COLOUR, 8, 2, [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))]),
        COLOUR,
        0,
    ),
    "PNG cICP of sRGB": (".png", png(COLOUR, 8, 2, [(b"cICP", bytes((1, 13, 0, 1)))]), COLOUR, 0),
    "PNG profile of sRGB": (".png", saved(COLOUR, "PNG", icc_profile=profile()), COLOUR, 0),
    "PNG turned": (".png", saved(COLOUR, "PNG", exif=oriented(6)), turned(COLOUR, 6), 0),
    "PNG turned behind its pixels": (".png", png(COLOUR, 8, 2, after=[EXIF_CHUNK]), turned(COLOUR, 6), 0),
    "PNG texts of others": (
        ".png",
        png(COLOUR, 8, 2, [(b"tEXt", b"parameters\0a cat, steps 20")], [(b"tEXt", b"Comment\0exif orientation=6")]),
        COLOUR,
        0,
    ),
    "PNG turned by a text": (".png", png(COLOUR, 8, 2, [RAW_EXIF]), turned(COLOUR, 6), 0),
    "PNG turned by a text behind its pixels": (".png", png(COLOUR, 8, 2, after=[RAW_EXIF]), turned(COLOUR, 6), 0),
    "PNG turned by XMP": (".png", png(COLOUR, 8, 2, [XMP_TEXT]), turned(COLOUR, 8), 0),
    "PNG Adobe RGB by EXIF, sRGB by its chunk": (
        ".png",
        png(COLOUR, 8, 2, [(b"sRGB", b"\0"), (b"eXIf", ADOBE.tobytes().removeprefix(b"Exif\0\0"))]),
        COLOUR,
        0,
    ),
    "PNG broken EXIF": (".png", png(COLOUR, 8, 2, [(b"eXIf", b"II*")]), COLOUR, 0),
    "JPEG grey": (".jpg", saved(GREY, "JPEG"), GREY, 3),
    "JPEG colour": (".jpeg", saved(COLOUR, "JPEG"), COLOUR, 6),
    "JPEG profile of sRGB": (".jpg", saved(COLOUR, "JPEG", icc_profile=profile()), COLOUR, 6),
    "JPEG grey with a profile of sRGB": (".jpg", saved(GREY, "JPEG", icc_profile=profile()), GREY, 3),
    "JPEG sRGB by EXIF": (".jpg", saved(COLOUR, "JPEG", exif=of_camera(1, "R98")), COLOUR, 6),
    "JPEG of no calibrated colours": (".jpg", saved(COLOUR, "JPEG", exif=of_camera(0xFFFF)), COLOUR, 6),
    "JPEG Adobe RGB by EXIF, sRGB by its profile": (
        ".jpg",
        saved(COLOUR, "JPEG", exif=ADOBE, icc_profile=profile()),
        COLOUR,
        6,
    ),
    "JPEG broken EXIF": (".jpg", saved(COLOUR, "JPEG", exif=b"Exif\0\0nonsense"), COLOUR, 6),
    "WebP colour": (".webp", saved(COLOUR, "WEBP"), COLOUR, 0),
    "WebP turned": (".webp", saved(COLOUR, "WEBP", exif=oriented(8)), turned(COLOUR, 8), 0),
    "WebP turned by XMP": (".webp", saved(COLOUR, "WEBP", xmp=XMP), turned(COLOUR, 8), 0),
    **{
        f"JPEG orientation {n}": (".jpg", saved(COLOUR, "JPEG", exif=oriented(n)), turned(COLOUR, n), 6)
        for n in range(1, 9)
    },
}

REFUSED: dict[str, tuple[str, bytes, str]] = {
    # name: (suffix, file, what is said)
    "PNG grey of 16 bits": (".png", png(SIXTEEN[..., 0], 16, 0), "8 bits, grey or RGB"),
    "PNG colour of 16 bits": (".png", png(SIXTEEN, 16, 2), "16 bits a channel"),
    "PNG alpha": (".png", saved(COLOUR, "PNG", "RGBA"), "transparency"),
    "PNG grey with alpha": (".png", saved(GREY, "PNG", "LA"), "transparency"),
    "PNG grey with a transparent level": (".png", with_key(GREY, "L", 40), "transparency"),
    "PNG with a transparent colour": (".png", with_key(COLOUR, "RGB", (40, 200, 30)), "transparency"),
    "PNG palette with a transparent colour": (".png", with_key(COLOUR, "P", 0), "transparency"),
    "PNG animated": (".png", frames("PNG"), "has 2 frames"),
    "PNG profile of other colours": (".png", saved(COLOUR, "PNG", icc_profile=profile("other")), "colour profile"),
    "PNG profile that is none": (".png", saved(COLOUR, "PNG", icc_profile=b"nonsense" * 20), "colour profile"),
    "PNG gamma of 1": (".png", png(COLOUR, 8, 2, [(b"gAMA", struct.pack(">I", 100000))]), "gamma 1"),
    "PNG gamma of 0": (".png", png(COLOUR, 8, 2, [(b"gAMA", struct.pack(">I", 0))]), "gamma"),
    "PNG primaries of Display P3": (
        ".png",
        png(
            COLOUR,
            8,
            2,
            [(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))],
        ),
        "primaries",
    ),
    "PNG cICP of PQ": (".png", png(COLOUR, 8, 2, [(b"cICP", bytes((9, 16, 0, 1)))]), "cICP"),
    "JPEG CMYK": (".jpg", saved(COLOUR, "JPEG", "CMYK"), "kind CMYK"),
    "JPEG profile of other colours": (".jpg", saved(COLOUR, "JPEG", icc_profile=profile("other")), "colour profile"),
    "JPEG Adobe RGB by EXIF": (".jpg", saved(COLOUR, "JPEG", exif=ADOBE), "Adobe RGB"),
    "JPEG Adobe RGB by its kind of file": (".jpg", saved(COLOUR, "JPEG", exif=of_camera(None, "R03")), "Adobe RGB"),
    "JPEG Adobe RGB by a number": (".jpg", saved(COLOUR, "JPEG", exif=of_camera(2)), "Adobe RGB"),
    "PNG Adobe RGB by EXIF": (".png", saved(COLOUR, "PNG", exif=ADOBE.tobytes()), "Adobe RGB"),
    "WebP Adobe RGB by EXIF": (".webp", saved(COLOUR, "WEBP", exif=ADOBE), "Adobe RGB"),
    "JPEG of several pictures": (".jpg", frames("MPO"), "has 2 frames"),
    "WebP alpha": (".webp", saved(np.dstack([COLOUR, GREY]), "WEBP"), "transparency"),
    "WebP animated": (".webp", frames("WEBP"), "has 2 frames"),
    "WebP profile of other colours": (".webp", saved(COLOUR, "WEBP", icc_profile=profile("other")), "colour profile"),
    "TIFF": (".tif", saved(COLOUR, "TIFF"), "format that is not read"),
    "TIFF of 16 bits": (".tiff", saved(SIXTEEN[..., 0].astype(np.uint16), "TIFF"), "format that is not read"),
    "TIFF LAB": (".TIFF", LAB, "format that is not read"),
    "BMP": (".bmp", saved(COLOUR, "BMP"), "format that is not read"),
    "GIF": (".gif", saved(COLOUR, "GIF", "P"), "format that is not read"),
    "TIFF that is called PNG": (".png", saved(COLOUR, "TIFF"), "whatever its name says"),
    "BMP that is called JPEG": (".jpg", saved(COLOUR, "BMP"), "whatever its name says"),
}

NPZ: dict[str, tuple[np.ndarray, str | None]] = {
    # name: (array, what is said; None: it is read)
    "grey": (GREY[None, ..., None], None),
    "colour": (COLOUR[None], None),
    "colour, channels first": (COLOUR[None].transpose(0, 3, 1, 2), None),
    "16 bits": (SIXTEEN[None].astype(np.uint16), "uint8 in [0, 255] is needed"),
    "LAB of signed bytes": (COLOUR[None].view(np.int8), "int8"),
    "floats": (COLOUR[None] / 255.0, "float64"),
    "alpha or CMYK": (np.dstack([COLOUR, GREY])[None], "drop the fourth channel"),
    "indices of a palette": (GREY[None], "N×H×W×C"),
    "frames": (COLOUR[None, None], "shape 1×1×6×8×3"),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def as_images(shown: np.ndarray) -> np.ndarray:
    """[C, H, W]"""
    return shown[None] if shown.ndim == 2 else shown.transpose(2, 0, 1)


@pytest.mark.parametrize("case", READ)
def test_a_file_gives_what_a_viewer_shows(tmp_path, case):
    suffix, content, shown, off = READ[case]
    folder, expected = write(tmp_path, {f"0{suffix}": content}), as_images(shown)
    assert inspect(folder).shape == expected.shape
    [found] = read_images(folder)
    assert np.abs(found.astype(int) - expected).max() <= off
    assert archive_hash(folder) == content_hash(found[None])


@pytest.mark.parametrize("place", ["alone", "last of three"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_would_have_to_be_changed_is_refused_by_its_name(tmp_path, case, place):
    suffix, content, said = REFUSED[case]
    plain = saved(GREY if "grey" in case else COLOUR, "PNG")
    others = {} if place == "alone" else {"0.png": plain, "1.png": plain}
    folder = write(tmp_path, {**others, f"2{suffix}": content})
    for read in (inspect, read_images):
        with pytest.raises(ArchiveError) as caught:
            read(folder)
        assert caught.value.path.name == f"2{suffix}"
        assert said in caught.value.reason and "\n" not in str(caught.value)


@pytest.mark.parametrize("case", NPZ)
def test_an_archive_is_read_as_it_is_or_refused(tmp_path, case):
    values, said = NPZ[case]
    np.savez(tmp_path / "x.npz", values)
    if said is None:
        expected = values if values.shape[1] in (1, 3) else values.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(read_images(tmp_path / "x.npz"), expected)
        return
    with pytest.raises(ArchiveError, match="array arr_0 holds") as caught:
        inspect(tmp_path / "x.npz")
    assert said in caught.value.reason


def test_a_file_on_its_side_among_upright_ones_is_turned_or_named(tmp_path):
    upright = saved(COLOUR, "JPEG")
    lying = saved(COLOUR.swapaxes(0, 1)[:, ::-1], "JPEG", exif=oriented(8))  # shown as the others are
    folder = write(tmp_path / "same", {"0.jpg": upright, "1.jpg": lying, "2.jpg": upright})
    found = read_images(folder)
    assert np.abs(found[1].astype(int) - found[0]).max() <= 6
    other = write(
        tmp_path / "other", {"0.jpg": upright, "1.jpg": upright, "2.jpg": saved(COLOUR, "JPEG", exif=oriented(6))}
    )
    with pytest.raises(ArchiveError, match=r"2\.jpg: is 3×8×6 .*, and 0\.jpg before it is 3×6×8"):
        inspect(other)


def test_profiles_are_told_by_what_they_show(tmp_path):
    """ImageCms says that one profile leaves these pixels as they are, and the other does not."""
    for name, moved in (("sRGB", False), ("other", True)):
        given = ImageCms.ImageCmsProfile(BytesIO(profile(name)))
        shown = ImageCms.profileToProfile(Image.fromarray(COLOUR), given, ImageCms.createProfile("sRGB"))
        assert (np.abs(np.asarray(shown).astype(int) - COLOUR).max() > 20) == moved


def test_a_file_is_described_once_and_its_pixels_are_left_alone(tmp_path, monkeypatch):
    folder = write(tmp_path, {f"{n}.png": READ["PNG texts of others"][1] for n in range(3)})
    time.sleep(0.2)  # files that were written just now may be written again
    opened, decoded = [], []
    open_, load = image_folders.Image.open, PngImageFile.load

    def opening(path, **options):
        opened.append(path)
        return open_(path, **options)

    def loading(image):
        decoded.append(image)
        return load(image)

    monkeypatch.setattr(image_folders.Image, "open", opening)
    monkeypatch.setattr(PngImageFile, "load", loading)
    for _ in range(3):
        assert inspect(folder).count == 3
    assert (len(opened), decoded) == (3, [])
    stored_hash(folder)
    read_images(folder)
    assert len(opened) == 3 + 2 * 3
