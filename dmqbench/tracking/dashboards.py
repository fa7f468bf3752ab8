"""A run store in wandb: its records as runs, and one workspace that compares the methods. Imports no torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Return what the workspace of these records can show."""
    names: dict[str, list[str]] = {field.name: [] for field in fields(Contents)}
    for event in chain.from_iterable(map(read_record, records)):
        match event:
            case {"event": "metrics"}:
                names["metrics"] += [name for row in points_of(event) for name in row]
            case {"event": "summary", "values": values}:
                names["costs"] += flat(values)
            case {"event": "curve", "chart": "error", "lines": lines}:
                names["errors"] += [key("error", line["name"]) for line in lines]
            case {"event": "curve", "chart": chart} if chart.startswith("loss/"):
                names["losses"].append(key(chart))
            case {"event": "image", "name": name}:
                names["pictures"].append(key(name))
    names["costs"] = [name for name in COSTS if name in names["costs"]]
    return Contents(**{field: tuple(dict.fromkeys(values)) for field, values in names.items()})


def workspace_of(contents: Contents, entity: str, project: str) -> "Workspace":
    """Return the workspace, not saved: runs grouped by bits and then by method, a panel for every name."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[section for section in _sections(contents) if section.panels],
        settings=ws.WorkspaceSettings(max_runs=_RUNS_SHOWN),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("bits.weight"), ws.Config("bits.activation"), ws.Config("method.name")],
            pinned_columns=[f"summary:{name}" for name in (*contents.metrics, *contents.costs)],
        ),
    )


def _sections(contents: Contents) -> Iterator["Section"]:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    bars = [wr.BarPlot(title=_title(name), metrics=[name], orientation="v") for name in contents.metrics]
    yield ws.Section(name="Metrics", panels=list(bars), is_open=True)
    scatters = [
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
    yield ws.Section(name="Quality against cost", panels=list(scatters), is_open=True)
    errors = [
        wr.LinePlot(title=_title(name), x=key("error", "call"), y=[name], log_y=True, max_runs_to_show=_RUNS_SHOWN)
        for name in contents.errors
    ]
    yield ws.Section(name="Error along the trajectory", panels=list(errors))
    losses = [
        wr.LinePlot(title=_title(chart), x=f"{chart}/iteration", metric_regex=f"{chart}/(?!iteration$).*", log_y=True)
        for chart in contents.losses
    ]
    yield ws.Section(name="Loss of every unit", panels=list(losses))
    pictures = [wr.MediaBrowser(title=_title(name), media_keys=[name]) for name in contents.pictures]
    yield ws.Section(name="Samples: full precision | quantized | difference", panels=list(pictures))


def _title(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")
