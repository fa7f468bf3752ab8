"""One picture of what quantization does: a row of samples per method and bits, full precision on top.

Above it lies what the samples were made from, where that is images. Below each quantized row lies its difference from
full precision, on one scale for the whole picture.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dmqbench.config.names import UNKNOWN
from dmqbench.results.result import Result
from dmqbench.results.stored import Pixels, first_images
from dmqbench.store.artifacts import Store
from dmqbench.store.files import replacing

_BACKGROUND, _INK, _FAINT = (250, 249, 246), (34, 34, 38), (120, 120, 126)
_HEAT = ((255, 255, 255), (253, 205, 130), (238, 120, 55), (190, 40, 45), (90, 10, 40))
"""From no difference to the full scale."""
_FULL_SCALE_QUANTILE = 0.995
_MARGIN, _GAP, _ROW_GAP = 24, 4, 16
_MAX_WIDTH = 2400
_LEGEND_HEIGHT, _LEGEND_WIDTH = 44, 480
_CELL = 48


class Row(NamedTuple):
    """Samples of one job: label, a smaller line below it, uint8 [N, C, H, W] with C = 1 or 3."""

    label: str
    sublabel: str
    images: Pixels


class _Layout(NamedTuple):
    """Sizes in pixels: a column of labels, then ``columns`` cells; cells of differences are half as large."""

    columns: int
    cell: tuple[int, int]
    label_width: int

    @property
    def left(self) -> int:
        return _MARGIN + self.label_width

    @property
    def thin(self) -> tuple[int, int]:
        return self.cell[0] // 2, self.cell[1] // 2

    @property
    def width(self) -> int:
        return self.left + self.columns * (self.cell[0] + _GAP) - _GAP + _MARGIN

    def x(self, column: int) -> int:
        return self.left + column * (self.cell[0] + _GAP)


def comparison(
    rows: Sequence[Row],
    path: Path,
    scale: float = 3,
    columns: int = 16,
    differences: bool = True,
    inputs: Sequence[Row] = (),
) -> Path:
    """Draw ``rows`` to the PNG file ``path`` and return it; the others are compared with the first row.

    Column i shows sample i of every row. ``inputs``, what the samples were made from, lie above all and are compared
    with nothing. ``scale`` is the magnification of the samples. ``ValueError`` if the rows are not images of one size.
    """
    _check([*rows, *inputs])
    columns = min(columns, *(len(row.images) for row in (*rows, *inputs)))
    height, width = (max(1, round(side * scale)) for side in rows[0].images.shape[2:])
    layout = _Layout(columns, (width, height), _label_width([*rows, *inputs]))
    reference = rows[0].images[:columns]
    errors = [_difference(row.images[:columns], reference) for row in rows[1:]] if differences else []
    full_scale = _full_scale(errors)
    alone = len(inputs) + 1
    below = _GAP + layout.thin[1] if errors else 0
    block = height + _ROW_GAP
    total_height = _MARGIN + block * (alone + len(rows) - 1) + below * len(errors) - _ROW_GAP + _MARGIN
    total_height += _LEGEND_HEIGHT if full_scale else 0
    total_width = max(layout.width, layout.left + _LEGEND_WIDTH if full_scale else 0)
    canvas = Image.new("RGB", (total_width, total_height), _BACKGROUND)
    y = _MARGIN
    for row, error in zip_longest((*inputs, *rows), [None] * alone + errors):
        _draw_row(canvas, layout, y, row)
        if error is not None:
            _draw_heat(canvas, layout, y + height + _GAP, error, full_scale)
        y += block + (0 if error is None else below)
    if full_scale:
        _draw_legend(canvas, layout, y + 4, full_scale)
    with replacing(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)
    return path


def picture_of(store_root: Path, folders: Sequence[Path], path: Path, columns: int = 16) -> Path:
    """Draw the samples of the jobs in the result ``folders`` below those of full precision, same seeds.

    ``ValueError`` if the jobs do not share their full-precision samples, or the store does not hold them.
    """
    results = sorted((Result.load(folder) for folder in folders), key=lambda result: result.rank)
    reference = results[0].samples.fp if results else None
    if reference is None or any(result.samples.fp != reference for result in results):
        raise ValueError(f"{len(results)} results do not share one set of full-precision samples")
    store = Store(store_root)
    quantized = [result for result in results if not result.full_precision]
    top = next((result for result in results if result.full_precision), None)
    varying = [name for name in ("scope", "ranges", "seed") if len({getattr(job, name) for job in quantized}) > 1]
    given = {result.samples.input for result in results if result.samples.input is not None}
    rows = [Row("full precision", "" if top is None else _caption(top, []), first_images(store, reference, columns))]
    for result in quantized:
        images = first_images(store, str(result.samples.quantized), columns)
        bits = "" if result.bits == UNKNOWN else result.bits.upper()
        rows.append(Row(f"{result.label}  {bits}".rstrip(), _caption(result, varying), images))
    width = rows[0].images.shape[3]
    fitting = (_MAX_WIDTH - 200) / columns - _GAP
    scale = max(1, _CELL // width) if width <= _CELL else min(fitting / width, 1.0)
    inputs = [Row("input", results[0].task or "", first_images(store, id, columns)) for id in sorted(given)]
    return comparison(rows, path, scale, columns, inputs=inputs)


def _caption(result: Result, varying: Sequence[str]) -> str:
    """Return PSNR and size, and what tells rows of the same method and bits apart."""
    psnr = result.value("psnr")
    parts = [] if psnr is None else [f"{psnr:.1f} dB"]
    parts += [] if result.size_mib is None else [f"{result.size_mib:.2f} MiB"]
    parts += [f"{name} {value}" for name in varying if (value := getattr(result, name)) is not None]
    return "  ".join(parts)


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("a picture needs at least one row")
    for row in rows:
        images = row.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0:
            raise ValueError(f"row {row.label!r}: expected uint8 N×C×H×W images, got {images.dtype} {images.shape}")
        if images.shape[1:] != rows[0].images.shape[1:]:
            raise ValueError(f"row {row.label!r}: {images.shape[1:]} against {rows[0].images.shape[1:]} of the first")


def _difference(images: Pixels, reference: Pixels) -> NDArray[np.float64]:
    """Return the absolute difference [N, H, W] in grey levels, averaged over the channels."""
    return np.abs(images.astype(np.float64) - reference.astype(np.float64)).mean(axis=1)


def _full_scale(errors: Sequence[NDArray[np.float64]]) -> float:
    """Return the difference that ends the colours; not the largest: one pixel must not fade the rest."""
    if not errors:
        return 0.0
    everything = np.stack(errors)
    return float(np.quantile(everything, _FULL_SCALE_QUANTILE) or everything.max())


def _as_picture(image: Pixels, size: tuple[int, int]) -> Image.Image:
    """Enlarge by repeating pixels, which invents nothing; reduce with a filter, which drops nothing."""
    picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).convert("RGB")
    enlarging = size[0] >= picture.width
    return picture.resize(size, Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)


def _heat(values: NDArray[np.float64]) -> Pixels:
    """Map values in 0..1, [H, W], to colours [3, H, W]."""
    anchors = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, anchors, [colour[channel] for colour in _HEAT]) for channel in range(3)]
    return np.stack(channels).round().astype(np.uint8)


def _draw_row(canvas: Image.Image, layout: _Layout, y: int, row: Row) -> None:
    draw = ImageDraw.Draw(canvas)
    middle = y + layout.cell[1] // 2
    if row.sublabel:
        draw.text((_MARGIN, middle - 1), row.label, font=_font(15), fill=_INK, anchor="ls")
        draw.text((_MARGIN, middle + 17), row.sublabel, font=_font(12), fill=_FAINT, anchor="ls")
    else:
        draw.text((_MARGIN, middle), row.label, font=_font(15), fill=_INK, anchor="lm")
    for column in range(layout.columns):
        canvas.paste(_as_picture(row.images[column], layout.cell), (layout.x(column), y))


def _draw_heat(canvas: Image.Image, layout: _Layout, y: int, errors: NDArray[np.float64], full_scale: float) -> None:
    for column in range(layout.columns):
        heat = _heat(errors[column] / full_scale if full_scale else errors[column] * 0)
        centred = layout.x(column) + (layout.cell[0] - layout.thin[0]) // 2
        canvas.paste(_as_picture(heat, layout.thin), (centred, y))


def _draw_legend(canvas: Image.Image, layout: _Layout, y: int, full_scale: float) -> None:
    draw = ImageDraw.Draw(canvas)
    bar = _heat(np.tile(np.linspace(0, 1, 160), (10, 1)))
    canvas.paste(_as_picture(bar, (160, 10)), (layout.left, y + 8))
    draw.rectangle((layout.left - 1, y + 7, layout.left + 160, y + 18), outline=(214, 212, 206))
    draw.text((layout.left - 8, y + 13), "0", font=_font(12), fill=_FAINT, anchor="rm")
    text = f"{full_scale:.3g} or more of 255 grey levels away from full precision"
    draw.text((layout.left + 168, y + 13), text, font=_font(12), fill=_FAINT, anchor="lm")


def _label_width(rows: Sequence[Row]) -> int:
    widths = [_font(15).getlength(row.label) for row in rows] + [_font(12).getlength(row.sublabel) for row in rows]
    return round(max(widths)) + 22


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
