"""Uploading afterwards what the records of a run store hold: runs that were offline, cut off or not mirrored at all."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dmqbench.store.files import load_json, save_json
from dmqbench.tracking.dashboards import contents_of, workspace_of
from dmqbench.tracking.record import About, abouts_of, exit_code
from dmqbench.tracking.wandb_client import Mode, check_login, has_key, one_line, within
from dmqbench.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_UPLOAD_S = 60


@dataclass(frozen=True)
class Replayed:
    """One run after a replay: ``sent`` of its ``rows`` were new to it."""

    about: About
    location: str
    place: tuple[str, str]
    rows: int
    sent: int


def replay(record: Path, root: Path, mode: Mode = "online", directory: Path | None = None) -> list[Replayed]:
    """Mirror a finished record of the run store ``root`` once more; a run that has it all stays as it is.

    ``directory`` is where wandb may write, otherwise a temporary folder. Whatever goes wrong is raised.
    """
    done = []
    for about in abouts_of(record):
        with TemporaryDirectory(prefix="dmqbench-") as temporary:
            run = WandbRun(about, record, root, directory or Path(temporary), mode, _UPLOAD_S)
            try:
                run.follow()
            except BaseException:
                run.finish(1)
                raise
            sent = max(0, run.rows - run.old_rows)
            done.append(Replayed(about, run.location, run.place, run.rows, sent))
            run.finish(exit_code(record, about.part))
    return done


REMEMBERED = "dashboard.json"
"""Beside the records: which workspace to bring up to date, so that a second push makes no second one."""

_REPLAY_S = 300
_LOGIN_S = _SAVE_S = 20


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
        within(_LOGIN_S, check_login)
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
    if find_spec("wandb_workspaces") is None:
        return _say(console, "no workspace: it needs `pip install dmqbench[dashboards]`", 1)
    try:
        workspace = workspace_of(contents_of(records), *place)
        address = within(_SAVE_S, partial(_saved, root / REMEMBERED, workspace))
    except Exception as error:
        return _say(console, f"the workspace was not saved ({one_line(error)})", 1)
    console.print(f"workspace: {address}", **_PLAIN)
    return 0


def _saved(remembered: Path, workspace: "Workspace") -> str:
    """Save the workspace and return its address; it replaces the one that this store made before."""
    with suppress(Exception):  # never saved, removed by the user, or of another server
        old = type(workspace).from_url(load_json(remembered)["workspace"])
        if (old.entity, old.project) == (workspace.entity, workspace.project):
            old.sections, old.runset_settings = workspace.sections, workspace.runset_settings
            workspace = old
    workspace.save()
    with suppress(OSError):  # a store that cannot be written can still be shown
        save_json(remembered, {"workspace": workspace.url})
    return workspace.url


_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def _say(console: Console, line: str, status: int) -> int:
    console.print(f"dmqbench-report: {line}", style="yellow", **_PLAIN)
    return status
