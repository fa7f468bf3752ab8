"""What ``dmqbench --help`` says. The names come from files alone, so that it comes at once."""

import textwrap
from collections.abc import Iterable

from dmqbench.config.names import TASKS
from dmqbench.config.plugins import known_names, plugins, usable
from dmqbench.config.schema import OPTION_GROUPS

_WIDTH = 79
_COLUMN = 11

_HELP = """\
dmqbench quantizes a diffusion model, samples from it, and measures what that
cost in image quality.

  dmqbench method=rtn bits=w4a8             one job
  dmqbench -m method=fp,rtn bits=w8a8,w4a8  every combination
  dmqbench +sweeps=demo                     a list of jobs that has a name
  dmqbench task=plan method=rtn             what would run, and what is there
  dmqbench-report                           table and page of the results
  dmqbench-doctor                           what this machine can run

{choices}

Each of these, and every key that --cfg job shows, is set as key=value.
  -m                  multirun: a key may have several values
  --cfg job           show the configuration of a job, and stop
  --config-dir DIR    a folder with YAMLs of your own, in the same groups
  -sc install=bash    tab completion: eval "$(dmqbench -sc install=bash)"
  --hydra-help        the rest, which is Hydra's
Results lie in store.root, otherwise DMQBENCH_RUNS, otherwise ./runs. Jobs run
elsewhere with hydra/launcher=joblib, ray or submitit_slurm.
"""


def help_text() -> str:
    """Return the help, with the options of every group, and what plug-ins there are."""
    choices = {"task": TASKS, **{group: sorted(known_names(group)) for group in (*OPTION_GROUPS, "sweeps")}}
    text = _HELP.format(choices="\n".join(_line(key, names) for key, names in choices.items()))
    return text + "".join(f"{line}\n" for line in ["Plug-ins:", *plugin_lines()] if plugins())


def plugin_lines() -> list[str]:
    """Return one line about every plug-in: what it brings, why it is left out, or which of its options is wrong."""
    if not usable():  # nothing to compose
        return [f"  {plugin.title}: {plugin.summary}" for plugin in plugins()]
    from dmqbench.config.compose import wrong_options

    return [f"  {plugin.title}: {'; '.join([plugin.summary, *wrong_options(plugin)])}" for plugin in plugins()]


def _line(key: str, names: Iterable[str]) -> str:
    """Return a key with the names that it may have, over as many lines as they need."""
    start = f"  {key}".ljust(_COLUMN)
    return textwrap.fill(
        " ".join(names),
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * _COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
