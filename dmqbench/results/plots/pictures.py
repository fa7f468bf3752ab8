"""Every PNG file that a store's findings and diagnoses allow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dmqbench.results.plots.render import save
from dmqbench.results.result import Result
from dmqbench.results.studies import studies
from dmqbench.results.studies.findings import FindingsReader


def draw(root: Path, rows: Sequence[Result], beside: Path) -> Iterator[Path]:
    """Draw every picture that findings and diagnoses of ``rows`` have data for beside ``beside``; yield their paths."""
    reader = FindingsReader(root)
    for study in studies().values():
        for name, figure in study.pictures(rows, reader).items():
            yield save(figure, beside.with_name(f"{beside.stem}-{name}.png"))
