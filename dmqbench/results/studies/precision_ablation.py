"""What each part of MPQ-DM does: its variants against EfficientDM, from the jobs of a store."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dmqbench.results.compare import Comparison, compare
from dmqbench.results.figure import Axis, Bars, Figure, Panel
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import VERDICTS
from dmqbench.results.studies.settings import setting_of
from dmqbench.results.studies.study import of_jobs
from dmqbench.store.files import canonical_json

BASELINE, METHOD = "efficient_dm", "mpq_dm"

UNITS = {
    "psnr": "dB, more is better",
    "ssim": "more is better",
    "fid2fp32": "less is better",
    "fd2fp32_digits": "less is better",
}
"""The metrics that are shown, where all jobs have them."""

_FREE = ("task", "diagnose", "method", "metrics", "tracker", "trainer", "evaluate", "budget")
"""Parts of a configuration that may differ; of the budget its sizes are compared."""


@dataclass(frozen=True)
class Variant:
    """One variant, and by metric how it compares with the baseline."""

    row: Result
    over_baseline: Mapping[str, Comparison]

    @property
    def name(self) -> str:
        return self.row.label


@dataclass(frozen=True)
class Ablation:
    """Variants of one setting, those of most PSNR first; all differ from the baseline in their method alone."""

    setting: str
    baseline: Result
    metrics: tuple[str, ...]
    bars: tuple[Variant, ...]
    left_out: int = 0

    @property
    def sentences(self) -> list[str]:
        """What is held equal, and what the bars are."""
        values = ", ".join(f"{name} {self.baseline.value(name):.4g}" for name in self.metrics)
        over = f"over {BASELINE} ({values}), paired, 95 % intervals over samples of this calibration"
        return [self.setting, over, *([f"{self.left_out} more settings: --sweep chooses"] if self.left_out else [])]


def precision_ablation(rows: Iterable[Result]) -> Ablation | None:
    """Return the setting with most variants; None where there are fewer than two beside the baseline."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for row in rows:
        if row.method in (BASELINE, METHOD) and row.value("psnr") is not None:
            groups[_setting(row)].append(row)
    ablations = [ablation for members in groups.values() if (ablation := _ablation(members)) is not None]
    best = max(ablations, key=lambda ablation: len(ablation.bars), default=None)
    return best and replace(best, left_out=len(ablations) - 1)


def _ablation(rows: Iterable[Result]) -> Ablation | None:
    members = list({row.label: row for row in rows}.values())
    baseline = next((row for row in members if row.label == BASELINE), None)
    others = [row for row in members if row is not baseline]
    if baseline is None or len(others) < 2:
        return None
    metrics = tuple(name for name in UNITS if all(row.value(name) is not None for row in members))
    bars = []
    for row in others:
        try:
            bars.append(Variant(row, {name: compare(row, baseline, name) for name in metrics}))
        except ValueError:  # another protocol: nothing to subtract
            return None
    bars.sort(key=lambda bar: -(bar.row.value("psnr") or 0.0))
    setting = ", ".join(filter(None, setting_of(baseline).values()))
    return Ablation(setting, baseline, metrics, tuple(bars))


def _setting(row: Result) -> str:
    shared = {key: value for key, value in row.config.items() if key not in _FREE}
    return canonical_json([row.model, row.bits, row.scope, row.ranges, row.seed, row.task, row.budget_sizes, shared])


def variants(ablation: Ablation) -> Figure:
    """What every variant gains over the baseline, a panel per metric: paired differences with their intervals."""
    y = Axis("", names=tuple(bar.name for bar in ablation.bars))
    panels = tuple(
        Panel(
            (_bars(ablation.bars, metric),),
            Axis(f"{metric} over {BASELINE}\n{UNITS[metric]}", f"{metric}, {UNITS[metric]}", reference=0.0),
            y,
        )
        for metric in ablation.metrics
    )
    return Figure(
        "Parts of MPQ-DM, against EfficientDM",
        panels,
        (*ablation.sentences, "green: better, red: worse, grey: cannot tell"),
        columns=len(panels),
        description="Paired difference of every variant of MPQ-DM to EfficientDM, by metric",
    )


def _bars(bars: Sequence[Variant], metric: str) -> Bars:
    comparisons = [bar.over_baseline[metric] for bar in bars]
    return Bars(
        "",
        [comparison.difference for comparison in comparisons],
        tuple(VERDICTS[comparison.verdict] for comparison in comparisons),
        ends=[comparison.ci95 for comparison in comparisons],
        texts=[comparison.sentence for comparison in comparisons],
        precision="",
        jobs=[bar.row.folder.name for bar in bars],
    )


STUDY = of_jobs("precision", lambda rows, reader: precision_ablation(rows), variants)
