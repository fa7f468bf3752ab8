"""What tuning of low-rank weights found: held-out errors of predictions, and of what was distilled."""

from dataclasses import dataclass
from typing import Any

from dmqbench.results.figure import Axis, Figure, Line, Panel, Values, calls_axis
from dmqbench.results.studies.colours import WHEN
from dmqbench.results.studies.findings import Figures, StageFindings, numbers, whole, words
from dmqbench.results.studies.study import of_stage

Errors = dict[str, tuple[float, ...]]
"""Before and after."""


@dataclass(frozen=True)
class LowRankTuning(StageFindings):
    """Errors of predictions by call and, where anything was distilled, of it by windows of calls."""

    stage = "low_rank_tuning"
    rank: int
    distillation: str
    window: int
    best_iteration: int
    noise: Errors
    distilled: Errors | None

    @classmethod
    def from_json(cls, record: Any) -> "LowRankTuning":
        settings = record["settings"]
        noise = _errors("noise_error", record)
        if not noise["before"]:
            raise ValueError("there are no errors")
        if (record["distilled_error_before"] is None) != (record["distilled_error_after"] is None):
            raise ValueError("what is distilled was measured once only")
        return cls(
            whole("rank", settings["rank"]),
            words("distillation", settings["distillation"]),
            whole("window", settings["window"], 1),
            whole("best_iteration", record["best_iteration"]),
            noise,
            None if record["distilled_error_before"] is None else _errors("distilled_error", record),
        )

    @property
    def calls(self) -> int:
        return len(self.noise["before"])

    @property
    def window_centres(self) -> list[float]:
        """The place on the axis of network calls of each window over which features were averaged.

        Windows follow one another; the last one ends with the last call, and may share calls with the one before.
        """
        count = len(self.distilled["before"]) if self.distilled else 0
        starts = (min(place * self.window, self.calls - self.window) for place in range(count))
        return [start + (self.window - 1) / 2 for start in starts]

    @property
    def note(self) -> str:
        """What was trained, and where the errors before and after are from."""
        distilled = f", {self.distillation} over windows of {self.window} calls" if self.distilled else ""
        return (
            f"rank {self.rank}{distilled}; best state after iteration {self.best_iteration}, chosen on the validation "
            "trajectories, on which these errors were measured"
        )

    @property
    def figures(self) -> Figures:
        return {"tuning": tuning_errors(self)}


def _errors(key: str, record: Any) -> Errors:
    before = numbers(f"{key}_before", record[f"{key}_before"])
    return {"before": before, "after": numbers(f"{key}_after", record[f"{key}_after"], len(before))}


def tuning_errors(tuning: LowRankTuning) -> Figure:
    """The held-out error of predictions per call before and after tuning, and below it of what was distilled."""
    x = calls_axis()
    parts: list[tuple[Errors, Values, Axis]] = [
        (tuning.noise, range(tuning.calls), Axis("prediction,\nmean squared error", "prediction, MSE", log=True))
    ]
    if tuning.distilled:
        parts.append((tuning.distilled, tuning.window_centres, Axis(tuning.distillation, log=True)))
    panels = [
        Panel(tuple(Line(when, places, errors[when], colour) for when, colour in WHEN.items()), x, y)
        for errors, places, y in parts
    ]
    return Figure(
        "Held-out errors before and after low-rank tuning",
        tuple(panels),
        (tuning.note,),
        description="Held-out error of predictions, and of what was distilled, over the network calls, before and "
        "after tuning",
    )


STUDY = of_stage(LowRankTuning)
