"""What calibration over several denoising steps found: errors of its groups of calls, and its gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dmqbench.results.figure import Axis, Figure, Line, Panel, Values, calls_axis, ratio_axis, segments
from dmqbench.results.studies.colours import MAIN, SECOND, WHEN
from dmqbench.results.studies.findings import Figures, StageFindings, numbers, whole, words
from dmqbench.results.studies.study import of_stage

_LARGEST_COSINE = 1 + 1e-6
"""One, and what rounding adds."""


@dataclass(frozen=True)
class Span:
    """Groups of calls that share their parameters: held-out errors of their end states, and their first gradient
    against the exact one, None where one of the two was zero."""

    groups: tuple[range, ...]
    error_before: tuple[float, ...]
    error_after: tuple[float, ...]
    cosine: float | None
    ratio: float | None

    @property
    def calls(self) -> range:
        return range(self.groups[0].start, self.groups[-1].stop)


@dataclass(frozen=True)
class TrajectoryReconstruction(StageFindings):
    """The spans follow one another."""

    stage = "trajectory_reconstruction"
    horizon: int
    gradient: str
    spans: tuple[Span, ...]

    @classmethod
    def from_json(cls, record: Any) -> "TrajectoryReconstruction":
        settings = record["settings"]
        spans = tuple(_spans(record["spans"]))
        if not spans:
            raise ValueError("there are no groups")
        return cls(whole("horizon", settings["horizon"], 1), words("gradient", settings["gradient"]), spans)

    @property
    def groups(self) -> list[range]:
        """The network calls of each group over which the model was calibrated, in order."""
        return [group for span in self.spans for group in span.groups]

    @property
    def errors(self) -> dict[str, list[float]]:
        """The held-out mean squared error of each group's end state, before and after."""
        return {
            "before": [error for span in self.spans for error in span.error_before],
            "after": [error for span in self.spans for error in span.error_after],
        }

    def boundaries(self, calls: int) -> list[int] | None:
        groups = self.groups
        return [*(group.start for group in groups), calls] if groups[-1].stop == calls else []

    @property
    def figures(self) -> Figures:
        return {"ends": group_errors(self), "gradients": gradient_agreement(self)}

    @property
    def pictures(self) -> Figures:
        return {}


def _spans(record: Any) -> Iterator[Span]:
    following = 0
    for span in record:
        groups = []
        for first, last in span["groups"]:
            groups.append(range(whole("first call of a group", first), whole("last call of a group", last) + 1))
            if first != following or last < first:
                raise ValueError("the groups do not follow each other")
            following = last + 1
        if not groups:
            raise ValueError("groups are missing")
        before, after = (numbers(key, span[key], len(groups)) for key in ("error_before", "error_after"))
        cosine, ratio = span["gradient_cosine"], span["gradient_ratio"]
        numbers("gradient_ratio", [] if ratio is None else [ratio])
        numbers("size of gradient_cosine", [] if cosine is None else [abs(cosine)])
        if cosine is not None and abs(cosine) > _LARGEST_COSINE:
            raise ValueError(f"gradient_cosine is {cosine:.3g}")
        yield Span(tuple(groups), before, after, cosine, ratio)


def group_errors(findings: TrajectoryReconstruction) -> Figure:
    """Each group's error at its end before and after calibration, as a line over the group's calls."""
    lines = tuple(_over_calls(findings.groups, findings.errors[when], when, colour) for when, colour in WHEN.items())
    note = (
        f"over {findings.horizon} calls each, gradient {findings.gradient}; on the validation trajectories, by "
        "which the best state was chosen"
    )
    return Figure(
        "Error at the end of each group of calls, before and after",
        (Panel(lines, calls_axis(), Axis("end state, MSE", log=True)),),
        (note,),
        description="Error of the end state of every group of network calls, before and after calibration",
    )


def gradient_agreement(findings: TrajectoryReconstruction) -> Figure:
    """For each set of groups that are trained together, how its first gradient agrees with the exact one."""
    x, calls = calls_axis(), [span.calls for span in findings.spans]
    cosines, ratios = [span.cosine for span in findings.spans], [span.ratio or None for span in findings.spans]
    panels = (
        Panel((_over_calls(calls, cosines, "cosine", MAIN),), x, Axis("cosine")),
        Panel((_over_calls(calls, ratios, "ratio of norms", SECOND),), x, ratio_axis("ratio of norms", "", ratios)),
    )
    return Figure(
        "How the gradient agrees with the exact one",
        panels,
        (f"gradient {findings.gradient} against the exact one, before training, on one batch",),
        description="Cosine and ratio of norms of the gradient and the exact one, over the network calls",
    )


def _over_calls(groups: Sequence[range], values: Values, name: str, colour: str) -> Line:
    """A value per group, drawn from the state before its first call to that after its last."""
    texts = [f"calls {group.start} to {group.stop - 1}" for group in groups]
    return segments([(group.start, group.stop) for group in groups], values, name, colour, texts)


STUDY = of_stage(TrajectoryReconstruction)
