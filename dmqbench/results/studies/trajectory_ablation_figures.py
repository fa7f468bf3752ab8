"""Figures of what calibration over several denoising steps gives by its horizon and its gradient."""

from collections.abc import Callable, Sequence

from dmqbench.results.figure import Axis, Figure, Line, Panel, ratio_axis
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.findings import Figures, FindingsReader
from dmqbench.results.studies.study import Study
from dmqbench.results.studies.trajectory_ablation import VARIED, Ablation, Trial, ablation

VARIED_TITLES = {"horizon": "calls that the model runs by itself (horizon)", "gradient": "gradient"}


def ablation_figures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
    """Return a figure for each of ``VARIED`` of which there are jobs enough."""
    found = {varied: ablation(rows, reader, varied) for varied in VARIED}
    return {varied: curves_of(one) for varied, one in found.items() if one is not None}


def ablation_pictures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
    """Return one figure ``ablation`` with a column for each that there is."""
    figures = ablation_figures(rows, reader)
    if not figures:
        return {}
    panels = tuple(panel for row in zip(*(figure.panels for figure in figures.values()), strict=True) for panel in row)
    notes = tuple(f"by {varied}: {'; '.join(figure.notes)}" for varied, figure in figures.items())
    return {"ablation": Figure("Calibration over several denoising steps", panels, notes, columns=len(figures))}


def curves_of(found: Ablation) -> Figure:
    """Against the horizon or gradient, from the top: PSNR, end-state error, cosine and norm of the gradient."""
    trials = [trial for curve in found.curves for trial in curve.trials]
    x = Axis(VARIED_TITLES[found.varied], names=tuple(str(place) for place in found.places))
    gain = Axis("PSNR (dB)")
    if found.compared:
        gain = Axis("PSNR over un-tuned (dB)", "dB over un-tuned", reference=0.0)
    error = ratio_axis("end-state error, after / before", "error, after / before", [trial.error for trial in trials])
    norm = ratio_axis("gradient: norm over the exact one's", "ratio of norms", [trial.ratio for trial in trials])
    cosine = Axis("gradient: cosine with the exact one", "cosine")
    panels = (
        Panel(_lines(found, found.gain, found.ends), x, gain, f"by {found.varied}", height=1.3),
        Panel(_lines(found, lambda trial: trial.error), x, error),
        Panel(_lines(found, lambda trial: trial.cosine), x, cosine, height=0.9),
        Panel(_lines(found, lambda trial: trial.ratio), x, norm, height=0.8),
    )
    return Figure(
        f"Calibration over several steps, by {found.varied}",
        panels,
        tuple(found.sentences),
        description=f"PSNR, error of the end states and agreement with the exact gradient, by {found.varied}",
        narrow=True,
    )


def _lines(
    found: Ablation,
    value: Callable[[Trial], float | None],
    ends: Callable[[Trial], tuple[float, float] | None] | None = None,
) -> tuple[Line, ...]:
    """One line per curve; it has a name where there are several."""
    return tuple(
        Line(
            curve.name if len(found.curves) > 1 else "",
            [found.places.index(trial.place) for trial in curve.trials],
            [value(trial) for trial in curve.trials],
            PALETTE[number],
            joined=found.varied == "horizon",
            symbol=number,
            ends=[ends(trial) for trial in curve.trials] if ends else (),
            texts=[_sentence(trial) for trial in curve.trials],
            precision=".4g",
            jobs=[trial.row.folder.name for trial in curve.trials],
        )
        for number, curve in enumerate(found.curves)
    )


def _sentence(trial: Trial) -> str:
    return trial.over_untuned.sentence if trial.over_untuned else f"{trial.row.label} {trial.row.bits}"


STUDY = Study(ablation_figures, ablation_pictures)
