"""The command ``dmqbench``: all jobs are composed and checked before the first starts; Hydra launches them.

Exit status: 0 done; 1 a job failed; 2 the configuration is wrong, in one line; 130 interrupted. Importing
this module, ``--help`` and refusing a configuration need no torch, nor does a job whose result is there.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from dmqbench.config.plugins import known_names, plugins, usable
from dmqbench.config.schema import TASKS
from dmqbench.launch.launcher import MEASURING, Outcome, complain, launch

if TYPE_CHECKING:
    from dmqbench.launch.sweeps import Planned

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


NOT_OFFERED = ("config_name", "config_path", "experimental_rerun")
"""Hydra's options that exchange the whole configuration or load a pickle."""

GROUP_NAMES = ("method", "model", "bits", "dataset", "sampler", "metrics", "budget", "tracker", "trainer")

HELP = """\
dmqbench quantizes a diffusion model, samples from it, and measures what that cost in image quality.

  dmqbench method=rtn model=digits bits=w4a8        one job
  dmqbench -m method=fp,rtn bits=w8a8,w4a8          every combination
  dmqbench +sweeps=demo                             the jobs of a table
  dmqbench task=plan method=rtn                     what would run, and what is there already
  dmqbench task=evaluate evaluate.samples=a.npz evaluate.fp_samples=b.npz
                                                    images that another program made
  dmqbench method=foreign method.path=FOLDER        a network that another program quantized
  dmqbench-report                                   table and page of everything in the store
  dmqbench-doctor                                   what this machine can run, and what it lacks

Configuration (key=value; every key that --cfg job shows can be set):
{groups}
  sweeps       {sweeps}
  task         {tasks}
  task_kind    generate restore edit: samples from noise alone, or from images (inputs.images, edit.strength)
  store.root   where results lie; otherwise DMQBENCH_RUNS, otherwise ./runs

Options:
  -m                   multirun: a key may have several values
  --cfg job            show the configuration of a job and stop
  --config-dir DIR     a folder with YAMLs of your own, in the same groups
  -sc install=bash     tab completion: eval "$(dmqbench -sc install=bash)"; also zsh, fish
  --hydra-help         the rest, which is Hydra's

Jobs go elsewhere with hydra/launcher=joblib, ray or submitit_slurm.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_text(), end="")
        return DONE
    with suppress(ValueError):  # only the main thread of a process has signals
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on where this one stopped")
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _main(arguments: list[str]) -> int:
    from dmqbench.config.errors import ConfigError
    from dmqbench.launch.sweeps import plan
    from dmqbench.models.folders import ModelError

    try:
        options = parse_arguments(arguments)
        if options.shell_completion or options.info or options.hydra_help:
            return hand_to_hydra(arguments)
        planned = plan(options)
        if options.cfg:
            return hand_to_hydra(arguments)
    except (ConfigError, ModelError) as error:
        complain(error)
        return WRONG
    return carry_out(planned)


def help_text() -> str:
    """The help, with the options of every group; from file names alone, so that it comes at once."""
    groups = "\n".join(f"  {group:<12} {_names(group)}" for group in GROUP_NAMES)
    text = HELP.format(groups=groups, sweeps=_names("sweeps"), tasks=" ".join(TASKS))
    return text + "".join(f"{line}\n" for line in ["", "Plug-ins:", *plugin_lines()] if plugins())


def _names(group: str) -> str:
    return " ".join(sorted(known_names(group)))


def plugin_lines() -> list[str]:
    """Return one line about every plug-in: what it brings, why it is left out, or which of its options is wrong."""
    if not usable():  # nothing to compose
        return [f"  {plugin.title}: {plugin.summary}" for plugin in plugins()]
    from dmqbench.config.compose import wrong_options

    return [f"  {plugin.title}: {'; '.join([plugin.summary, *wrong_options(plugin)])}" for plugin in plugins()]


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse Hydra's options; ConfigError for an option that is unknown or not offered here."""
    from hydra._internal.utils import get_args_parser

    from dmqbench.config.errors import ConfigError, closest

    parser = get_args_parser()
    known = [flag for action in parser._actions for flag in action.option_strings]

    def refuse(message: str) -> NoReturn:
        flags = [text.partition("=") for text in arguments if text.startswith("-")]
        for flag, _, value in flags:
            if flag not in known:
                raise ConfigError(flag, value, known, "is not an option", closest(flag, known))
        raise ConfigError("options", " ".join(arguments), problem=f"cannot be read ({message})")

    parser.error = refuse
    options = parser.parse_args(list(arguments))
    for name in NOT_OFFERED:
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            problem = "is not offered; YAMLs of your own go into a folder given by --config-dir"
            raise ConfigError(flag, getattr(options, name), ["--config-dir"], problem)
    return options


def hand_to_hydra(arguments: Sequence[str]) -> int:
    """Let Hydra show a configuration or complete a word; return its exit status."""
    import hydra

    from dmqbench.config.compose import ROOT
    from dmqbench.config.places import CONF

    sys.argv = [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=ROOT)(_nothing)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else DONE
    return DONE


def _nothing(config: Any) -> None:
    """What Hydra would run if it were asked to."""


def carry_out(planned: Sequence["Planned"]) -> int:
    """Answer what is in the store, launch the rest, print one table and all folders; return the status."""
    from dmqbench.config.errors import ConfigError
    from dmqbench.config.precision_plans import check_layers
    from dmqbench.launch.answered import is_answered
    from dmqbench.methods import require_stages
    from dmqbench.store.artifacts import StoreError

    try:
        outcomes = {number: Outcome(str(one.folder)) for number, one in enumerate(planned) if is_answered(one)}
        missing = [number for number in range(len(planned)) if number not in outcomes]
        for number in missing:
            check_layers(planned[number].job)
            require_stages(planned[number].job.method)
        if missing:
            done = launch([planned[number] for number in missing])
            outcomes |= zip(missing, done, strict=True)
    except ConfigError as error:
        complain(error)
        return WRONG
    except (StoreError, OSError) as error:
        complain(error)
        return FAILED
    show([(planned[number], outcomes[number]) for number in range(len(planned))])
    return FAILED if any(outcome.error for outcome in outcomes.values()) else DONE


def show(done: Sequence[tuple["Planned", Outcome]]) -> None:
    """Print the table of all results; then the folder of every job, so that the last line is a folder."""
    from dmqbench.results.formats import print_results

    folders = [Path(outcome.path) for _, outcome in done if outcome.path is not None]
    results = [Path(outcome.path) for one, outcome in done if outcome.path and one.job.task in MEASURING]
    if results:
        print_results(results)
    for folder in folders:
        print(folder)
    failed = [one for one, outcome in done if outcome.error is not None]
    if failed and len(done) > 1:
        complain(f"{len(failed)} of {len(done)} jobs failed; the others are done")


if __name__ == "__main__":
    sys.exit(main())
