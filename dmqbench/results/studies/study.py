"""What a study is: what the page and the PNG files show of one stage's findings, or of many jobs together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from dmqbench.results.figure import Figure
from dmqbench.results.result import Result
from dmqbench.results.studies.findings import Figures, FindingsReader, StageFindings

T = TypeVar("T")
Shown: TypeAlias = Callable[[Sequence[Result], FindingsReader], Figures]


def nothing(rows: Sequence[Result], reader: FindingsReader) -> Figures:
    return {}


@dataclass(frozen=True)
class Study:
    """One subject.

    Attributes:
        parts: figures for the page on what many jobs say together; none where there are not the jobs for it.
        pictures: figures for PNG files.
        findings: those of the stage that the study is about; the page shows them of every job.
    """

    parts: Shown = nothing
    pictures: Shown = nothing
    findings: type[StageFindings] | None = None


def of_stage(findings: type[StageFindings]) -> Study:
    """Return the study of one stage; its pictures are of the first job that has findings to draw."""

    def pictures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
        known = ((row, reader.of(row, findings)) for row in rows)
        drawn = ({key: _titled(figure, row) for key, figure in kept.pictures.items()} for row, kept in known if kept)
        return next(filter(None, drawn), {})

    return Study(pictures=pictures, findings=findings)


def of_jobs(
    key: str, find: Callable[[Sequence[Result], FindingsReader], T | None], draw: Callable[[T], Figure]
) -> Study:
    """Return a study of one figure, on the page and in PNG files: of what ``find`` finds among jobs, if anything."""

    def figures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
        subject = find(rows, reader)
        return {} if subject is None else {key: draw(subject)}

    return Study(figures, figures)


def _titled(figure: Figure, row: Result) -> Figure:
    ranges = f", ranges {row.ranges}" if row.ranges else ""
    job = f"{row.model}, {row.label} {row.bits.upper()}{ranges}"
    return replace(figure, title=f"{job}: {figure.title[0].lower()}{figure.title[1:]}")
