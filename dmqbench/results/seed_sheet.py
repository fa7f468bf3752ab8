"""Methods over their calibration seeds: the first thing to look at, where a store holds several."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from dmqbench.results.best import Best
from dmqbench.results.cells import bits_text, number_text, size_text, spread_text, word_text
from dmqbench.results.over_seeds import over_seeds
from dmqbench.results.result import printable
from dmqbench.results.seeds import SeedGroup, seed_groups
from dmqbench.results.sheets import Cell, Line, Sheet, directions_of, title_of, varying
from dmqbench.results.tables import Table

NOTES = (
    "±: half of the 95 % interval of the mean over calibration seeds (Student's), for the same evaluation noise",
    "bold: best mean of its bits, and what its seeds cannot tell from it (differences paired by seed)",
    "calibration floor: standard deviation over the seeds of one method, pooled over methods",
)


def seed_sheet(table: Table, compact: bool = False, best: Best | None = None) -> Sheet | None:
    """Return one line per method and settings that has several seeds, None where none has; ``best`` spares asking."""
    groups = seed_groups(table.rows)
    if not groups:
        return None
    extra = [name for name in varying(table) if name != "seed"]
    words = ("method", "bits", *extra, "seeds")
    best = best_over_seeds(table) if best is None else best
    lines = []
    for number, group in enumerate(groups):
        first = group.rows[0]
        cells = [printable(first.label), bits_text(first), *(word_text(getattr(first, name)) for name in extra)]
        cells += [str(len(group.rows)), size_text(first.size_mib, compact)]
        values = [Cell(spread_text(group.spread(name), compact), number in best[name]) for name in table.metrics]
        section = number > 0 and first.bits != groups[number - 1].rows[0].bits
        lines.append(Line((*map(Cell, cells), *values), section))
    floors = [calibration_floor(groups, metric) for metric in table.metrics]
    texts = ["–" if floor is None else number_text(floor, 2) for floor in floors]
    blanks = [""] * len(words)
    lines.append(Line(tuple(map(Cell, ("calibration floor", *blanks, *texts))), section=True, floor=True))
    return Sheet(
        title=f"{title_of(table)} · over seeds",
        columns=(*words, "MiB", *table.metrics),
        lefts=len(words),
        lines=tuple(lines),
        notes=NOTES,
        directions=directions_of(table),
    )


def calibration_floor(groups: Sequence[SeedGroup], metric: str) -> float | None:
    """Return the standard deviation over seeds within a group, pooled: what one seed's value says of a method.

    ``None`` where no group has a value in every seed.
    """
    squares, freedom = 0.0, 0
    for values in filter(None, (group.values(metric) for group in groups)):
        mean = fmean(values)
        squares += sum((value - mean) ** 2 for value in values)
        freedom += len(values) - 1
    return math.sqrt(squares / freedom) if freedom else None


def best_over_seeds(table: Table) -> Best:
    """Return, per metric, the places among the groups of seeds that are best of their bits, as far as seeds tell."""
    groups = seed_groups(table.rows)
    return {metric: _best(groups, metric) for metric in table.metrics}


def _best(groups: Sequence[SeedGroup], metric: str) -> frozenset[int]:
    """Places of the groups with the best mean of their bits, and of those whose seeds leave open which is better."""
    return frozenset(place for rivals in _rivals(groups, metric) for place in _leading(groups, rivals, metric))


def _rivals(groups: Sequence[SeedGroup], metric: str) -> Iterator[list[int]]:
    """Places of groups of equal bits that have a mean; where one stands alone there is nothing to be best of."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        if group.spread(metric) is not None:
            places[group.rows[0].bits].append(place)
    return (rivals for rivals in places.values() if len(rivals) > 1)


def _leading(groups: Sequence[SeedGroup], rivals: Sequence[int], metric: str) -> Iterator[int]:
    sign = {True: 1, False: -1, None: 0}[groups[rivals[0]].rows[0].measurements[metric].higher_is_better]
    if not sign:
        return
    best = max(rivals, key=lambda place: sign * fmean(groups[place].values(metric) or ()))
    for place in rivals:
        if place == best or _cannot_tell(groups[place], groups[best], metric):
            yield place


def _cannot_tell(group: SeedGroup, best: SeedGroup, metric: str) -> bool:
    if not {row.seed for row in group.rows} & {row.seed for row in best.rows}:
        return True
    return over_seeds(group.rows, best.rows, metric).verdict == "cannot tell"
