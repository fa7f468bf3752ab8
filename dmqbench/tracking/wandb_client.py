"""The wandb client: whether it is asked, where it sends, and how long it may take."""

import netrc
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from dmqbench.tracking.record import redact

MODES = ("auto", "online", "offline", "disabled")
Mode = Literal["online", "offline", "disabled"]
Made = TypeVar("Made")
_WANDB_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")


def resolve_mode(mode: str, environment: Mapping[str, str] = os.environ) -> Mode:
    """What ``tracker.mode`` means here: ``auto`` is ``WANDB_MODE`` if set, else online if there is a key."""
    if mode not in MODES:
        raise ValueError(f"tracker mode {mode!r}: allowed are {', '.join(MODES)}")
    chosen = environment.get("WANDB_MODE", "") if mode == "auto" else mode
    match chosen:
        case "online" | "offline" | "disabled":
            return chosen
    return "online" if has_key(environment) else "offline"


def has_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find an API key, without asking anyone."""
    if environment.get("WANDB_API_KEY"):
        return True
    base = environment.get("WANDB_BASE_URL")
    hosts = (urlsplit(base).netloc,) if base else _WANDB_HOSTS
    file = environment.get("NETRC") or os.path.join(environment.get("HOME", "~"), ".netrc")
    try:
        machines = netrc.netrc(os.path.expanduser(file))
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(machines.authenticators(host) for host in hosts)


def project_name() -> str:
    """The wandb project that runs go to."""
    return os.environ.get("WANDB_PROJECT") or "dmqbench"


def check_login() -> None:
    """Raise an exception unless the server is there and takes the key; about ten seconds at most.

    Asked before a run is started: one that failed to start would keep its id from the offline run after it.
    """
    if not has_key():
        # wandb would ask for it on a terminal, and the job would wait for an answer.
        raise RuntimeError("no API key, see `wandb login`")
    wandb().login(verify=True)


def one_line(error: BaseException) -> str:
    """An exception as a short line without secrets."""
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:200]}"


def within(seconds: float, action: Callable[[], Made]) -> Made:
    """Result of ``action``, which runs in a thread of its own.

    Raises:
        TimeoutError: it is not done after ``seconds``; the thread is left to itself.
    """
    results: list[Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def wandb() -> Any:
    """The wandb package, quiet and without its error reports: those delay the end of a process by many seconds."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb


def warm_up(mode: str) -> None:
    """Begin to import and start wandb, if it will be needed, while the job does something else."""

    def start() -> None:
        with suppress(Exception):  # who needs it will say what is wrong
            wandb().setup().ensure_service()

    if resolve_mode(mode) != "disabled":
        threading.Thread(target=start, daemon=True).start()
