"""The command ``dmqbench``: every job is composed and checked before the first one starts, then launched by Hydra.

Exit status: 0 done; 1 a job failed; 2 the configuration is wrong, in one line; 130 interrupted. Importing this module,
``--help`` and refusing a configuration need no torch, and neither does a job whose result is in the store.
"""

import itertools
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from argparse import Namespace

    from omegaconf import DictConfig

    from dmqbench.schema import Job

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

ACTIONS = {
    "run": "run_job",
    "trajectories": "make_trajectories",
    "calibrate": "calibrate",
    "sample": "sample",
    "evaluate": "evaluate",
    "plan": "show_plan",
    "cost": "show_cost",
}
"""The function of ``dmqbench.run`` behind every task; it returns a folder, or None if it printed its answer."""

ERROR_FILE = "error.json"
SWEEP_KEY = "+sweeps="
LOCAL_LAUNCHERS = ("basic", "joblib")

HELP = """\
dmqbench quantizes a diffusion model, samples from it, and measures what that cost in image quality.

  dmqbench method=rtn model=digits bits=w4a8        one job
  dmqbench -m method=fp,rtn bits=w8a8,w4a8          every combination
  dmqbench +sweeps=demo                             the jobs of a table
  dmqbench task=plan method=rtn                     what would run, and what is there already
  dmqbench-report                                   the table of everything in the store

Configuration (key=value; any key that --cfg job shows can be set):
{groups}
  task         run (default) trajectories calibrate sample evaluate plan cost
  sweeps       {sweeps}
  store.root   where results lie; otherwise DMQBENCH_RUNS, otherwise ./runs

Options:
  -m                   multirun: keys may have several values
  --cfg job            show the configuration of a job and stop
  --config-dir DIR     a folder with your own YAMLs, in the same groups
  -sc install=bash     tab completion: eval "$(dmqbench -sc install=bash)"; also zsh, fish
  --hydra-help         the rest, which is Hydra's; launchers: hydra/launcher=joblib, ray, submitit_slurm
"""


class Planned(NamedTuple):
    """A checked job, the overrides it came from, and the id of its result (None for a task that needs no weights)."""

    overrides: tuple[str, ...]
    job: "Job"
    result: str | None

    @property
    def folder(self) -> Path | None:
        return None if self.result is None else self.job.store_root / "result" / self.result

    @property
    def command(self) -> str:
        return shlex.join(["dmqbench", *self.overrides])


class Outcome(NamedTuple):
    """What became of a job: the folder it made, if its task makes one, or one line on why it failed."""

    path: str | None = None
    error: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_text(), end="")
        return DONE
    with suppress(ValueError):  # only a process's main thread has signals
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on where this one stopped")
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _main(arguments: list[str]) -> int:
    from dmqbench.config import ConfigError, ModelError
    from dmqbench.store import StoreError

    try:
        options = parse_arguments(arguments)
        if options.shell_completion or options.info or options.hydra_help:
            return hand_to_hydra(arguments)
        planned, hydra_own = plan(options)
        if options.cfg:
            return hand_to_hydra(arguments)
    except (ConfigError, ModelError) as error:
        complain(error)
        return WRONG
    try:
        return carry_out(planned, hydra_own)
    except (StoreError, OSError) as error:
        complain(error)
        return FAILED


def complain(line: object) -> None:
    print(f"dmqbench: {line}", file=sys.stderr, flush=True)


def help_text() -> str:
    """The help, with the options of every group as they lie in ``conf/``."""
    package = Path(__file__).parent
    conf, sweeps = (
        folder if (folder := package / name).is_dir() else package.parent / name
        for name in ("conf", "sweeps")
    )
    groups = ("method", "model", "bits", "dataset", "sampler", "metrics", "budget", "tracker", "trainer")
    lines = [f"  {group:<12} {' '.join(_names(conf / group))}" for group in groups]
    return HELP.format(groups="\n".join(lines), sweeps=" ".join(_names(sweeps)))


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


# ---- what is asked for


def parse_arguments(arguments: Sequence[str]) -> "Namespace":
    """Parse Hydra's options, of which those that replace our configuration or load pickles are refused.

    Raises:
        ConfigError: an unknown or refused option.
    """
    from hydra._internal.utils import get_args_parser

    from dmqbench.config import ConfigError

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        flags = [argument for argument in arguments if argument.startswith("-")]
        known = [flag for action in parser._actions for flag in action.option_strings]
        wrong = next((flag for flag in flags if flag.partition("=")[0] not in known), None)
        if wrong is None:
            raise ConfigError("option", " ".join(flags), problem=f"cannot be read ({message})")
        key, _, value = wrong.partition("=")
        raise ConfigError(key, value, known, "is not an option", nearest=_similar(key, known))

    parser.error = refuse
    options = parser.parse_args(list(arguments))
    for name in ("config_name", "config_path", "experimental_rerun"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}",
                getattr(options, name),
                problem="is not offered; your own YAMLs go into a folder given by --config-dir",
            )
    return options


def _similar(name: str, known: Sequence[str]) -> str:
    from dmqbench.config import closest

    return closest(name, known)


def plan(options: "Namespace") -> tuple[list[Planned], list[str]]:
    """Return all jobs, each once, composed and checked, and Hydra's own overrides.

    Raises:
        ConfigError, ModelError: one of them is wrong or cannot start.
    """
    from dmqbench.config import ConfigError, parse, search_path

    config_dirs = [options.config_dir] if options.config_dir else []
    own_path = search_path(config_dirs)
    names = [text.removeprefix(SWEEP_KEY) for text in options.overrides if text.startswith(SWEEP_KEY)]
    plain = [text for text in options.overrides if not text.startswith(SWEEP_KEY)]
    parsed = parse([*own_path, *plain])
    hydra_own = [override.input_line or "" for override in parsed if override.is_hydra_override()]
    if any(text.startswith("hydra/sweeper") for text in hydra_own):
        raise ConfigError("hydra/sweeper", "...", ["basic"], "is not offered: jobs are expanded before Hydra sees them")
    mine = [override.input_line or "" for override in parsed if not override.is_hydra_override()]
    products = [
        [*listed, *chosen]
        for name in names or [None]
        for listed in (sweep_jobs(name, config_dirs) if name is not None else [[]])
        for chosen in (expand(mine, hydra_own) if options.multirun else [mine])
    ]
    if options.cfg and len(products) > 1:
        raise ConfigError("--cfg", options.cfg, problem=f"shows one job, and these are {len(products)}")
    unique: dict[Any, Planned] = {}
    for overrides in products:
        one = check(overrides, hydra_own)
        unique.setdefault(_sameness(one), one)
    return list(unique.values()), hydra_own


def expand(overrides: Sequence[str], hydra_own: Sequence[str]) -> list[list[str]]:
    """All combinations of the values of a multirun, in the order of the command line."""
    from dmqbench.config import parse_with_options

    choices = []
    for text, override in zip(overrides, parse_with_options(overrides), strict=True):
        if override.is_sweep_override():
            values = override.sweep_string_iterator()
            choices.append([f"{override.get_key_element()}={value}" for value in values if not value.startswith("base_")])
        else:
            choices.append([text])
    return [list(chosen) for chosen in itertools.product(*choices)]


def sweep_jobs(name: str, config_dirs: Sequence[str]) -> list[list[str]]:
    """Read ``sweeps/<name>.yaml``: ``jobs``, a list of lists of overrides, and ``overrides``, common to all.

    Raises:
        ConfigError: there is no such sweep, or it is something else.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    from dmqbench.config import SWEEPS, ConfigError

    folders = [SWEEPS, *(Path(folder) / "sweeps" for folder in config_dirs)]
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    if name not in files:
        raise ConfigError("sweeps", name, files)
    try:
        content = OmegaConf.to_container(OmegaConf.load(files[name]))
    except (YAMLError, OSError) as error:
        raise ConfigError("sweeps", name, problem=f"cannot be read ({str(error).splitlines()[0]})") from None
    content = content if isinstance(content, dict) else {"jobs": content}
    for key in content:
        if key not in ("jobs", "overrides"):
            raise ConfigError(f"sweeps/{name}.yaml: {key}", "...", ["jobs", "overrides"], "is not a key", _similar(str(key), ["jobs", "overrides"]))
    jobs, common = content.get("jobs"), content.get("overrides") or []
    lists = [common, *jobs] if isinstance(jobs, list) and jobs else [None]
    if not all(isinstance(part, list) and all(isinstance(text, str) for text in part) for part in lists):
        raise ConfigError(f"sweeps/{name}.yaml: jobs", "...", problem="is not a list of lists of key=value")
    return [[*common, *job] for job in jobs]


def check(overrides: Sequence[str], hydra_own: Sequence[str]) -> Planned:
    """Compose and check one job, down to the files of its model; ConfigError or ModelError."""
    from dmqbench.config import ConfigError, compose, cuda_expected, job_ids, make_job

    job = make_job(compose([*hydra_own, *overrides]))
    launcher = next((text.partition("=")[2] for text in hydra_own if text.startswith("hydra/launcher=")), "basic")
    if launcher in LOCAL_LAUNCHERS and job.trainer.accelerator == "gpu" and not cuda_expected():
        raise ConfigError("trainer.accelerator", "gpu", ["cpu"], "needs a CUDA device, and none is seen here")
    result = None if job.task == "cost" else job_ids(job, hash_of(job.model)).result
    return Planned(tuple(overrides), job, result)


def hash_of(model: Any, known: dict[Any, str] = {}) -> str:  # noqa: B006
    """``weights_hash``, computed once for all jobs of a sweep."""
    from dmqbench.config import weights_hash

    if model not in known:
        known[model] = weights_hash(model)
    return known[model]


def _sameness(planned: Planned) -> Any:
    from dmqbench.ids import canonical_json

    job = planned.job
    if planned.result is None:
        return job.task, canonical_json(job.config)
    return job.task, job.store_root, planned.result, job.metrics


# ---- doing it


def carry_out(planned: Sequence[Planned], hydra_own: Sequence[str]) -> int:
    """Answer what is in the store, launch the rest, print one table and the folders; return the exit status."""
    outcomes = {one: Outcome(str(one.folder)) for one in planned if is_answered(one)}
    missing = [one for one in planned if one not in outcomes]
    if missing:
        outcomes |= zip(missing, launch(missing, hydra_own), strict=True)
    results = [Path(outcome.path) for outcome in outcomes.values() if outcome.path]
    ...
