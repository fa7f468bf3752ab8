"""A run store in wandb: its records as runs, and one workspace that compares the methods. Imports no torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmqbench.tracking.record import read_record
from dmqbench.tracking.wandb_rows import flat, key, points_of

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "dmqbench: methods compared"

COSTS = ("cost/size_mib/all_layers", "cost/bops")
_RUNS_SHOWN = 100


@dataclass(frozen=True)
class Contents:
    """Names under which a store's records have values in wandb, each in the order of its first appearance."""

    metrics: tuple[str, ...]
    costs: tuple[str, ...]
    losses: tuple[str, ...]
    """Charts of losses, one for each stage."""
    errors: tuple[str, ...]
    pictures: tuple[str, ...]


def contents_of(records: Iterable[Path]) -> Contents:
    """What the workspace of these records can show."""
    metrics: dict[str, None] = {}
    summary: dict[str, None] = {}
    losses: dict[str, None] = {}
    errors: dict[str, None] = {}
    pictures: dict[str, None] = {}
    for event in _events(records):
        match event:
            case {"event": "metrics"}:
                metrics |= dict.fromkeys(name for row in points_of(event) for name in row)
            case {"event": "summary", "values": values}:
                summary |= dict.fromkeys(flat(values))
            case {"event": "curve", "chart": "error", "lines": lines}:
                errors |= dict.fromkeys(key("error", line["name"]) for line in lines)
            case {"event": "curve", "chart": chart} if chart.startswith("loss/"):
                losses[key(chart)] = None
            case {"event": "image", "name": name}:
                pictures[key(name)] = None
    costs = tuple(name for name in COSTS if name in summary)
    return Contents(tuple(metrics), costs, tuple(losses), tuple(errors), tuple(pictures))


def _events(records: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in records:
        yield from read_record(path)


def workspace_of(contents: Contents, entity: str, project: str) -> "Workspace":
    """The workspace, not saved: runs grouped by bits and then by method, a panel for every name."""
    import wandb_workspaces.workspaces as ws

    sections = [
        _section("Metrics", _bars(contents), is_open=True),
        _section("Quality against cost", _scatters(contents), is_open=True),
        _section("Error along the trajectory", _error_lines(contents)),
        _section("Loss of every unit", _loss_lines(contents)),
        _section("Samples: full precision | quantized | difference", _pictures(contents)),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[section for section in sections if section.panels],
        settings=ws.WorkspaceSettings(max_runs=_RUNS_SHOWN),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("bits.weight"), ws.Config("bits.activation"), ws.Config("method.name")],
            pinned_columns=[f"summary:{name}" for name in (*contents.metrics, *contents.costs)],
        ),
    )


def _section(name: str, panels: Sequence[Any], is_open: bool = False) -> "Section":
    import wandb_workspaces.workspaces as ws

    return ws.Section(name=name, panels=list(panels), is_open=is_open)


def _title(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")


def _bars(contents: Contents) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.BarPlot(title=_title(name), metrics=[name], orientation="v") for name in contents.metrics]


def _scatters(contents: Contents) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.ScatterPlot(
            title=f"{_title(metric)} against {cost.split('/')[1].replace('_', ' ')}",
            x=wr.SummaryMetric(cost),
            y=wr.SummaryMetric(metric),
            log_x=True,
            legend_template="${config:method.name} w${config:bits.weight}a${config:bits.activation}",
        )
        for metric in contents.metrics
        for cost in contents.costs
    ]


def _error_lines(contents: Contents) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(title=_title(name), x=key("error", "call"), y=[name], log_y=True, max_runs_to_show=_RUNS_SHOWN)
        for name in contents.errors
    ]


def _loss_lines(contents: Contents) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(title=_title(chart), x=f"{chart}/iteration", metric_regex=f"{chart}/(?!iteration$).*", log_y=True)
        for chart in contents.losses
    ]


def _pictures(contents: Contents) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.MediaBrowser(title=_title(name), media_keys=[name]) for name in contents.pictures]


# ---- sending
