"""What every method changes against one of them, with verdicts."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dmqbench.config.names import UNKNOWN
from dmqbench.results.cells import bits_text, number_text
from dmqbench.results.compare import Comparison, compare
from dmqbench.results.over_seeds import SeedComparison, over_seeds
from dmqbench.results.result import Result, printable
from dmqbench.results.seeds import same_but_seed
from dmqbench.results.sheets import Cell, Line, Sheet, title_of
from dmqbench.results.tables import Table

_SIMPLEST = "rtn"


class Contrast(NamedTuple):
    """One row's metric against another row's: of one seed, or over several."""

    row: Result
    metric: str
    seeds: str
    comparison: Comparison | SeedComparison

    @property
    def text(self) -> str:
        """The difference ± half of its 95 % interval."""
        difference, interval = self.comparison.difference, self.comparison.ci95
        if difference is None:
            return "–"
        sign = "+" if difference > 0 else ""
        half = number_text((interval[1] - interval[0]) / 2, 2) if interval else ""
        return f"{sign}{number_text(difference, 3)}" + (f"±{half}" if half and half != "0" else "")

    @property
    def single(self) -> bool:
        """Whether it is of one calibration seed."""
        return isinstance(self.comparison, Comparison)

    @property
    def count(self) -> str:
        """How many samples, or seeds, the verdict rests on."""
        return str(len(self.comparison.seeds) if isinstance(self.comparison, SeedComparison) else self.comparison.n)


def contrasts(table: Table, against: str) -> list[Contrast]:
    """Compare each row with that of the method ``against`` at equal bits, ranges and seed; then over their seeds.

    Full precision, which has neither, compares with every row; of rows made elsewhere the bits must agree.
    """
    partners = [row for row in table.rows if row.label == against]
    rows = [row for row in table.rows if row.label != against and not row.full_precision]
    pairs = [(row, partner) for row in rows if (partner := _partner(row, partners)) is not None]
    singles = [
        Contrast(row, metric, str(row.seed), compare(row, partner, metric))
        for row, partner in pairs
        for metric in _shared(row, partner)
    ]
    return singles + list(_over_seeds(pairs))


def baselines(table: Table) -> list[str]:
    """Return the methods of the table that another one can be compared with, the most often first.

    Of equals, round-to-nearest comes first: every method claims to be better than that.
    """
    rows = [row for row in table.rows if not row.full_precision]
    counts = {}
    for label in dict.fromkeys(row.label for row in rows):
        candidates = [row for row in table.rows if row.label == label]
        counts[label] = sum(_partner(row, candidates) is not None for row in rows if row.label != label)
    return sorted((label for label in counts if counts[label]), key=lambda label: (-counts[label], label != _SIMPLEST))


def difference_sheet(table: Table, against: str) -> Sheet | None:
    """Return one line per row and metric; ``None`` where nothing compares with ``against``."""
    compared = contrasts(table, against)
    if not compared:
        return None
    varying = len({row.ranges for row in table.rows if not row.full_precision}) > 1
    words = ("method", "bits", *(("ranges",) if varying else ()), "seed", "metric")
    lines, previous = [], None
    for contrast in compared:
        row = contrast.row
        cells = [printable(row.label), bits_text(row), *((printable(row.ranges or "–"),) if varying else ())]
        cells += [
            contrast.seeds,
            printable(contrast.metric),
            contrast.text,
            contrast.count,
            contrast.comparison.verdict,
        ]
        place = (id(row), contrast.seeds)
        section = previous not in (None, place)
        bold = contrast.comparison.verdict == "better"
        lines.append(Line((*map(Cell, cells[:-1]), Cell(cells[-1], bold)), section, row=row))
        previous = place
    return Sheet(
        title=f"{title_of(table)} · against {printable(against)}",
        columns=(*words, "difference", "n", "verdict"),
        lefts=len(words),
        lines=tuple(lines),
        notes=(
            f"difference: minus the value of {printable(against)} at the same bits, ranges and seed; "
            "±: half of its 95 % interval",
            "cannot tell: that interval holds zero, with this n",
        ),
    )


def _over_seeds(pairs: Iterable[tuple[Result, Result]]) -> Iterator[Contrast]:
    groups: dict[Any, dict[int, tuple[Result, Result]]] = defaultdict(dict)
    for row, partner in pairs:
        groups[same_but_seed(row), same_but_seed(partner)].setdefault(row.seed, (row, partner))
    for members in (list(group.values()) for group in groups.values() if len(group) > 1):
        firsts = [row for row, _ in members]
        seconds = list({id(partner): partner for _, partner in members}.values())
        metrics = [metric for metric in _shared(*members[0]) if all(metric in _shared(*pair) for pair in members)]
        for metric in metrics:
            yield Contrast(firsts[0], metric, f"{len(firsts)} seeds", over_seeds(firsts, seconds, metric))


def _partner(row: Result, candidates: Iterable[Result]) -> Result | None:
    return next((other for other in candidates if _alike(row, other)), None)


def _alike(row: Result, other: Result) -> bool:
    if other.full_precision:
        return True
    same = row.foreign or other.foreign or (row.ranges, row.seed) == (other.ranges, other.seed)
    return row.bits == other.bits != UNKNOWN and same


def _shared(row: Result, partner: Result) -> Sequence[str]:
    return [metric for metric in row.measurements if metric in partner.measurements]
