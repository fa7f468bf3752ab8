"""What stands below a table: how to read it, and what its numbers rest on."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from dmqbench.config.names import UNKNOWN
from dmqbench.eval.protocol import entries_of, unknown_entries
from dmqbench.results.cells import DECLARED
from dmqbench.results.correlations import correlations
from dmqbench.results.result import printable
from dmqbench.results.seeds import seed_groups
from dmqbench.results.tables import Table

SIMULATED = "quantization is simulated in floating point: sizes follow from the bits, no speed is claimed"

_SHARED_ENTRIES = ("sampler", "steps", "eta", "guidance", "clip", "chunk", "engine", "seed")
_SETTING_NAMES = {"seed": "metrics.seed"}
_SCOPES = {"common": "the same layers of every method are quantized", "paper": "the layers that its paper quantizes"}


def notes_of(table: Table, compared: bool) -> Iterable[str]:
    """Yield the lines below ``table``; ``compared``: something in it is bold."""
    yield "; ".join(_legend(table))
    counts: dict[int, list[str]] = defaultdict(list)
    for metric in table.metrics:
        counts[next(row.measurements[metric].n for row in table.rows if metric in row.measurements)].append(metric)
    setting = _setting(table)
    sizes = ", ".join(f"{n} ({' '.join(names)})" for n, names in counts.items())
    yield f"n: {sizes}" + (f"; {setting}" if setting else "")
    legend = "; bold: best of its bits, and what the intervals cannot tell from it (paired where they can be)"
    yield "±: half the 95 % interval" + (legend if compared else "")
    floors = {value.floor.kind for row in table.rows for value in row.measurements.values() if value.floor}
    if "other_seed" in floors:
        yield "other seed floor: two sets of full precision that share no noise; sets that do can lie below it"
    if _has_one_seed(table):
        yield "one calibration seed: another gives other numbers, by more than ± says; claims of order need several"
    if any(row.cost.simulated for row in table.rows if not row.full_precision):
        yield SIMULATED
    yield from _input_notes(table, max(counts, default=0))
    yield from _foreign_notes(table)
    yield from _proxy_notes(table)
    reasons = {(name, why) for row in table.rows for name, why in row.unavailable.items()}
    yield from (printable(f"{name} not available: {why}") for name, why in sorted(reasons))


def _has_one_seed(table: Table) -> bool:
    """Whether methods are compared, and each of them was calibrated once."""
    calibrated = [row for row in table.rows if not row.full_precision and not row.foreign]
    return len(calibrated) > 1 and not seed_groups(table.rows)


def _legend(table: Table) -> Iterator[str]:
    """What the columns and the title say."""
    yield "↑ higher is better, ↓ lower"
    if table.scope in _SCOPES:
        yield f"scope {table.scope}: {_SCOPES[table.scope]}"
    if any(not row.full_precision and row.ranges for row in table.rows):
        yield "ranges: calls of the network that share those of activations (shared: all, group5: five, step: one)"


def _input_notes(table: Table, most: int) -> Iterator[str]:
    """Intervals take samples for independent, which those of one image are not quite."""
    known = [count for row in table.rows if (count := row.input_images) is not None]
    fewest = min(known, default=most)
    if fewest < most:
        yield f"samples start from {fewest} images, in turn: where n is larger, intervals take repeats for independent"


def _proxy_notes(table: Table) -> Iterator[str]:
    """How cheap errors go with PSNR over the jobs of the table, where there are enough of them."""
    entries = [(entry, entry.correlation) for entry in correlations(table.rows) if entry.correlation is not None]
    if entries:
        words = (f"{entry.proxy.replace('_', ' ')} {correlation.spearman:+.2f}" for entry, correlation in entries)
        yield f"rank correlation with psnr over {entries[0][0].n} jobs: {', '.join(words)}"


def _foreign_notes(table: Table) -> Iterator[str]:
    """Say what nobody told this program about rows made elsewhere."""
    open_entries: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in table.rows:
        unknown = {entry for value in row.measurements.values() for entry in unknown_entries(value.protocol)}
        if unknown:
            open_entries[tuple(sorted(unknown))].append(printable(row.label))
    for entries, labels in open_entries.items():
        names = ", ".join(dict.fromkeys(labels))
        yield f"{names}: made elsewhere; unknown and taken as the table's: {', '.join(entries)}"
    said = {(row.label, note) for row in table.rows for note in row.notes or ()}
    yield from (printable(f"{label}: {note}") for label, note in sorted(said))
    if any(row.declared_bits for row in table.rows):
        yield f"{DECLARED} bits as its author declares them: they cannot be seen in images"


def _setting(table: Table) -> str:
    """Return the protocol entries that all metrics of the table share, in words."""
    protocols = [protocol for metric in table.metrics for protocol in table.protocols(metric)]
    parsed = [entries_of(protocol) for protocol in protocols]
    shared = {key: {entries.get(key) for entries in parsed} - {UNKNOWN} for key in _SHARED_ENTRIES}
    single = {key: values.pop() for key, values in shared.items() if len(values) == 1}
    return ", ".join(
        f"{_SETTING_NAMES.get(key, key)} {value.partition('@')[0]}"
        for key, value in single.items()
        if value is not None
    )
