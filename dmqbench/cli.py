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
from typing import TYPE_CHECKING, Any, NoReturn

from dmqbench.launch.help import help_text
from dmqbench.launch.launcher import MEASURING, Outcome, complain, launch, option_parser
from dmqbench.launch.streams import exact, hold_streams

if TYPE_CHECKING:
    from dmqbench.launch.sweeps import Planned

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

NOT_OFFERED = ("config_name", "config_path", "experimental_rerun")
"""Hydra's options that exchange the whole configuration or load a pickle."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return the exit status."""
    hold_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_text(), end="")
        return DONE
    with suppress(ValueError):  # only the main thread of a process has signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on where this one stopped")
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    from dmqbench.config.errors import ConfigError
    from dmqbench.launch.sweeps import how_long, plan
    from dmqbench.models.folders import ModelError

    try:
        options = parse_arguments(arguments)
        if options.shell_completion or options.info or options.hydra_help:
            return hand_to_hydra(arguments)
        jobs = plan(options)
        if options.cfg:
            return hand_to_hydra(arguments)
        takes = how_long(options)
    except (ConfigError, ModelError) as error:
        complain(error)
        return WRONG
    return carry_out(jobs, takes)


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse Hydra's options; ConfigError for an option that is unknown or not offered here."""
    from dmqbench.config.errors import ConfigError, closest

    parser, known = option_parser()

    def refuse(message: str) -> NoReturn:
        flags = [text.partition("=") for text in arguments if text.startswith("-")]
        for flag, _, value in flags:
            if flag not in known:
                raise ConfigError(flag, value, known, "is not an option", closest(flag, known))
        raise ConfigError("options", " ".join(arguments), problem=f"cannot be read ({message})")

    parser.error = refuse
    options = parser.parse_args(list(arguments))
    for name in NOT_OFFERED:
        if (value := getattr(options, name)) is not None:
            problem = "is not offered; YAMLs of your own go into a folder given by --config-dir"
            raise ConfigError(f"--{name.replace('_', '-')}", value, ["--config-dir"], problem)
    return options


def hand_to_hydra(arguments: Sequence[str]) -> int:
    """Let Hydra show a configuration or complete a word; return its exit status."""
    import hydra

    from dmqbench.config.compose import ROOT
    from dmqbench.config.places import CONF
    from dmqbench.config.texts import as_text

    def nothing(config: Any) -> None:
        """What Hydra would run if it were asked to."""

    sys.argv = [sys.argv[0], *map(as_text, arguments)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=ROOT)(nothing)()
    except SystemExit as stop:
        if isinstance(stop.code, int):
            return stop.code
        return FAILED if stop.code else DONE
    return DONE


def carry_out(jobs: Sequence["Planned"], takes: str = "") -> int:
    """Say what will be done, answer what is in the store, launch the rest, print one table and all folders.

    ``takes`` says how long it is known to take. Returns the exit status.
    """
    from dmqbench.config.errors import ConfigError
    from dmqbench.config.model_checks import check_weights_fit
    from dmqbench.config.precision_plans import check_layers
    from dmqbench.launch.announce import ANSWERING, announcement
    from dmqbench.launch.answered import is_answered
    from dmqbench.methods import require_stages
    from dmqbench.models.folders import ModelError
    from dmqbench.store.artifact import StoreError
    from dmqbench.store.artifacts import Store

    try:
        answers = [Outcome(str(planned.folder)) if is_answered(planned) else None for planned in jobs]
        missing = [planned for planned, answer in zip(jobs, answers, strict=True) if answer is None]
        check_weights_fit(planned.job for planned in missing)
        for planned in missing:
            check_layers(planned.job)
            require_stages(planned.job.method)
        if missing and jobs[0].job.task not in ANSWERING:
            Store(jobs[0].job.store_root).check_writable()
        for line in announcement(jobs, len(missing), takes):
            complain(line)
        launched = iter(launch(missing) if missing else ())
        outcomes = [answer or next(launched) for answer in answers]
    except (ConfigError, ModelError) as error:
        complain(error)
        return WRONG
    except (StoreError, OSError) as error:
        complain(error)
        return FAILED
    show(list(zip(jobs, outcomes, strict=True)))
    return FAILED if any(outcome.error for outcome in outcomes) else DONE


def show(done: Sequence[tuple["Planned", Outcome]]) -> None:
    """Print the table of all results; then the folder of every job, so that the last line is a folder."""
    from dmqbench.launch.announce import next_commands, with_full_precision
    from dmqbench.results.formats import print_results

    folders = [(planned, Path(outcome.path)) for planned, outcome in done if outcome.path is not None]
    results = [(planned, folder) for planned, folder in folders if planned.job.task in MEASURING]
    if results:
        print_results(with_full_precision(results))
    for _, folder in folders:
        print(exact(folder), flush=True)
    failed = sum(outcome.error is not None for _, outcome in done)
    if failed and len(done) > 1:
        complain(f"{failed} of {len(done)} jobs failed; the others are done")
    if results and sys.stdout.isatty():  # a script knows its next command
        complain(next_commands(results[0][0].job.store_root))


if __name__ == "__main__":
    sys.exit(main())
