"""A run store in wandb: its records as runs, and one workspace that compares the methods. Imports no torch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dmqbench.points import flat, key, points_of
from dmqbench.record import read_record
from dmqbench.replay import replay
from dmqbench.store.files import load_json, save_json
from dmqbench.tracking import check_login, has_key, one_line, within

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "dmqbench: methods compared"
REMEMBERED = "dashboard.json"
"""Beside the records: which workspace to bring up to date, so that a second push makes no second one."""

COSTS = ("cost/size_mib/all_layers", "cost/bops")
_REPLAY_S = 300
_SAVE_S = 20
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


def push(root: Path, console: Console) -> int:
    """Upload all records of the store ``root`` and save the workspace; return the exit status.

    What went wrong is one line on ``console``, and nothing waits for a server that does not answer.
    """
    records = sorted((root / "records").glob("*.jsonl"))
    if not records:
        return _say(console, f"no record in {root}: run a job first", 2)
    if not has_key():
        return _say(console, "no W&B key: run `wandb login`, or set WANDB_API_KEY", 1)
    try:
        within(_SAVE_S, check_login)
    except Exception as error:
        return _say(console, f"W&B does not answer as it should ({one_line(error)})", 1)
    place = None
    for path in records:
        try:
            for done in within(_REPLAY_S, partial(replay, path, root)):
                place = done.place
                console.print(f"{done.location}: {done.sent} of {done.rows} rows were new", **_PLAIN)
        except Exception as error:
            return _say(console, f"{path.name} did not get through ({one_line(error)}); push again to go on", 1)
    if place is None:
        return _say(console, "the records name no run: they are older than this command", 1)
    return _save(root, workspace_of_records(records, place), console)


def workspace_of_records(records: Sequence[Path], place: tuple[str, str]) -> "Workspace | None":
    """The workspace of these records, at (entity, project); None without the package that makes them."""
    if find_spec("wandb_workspaces") is None:
        return None
    return workspace_of(contents_of(records), *place)


def _save(root: Path, workspace: "Workspace | None", console: Console) -> int:
    if workspace is None:
        return _say(console, "no workspace: it needs `pip install dmqbench[dashboards]`", 1)
    try:
        address = within(_SAVE_S, partial(_saved, root / REMEMBERED, workspace))
    except Exception as error:
        return _say(console, f"the workspace was not saved ({one_line(error)})", 1)
    console.print(f"workspace: {address}", **_PLAIN)
    return 0


def _saved(remembered: Path, workspace: "Workspace") -> str:
    """Address of the workspace, which replaces the one that this store made before."""
    old = _remembered(remembered, workspace)
    if old is not None:
        old.sections, old.runset_settings = workspace.sections, workspace.runset_settings
        workspace = old
    workspace.save()
    with suppress(OSError):  # a store that cannot be written can still be shown
        save_json(remembered, {"workspace": workspace.url})
    return workspace.url


def _remembered(path: Path, workspace: "Workspace") -> "Workspace | None":
    try:
        address = load_json(path)["workspace"]
        found = type(workspace).from_url(address)
    except Exception:  # never saved, removed by the user, or of another server
        return None
    same = (found.entity, found.project) == (workspace.entity, workspace.project)
    return found if same else None


_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def _say(console: Console, line: str, status: int) -> int:
    console.print(f"dmqbench-report: {line}", style="yellow", **_PLAIN)
    return status
