"""Every PNG file that a store's findings allow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmqbench.results.plots.canvas import save
from dmqbench.results.plots.precision import ablation as precision_picture
from dmqbench.results.plots.precision import row_bits, tuning_errors
from dmqbench.results.plots.scaling import channel_ranges, dose, plot_title, samples_against_votes, step_weights, votes
from dmqbench.results.plots.trajectory import ablations, accumulated
from dmqbench.results.result import Result
from dmqbench.results.studies.dose_response import dose_curve
from dmqbench.results.studies.error_accumulation import error_panels
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.precision_ablation import precision_ablation
from dmqbench.results.studies.trajectory_ablation import VARIED, ablation
from dmqbench.results.studies.vote_selection import selection_curves


def draw(root: Path, rows: Sequence[Result], beside: Path) -> Iterator[Path]:
    """Draw every picture that findings and diagnoses of ``rows`` have data for beside ``beside``; yield their paths.

    Pictures of one job are of the first that has such findings: its name stands in them.
    """
    reader = FindingsReader(root)
    for name, figure in _pictures(rows, reader):
        yield save(figure, beside.with_name(f"{beside.stem}-{name}.png"))


def _pictures(rows: Sequence[Result], reader: FindingsReader) -> Iterator[tuple[str, Any]]:
    found = [(row, reader.of(row)) for row in rows]
    scaled = next(((row, one.scaling) for row, one in found if one.scaling and one.scaling["channels"]), None)
    powered = next(((row, one.powers) for row, one in found if one.powers and one.powers["layers"]), None)
    if scaled is not None:
        yield "ranges", channel_ranges(*scaled)
        yield "weights", step_weights(*scaled)
    if powered is not None:
        yield "votes", votes(*powered)
    curve, curves = dose_curve(rows, reader), selection_curves(rows, reader)
    if curve is not None:
        yield "dose", dose(curve)
    if curves is not None:
        yield "samples", samples_against_votes(curves)
    varied = [one for name in VARIED if (one := ablation(rows, reader, name)) is not None]
    if varied:
        yield "ablation", ablations(varied)
    allocated = next(((row, one.allocation) for row, one in found if one.allocation), None)
    tuned = next(((row, one.tuning) for row, one in found if one.tuning), None)
    variants = precision_ablation(rows)
    if allocated is not None:
        yield "bits", row_bits(plot_title(allocated[0]), allocated[1])
    if tuned is not None:
        yield "tuning", tuning_errors(plot_title(tuned[0]), tuned[1])
    if variants is not None:
        yield "precision", precision_picture(variants)
    panels = error_panels(rows, reader)
    if panels:
        yield "errors", accumulated(panels)
