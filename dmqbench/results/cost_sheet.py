"""What calibration took, job by job: network calls, seconds, memory."""

from collections.abc import Callable, Iterator
from typing import Any

from dmqbench.results.cells import bits_text, number_text
from dmqbench.results.record import CalibrationPart, largest
from dmqbench.results.result import Result, printable
from dmqbench.results.sheets import Cell, Line, Sheet, title_of, varying
from dmqbench.results.tables import Table

REFERENCE = "q_diffusion"
"""The method whose time others are compared with: some papers claim to take less."""

_RATIO = f"seconds / {REFERENCE}"
_PEAKS: dict[str, Callable[[CalibrationPart], int | None]] = {
    "peak MiB": lambda part: part.peak_memory_mib,
    "peak GPU MiB": lambda part: part.peak_device_memory_mib,
}


def cost_sheet(table: Table) -> Sheet | None:
    """Return one line per job that was calibrated; None where there is none."""
    rows = [row for row in table.rows if row.calibration_calls]
    if not rows:
        return None
    extra = varying(table)
    ratios = [_ratio(row, rows) for row in rows]
    compared = any(ratios)
    clocks = ("seconds", "CPU s") if any(_times(row)[0] for row in rows) else ("seconds",)
    peaks = tuple(name for name, of in _PEAKS.items() if any(largest(map(of, row.calibration)) for row in rows))
    words = ("method", "bits", *extra)
    lines = []
    for number, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        cells = [printable(row.label), bits_text(row), *(printable(getattr(row, name)) for name in extra)]
        times = ["–" if time is None else number_text(time, 3) for time in reversed(_times(row))]
        cells += [f"{row.calibration_calls:,}", *times[: len(clocks)]]
        cells += [_count(largest(map(_PEAKS[name], row.calibration))) for name in peaks]
        cells += [ratio or "–"] if compared else []
        section = number > 0 and row.bits != rows[number - 1].bits
        lines.append(Line(tuple(map(Cell, cells)), section, row=row))
    notes = (
        "network calls: of batch 1 in full precision, a backward pass counts as two; trajectories are included",
        "seconds and peak memory: of the run that made each part; jobs share parts",
    )
    if len(clocks) > 1:
        notes += ("CPU s: of the processor, all threads; the clock's seconds also count what else the machine did",)
    against = f"CPU seconds (the clock's where one has none) over {REFERENCE}'s, same bits, budget, seed and device"
    return Sheet(
        title=f"{title_of(table)} · calibration cost",
        columns=(*words, "network calls", *clocks, *peaks, *((_RATIO,) if compared else ())),
        lefts=len(words),
        lines=tuple(lines),
        notes=(*notes, *((f"{_RATIO}: {against}",) if compared else ())),
    )


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _ratio(row: Result, rows: list[Result]) -> str:
    """The time of ``row`` over that of the reference, of equal or else of shared ranges if it has them; "" if none."""
    rivals = [other for other in _references(rows) if _setting(other) == _setting(row)]
    rivals.sort(key=lambda other: (other.ranges != row.ranges, other.ranges != "shared"))
    if not rivals:
        return ""
    for own, reference in zip(_times(row), _times(rivals[0]), strict=True):
        if own is not None and reference:
            return number_text(own / reference, 3)
    return ""


def _times(row: Result) -> tuple[float | None, float | None]:
    """What calibration and its trajectories took, of the processor and by the clock."""
    return row.timing.processor.calibration, row.timing.calibration


def _references(rows: list[Result]) -> Iterator[Result]:
    return (row for row in rows if row.method == REFERENCE and not row.variant)


def _setting(row: Result) -> tuple[Any, ...]:
    """What two jobs share whose times can be compared."""
    device = row.environment.get("device"), row.settings("trainer").get("accelerator")
    return row.bits, row.seed, row.budget_sizes, row.settings("calibration"), device
