"""In which portions a stage fits into the memory that a job allows it, found on shapes alone."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from dmqbench.calibration.offloading import offloaded_bytes, weights_elsewhere
from dmqbench.calibration.rows import Shelf
from dmqbench.calibration.shape_bench import ShapeBench
from dmqbench.models.portions import WHOLE, Portions
from dmqbench.models.shape_memo import ShapeMemo
from dmqbench.stages.footprints import Footprint


@dataclass(frozen=True)
class Fit:
    """A stage in some portions.

    Args:
        bench: as the stage leaves it.
        computing: the most bytes that it holds.
    """

    bench: ShapeBench
    computing: int

    @property
    def portions(self) -> Portions:
        return self.bench.portions


def fitted(bench: ShapeBench, footprint: Footprint, settings: Any, limit: float | None, first: Portions = WHOLE) -> Fit:
    """Return a stage in the portions that hold at most ``limit`` bytes at the least cost, or, where there are none, in
    those that hold least.

    What is kept is moved first, which costs copies; then blocks are computed again, which costs a forward pass; then
    batches are cut.

    Args:
        first: what is done at any rate.
    """
    if limit is None:
        return Fit(bench, footprint(bench, settings))
    _ = bench.seen  # found once for all trials

    def tried(portions: Portions) -> Fit:
        return _tried(deepcopy(bench), footprint, settings, portions)

    plain = tried(first)
    if plain.computing <= limit:
        return plain
    best = min(plain, tried(replace(first, moved=True)), key=_computing)
    if best.computing > limit:
        units = tuple(unit.name for unit in bench.topology.units)
        best = min(best, tried(replace(best.portions, recomputed=units)), key=_computing)
    if best.computing <= limit:
        return best
    batch = getattr(settings, "batch", None) or getattr(settings, "samples", 1)
    return _cut(lambda samples: tried(replace(best.portions, samples=samples)), best, batch * bench.branches, limit)


def _tried(bench: ShapeBench, footprint: Footprint, settings: Any, portions: Portions) -> Fit:
    bench.portions, bench.elsewhere = portions, 0
    if not portions.offloaded:
        return Fit(bench, footprint(bench, settings))
    weights = offloaded_bytes(bench.network)
    with ShapeMemo(), weights_elsewhere(bench.network, Shelf(moved=True)):
        computing = footprint(bench, settings)
    bench.elsewhere += weights
    return Fit(bench, computing)


def _computing(fit: Fit) -> int:
    return fit.computing


def _cut(tried: Callable[[int], Fit], whole: Fit, batch: int, limit: float) -> Fit:
    """The fit of the most samples at once, of a batch of about so many, or the one that holds least."""
    least = tried(1)
    if least.computing > limit:
        return min(whole, least, key=_computing)
    # What is held is convex in the samples: not above the line between one and all.
    share = (limit - least.computing) / (whole.computing - least.computing)
    samples = int(1 + share * (batch - 1))
    while samples > 1:
        if (fit := tried(samples)).computing <= limit:
            return fit
        samples //= 2
    return least
