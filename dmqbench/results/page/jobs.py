"""What the page says of one job: numbers with their protocols, curves, configuration, how to run it again."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from dmqbench.eval.protocol import Measurement
from dmqbench.results.diagnosis import Diagnosis
from dmqbench.results.page.axes import Figure
from dmqbench.results.page.figures import layers_of, steps_of
from dmqbench.results.page.precision_figures import candidate_errors, row_bits, tuning_errors
from dmqbench.results.page.scaling_figures import agreement, channel_ranges, exponent_shares, step_weights
from dmqbench.results.page.trajectory_figures import gradient_agreement, group_errors
from dmqbench.results.result import Result, printable
from dmqbench.results.sheets import number_text
from dmqbench.results.studies.findings import Findings, FindingsReader
from dmqbench.store.files import json_text
from dmqbench.tracking.record import redact

LAYER_BUDGET = 400_000
"""Numbers in all heat maps of layers together, about 6 bytes each."""
CHANNEL_BUDGET = 200_000
"""Numbers in all plots of single channels together, about 8 bytes each."""

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


def jobs_data(rows: dict[str, Result], diagnoses: dict[str, Diagnosis | str], reader: FindingsReader) -> dict[str, Any]:
    """Return what the page holds of each job, with figures as far as the budgets of all of them together reach."""
    layers_left, channels_left, jobs = LAYER_BUDGET, CHANNEL_BUDGET, {}
    for id, row in rows.items():
        diagnosis, findings = diagnoses[id], reader.of(row)
        facts = job_facts(row, diagnosis)
        figures: dict[str, Figure] = {}
        problems = [facts["problem"], findings.problem]
        if not isinstance(diagnosis, str):
            numbers = layer_numbers(diagnosis)
            fits = numbers <= layers_left
            figures = job_figures(diagnosis, with_layers=fits)
            layers_left -= numbers if fits else 0
            problems += [] if fits else [_left_out("the map of the layers is")]
        numbers = range_numbers(findings)
        fits = numbers <= channels_left
        channels_left -= numbers if fits else 0
        problems += [] if fits else [_left_out("ranges of channels are")]
        facts["problem"] = printable("; ".join(filter(None, problems)))
        facts["ranges"] = ranges_figures(findings) if fits else {}
        jobs[id] = facts | {"figures": figures | findings_figures(findings)}
    return jobs


def _left_out(what: str) -> str:
    return f"{what} left out to bound the page: --sweep chooses fewer jobs"


def job_facts(row: Result, diagnosis: Diagnosis | str) -> dict[str, Any]:
    """Return what the page holds of one job, as JSON."""
    return {
        "label": printable(f"{row.label} {row.bits}"),
        "facts": list(_facts(row)),
        "metrics": {name: _metric(found) for name, found in row.measurements.items()},
        "unavailable": {name: printable(why) for name, why in row.unavailable.items()},
        "samples": row.samples.ids,
        "problem": diagnosis if isinstance(diagnosis, str) else "",
        "config": json_text(redact(row.config)),
        "environment": json_text(redact(row.environment)),
        "command": command_of(row.config),
    }


def job_figures(diagnosis: Diagnosis, with_layers: bool) -> dict[str, Figure]:
    """Return the figures of one job's diagnosis."""
    figures = {"steps": steps_of(diagnosis)}
    if with_layers and diagnosis["layers"]:
        figures["layers"] = layers_of(diagnosis)
    return figures


def findings_figures(findings: Findings) -> dict[str, Figure]:
    """Return the figures of what one job's stages found out, without those of single layers."""
    figures: dict[str, Figure | None] = {}
    if findings.scaling is not None and findings.scaling["weighting"]["bin_of_call"]:
        figures["weights"] = step_weights(findings.scaling["weighting"])
    if findings.powers is not None and findings.powers["layers"]:
        figures |= {"exponents": exponent_shares(findings.powers), "agreement": agreement(findings.powers)}
    if findings.trajectory is not None:
        figures |= {"ends": group_errors(findings.trajectory), "gradients": gradient_agreement(findings.trajectory)}
    if findings.allocation is not None:
        figures |= {"bits": row_bits(findings.allocation), "candidates": candidate_errors(findings.allocation)}
    if findings.tuning is not None:
        figures["tuning"] = tuning_errors(findings.tuning)
    return {name: figure for name, figure in figures.items() if figure is not None}


def ranges_figures(findings: Findings) -> dict[str, Figure]:
    """Return the figure of each layer whose channels the findings list, by the layer's name."""
    channels = {} if findings.scaling is None else findings.scaling["channels"]
    return {printable(name): channel_ranges(found) for name, found in channels.items()}


def range_numbers(findings: Findings) -> int:
    """How many numbers the figures of the ranges take: five for each channel, one of them as text."""
    channels = {} if findings.scaling is None else findings.scaling["channels"]
    return sum(5 * len(found["scale"]) for found in channels.values())


def layer_numbers(diagnosis: Diagnosis) -> int:
    """How many numbers the heat map of the layers takes."""
    return sum(map(len, diagnosis["layers"]["error"])) if diagnosis["layers"] else 0


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


def _metric(found: Measurement) -> dict[str, Any]:
    """A metric as the page shows it: the value in words, and the lines of its details."""
    interval, floor = found.ci95, found.floor
    lines = [] if interval is None else [f"95 % interval {_number(interval[0])} to {_number(interval[1])}"]
    lines.append(f"n = {found.n}")
    if floor is not None:
        lines.append(f"{floor.kind.replace('_', ' ')} floor {_number(floor.value)} (n = {floor.n})")
    lines += [f"{key} {_number(inner)}" for key, inner in found.extra.items() if isinstance(inner, int | float)]
    return {
        "value": _number(found.value),
        "lines": [printable(line) for line in lines],
        "protocol": printable(found.protocol),
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
