"""What the page says of one job: numbers with their protocols, curves, configuration, how to run it again."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmqbench.eval.measurement import Measurement
from dmqbench.results.cells import number_text
from dmqbench.results.diagnosis import Diagnosis
from dmqbench.results.diagnosis_figures import diagnosis_figures
from dmqbench.results.figure import Figure
from dmqbench.results.page.render import Json, render
from dmqbench.results.result import Result, printable
from dmqbench.results.studies import findings_of, stage_findings
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.store.files import json_text
from dmqbench.tracking.record import redact

LAYER_BUDGET = 400_000
"""Numbers in all heat maps of layers together, about 6 bytes each."""
CHANNEL_BUDGET = 200_000
"""Numbers in all plots of single channels together, about 8 bytes each."""

_LEFT_OUT = "{} left out to bound the page: --sweep chooses fewer jobs"
_DIGITS = 6

_GROUPS = ("method", "model", "dataset", "sampler", "budget")
_SECTIONS = (*_GROUPS, "bits", "metrics")
_FOLLOWING = re.compile(
    r"(.*\.)?(name|version|uses|not_in_id)"
    r"|method\.(ranges|paper_scope\..*|faithful_settings\..*|.*\.not_in_id_when\..*)"
    r"|model\.(source|sample_shape|datasets)"
)
"""Settings that follow from the options of the groups."""

_PLAIN_WORD = re.compile(r"[\w./:+-]+")
"""What Hydra reads as one word; all else it needs in quotes."""


@dataclass(frozen=True)
class JobFigures:
    """What is drawn of one job: ``figures`` by their keys, and ``layers`` of which one is shown at a time.

    ``problem`` is one line on what is missing.
    """

    figures: dict[str, Figure]
    layers: dict[str, Figure]
    problem: str


@dataclass
class _Budget:
    left: int

    def holds(self, figures: Iterable[Figure]) -> bool:
        """Whether there is room for ``figures``, which is theirs from then on."""
        size = sum(figure.size for figure in figures)
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


def figures_of_jobs(
    rows: Mapping[str, Result], diagnoses: Mapping[str, Diagnosis | str], reader: FindingsReader
) -> dict[str, JobFigures]:
    """Return the figures of every job as far as the budgets of all of them together reach."""
    cells, channels, jobs = _Budget(LAYER_BUDGET), _Budget(CHANNEL_BUDGET), {}
    for id, row in rows.items():
        diagnosis = diagnoses[id]
        figures = {} if isinstance(diagnosis, str) else diagnosis_figures(diagnosis)
        problems = [diagnosis] if isinstance(diagnosis, str) else []
        problems += dict.fromkeys(reader.problem(row, kind) for kind in stage_findings())
        if "layers" in figures and not cells.holds([figures["layers"]]):
            del figures["layers"]
            problems.append(_LEFT_OUT.format("the map of the layers is"))
        findings = findings_of(row, reader)
        layers = {name: figure for stage in findings for name, figure in stage.layer_figures.items()}
        if not channels.holds(layers.values()):
            layers = {}
            problems.append(_LEFT_OUT.format("ranges of channels are"))
        figures |= {key: figure for stage in findings for key, figure in stage.figures.items()}
        jobs[id] = JobFigures(figures, layers, printable("; ".join(filter(None, problems))))
    return jobs


def job_data(row: Result, drawn: JobFigures) -> Json:
    """Return what the page holds of one job, as JSON."""
    return {
        "label": printable(f"{row.label} {row.bits}"),
        "facts": list(_facts(row)),
        "metrics": {name: _metric(measurement) for name, measurement in row.measurements.items()},
        "unavailable": {name: printable(why) for name, why in row.unavailable.items()},
        "samples": row.samples.ids,
        "config": json_text(redact(row.config)),
        "environment": json_text(redact(row.environment)),
        "command": command_of(row.config),
        "problem": drawn.problem,
        "figures": {key: render(figure) for key, figure in drawn.figures.items()},
        "ranges": {printable(name): render(figure) for name, figure in drawn.layers.items()},
    }


def command_of(config: Mapping[str, Any]) -> str:
    """Return the command that runs this job again; ``""`` where its configuration is not known.

    It names the groups' options and every setting beside them, for defaults may change.
    """
    if not all(config.get(group, {}).get("name") for group in _GROUPS):
        return ""
    words = [f"{key}={config[key]}" for key in ("task", "task_kind", "engine", "seed") if key in config]
    words += [f"{group}={config[group]['name']}" for group in _GROUPS]
    settings = [leaf for section in _SECTIONS for leaf in _leaves(section, config.get(section, {}))]
    words += [f"{key}={_word(value)}" for key, value in settings if value is not None and not _FOLLOWING.fullmatch(key)]
    words += [
        f"{node}.{key}={_word(value)}"
        for node in ("calibration", "evaluate", "inputs", *(("edit",) if config.get("task_kind") == "edit" else ()))
        for key, value in config.get(node, {}).items()
        if value is not None
    ]
    return " ".join(["dmqbench", *(shlex.quote(printable(redact(word))) for word in words)])


def _facts(row: Result) -> Iterator[str]:
    cost, timing = row.cost, row.timing
    yield f"job {row.folder.name}"
    if row.size_mib is not None:
        yield f"{number_text(row.size_mib, 4)} MiB"
    if cost.bops is not None:
        yield f"{number_text(cost.bops / 1e9, 4)}·10⁹ BOPs per call"
    if cost.quantized_layers is not None:
        yield f"{cost.quantized_layers} layers quantized, {cost.full_precision_layers} in full precision"
    seconds = {"calibration": timing.calibrate_s, "sampling": timing.sample_s, "evaluation": timing.evaluate_s}
    yield from (f"{name} {number_text(value, 3)} s" for name, value in seconds.items() if value)
    if timing.peak_memory_mib:
        yield f"peak memory {timing.peak_memory_mib:.0f} MiB"


def _metric(measurement: Measurement) -> dict[str, Any]:
    """A metric as the page shows it: the value in words, and the lines of its details."""
    interval, floor = measurement.ci95, measurement.floor
    lines = [] if interval is None else [f"95 % interval {_number(interval[0])} to {_number(interval[1])}"]
    lines.append(f"n = {measurement.n}")
    if floor is not None:
        lines.append(f"{floor.kind.replace('_', ' ')} floor {_number(floor.value)} (n = {floor.n})")
    lines += [f"{key} {_number(inner)}" for key, inner in measurement.extra.items() if isinstance(inner, int | float)]
    return {
        "value": _number(measurement.value),
        "lines": [printable(line) for line in lines],
        "protocol": printable(measurement.protocol),
    }


def _number(value: float | None) -> str:
    return "identical" if value is None else number_text(value, _DIGITS)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    text = str(value)
    return text if _PLAIN_WORD.fullmatch(text) else "'" + text.replace("'", r"\'") + "'"
