"""What jobs say of parts of methods, one file a study; drawn by the page and by the plots.

A study is the ``STUDY`` of a module here or in ``studies/`` of a plug-in; that of a stage has the stage's name.
"""

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from dmqbench.config.plugins import usable
from dmqbench.results.result import Result
from dmqbench.results.studies.findings import FindingsReader, StageFindings
from dmqbench.results.studies.study import Study

CHOSEN_ON = (
    "measured on the validation trajectories, by which calibration over several calls chose its best state; "
    "dots: where its groups of calls begin and end"
)
"""What must be said where the errors of a method that has ``boundaries_of`` stand beside others'."""


@cache
def studies() -> Mapping[str, Study]:
    """Return every study by the name of its module: this project's, then those of plug-ins."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    for plugin in usable():
        folder = plugin.conf.parent / "studies"
        for module in iter_modules([str(folder)]):
            name = f"{plugin.package}.studies.{module.name}"
            try:
                modules.append(import_module(name))
            except (Exception, SystemExit) as error:  # of any kind: a study is no reason to be without a report
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"dmqbench-report: plug-in {plugin.name}: no study {name} ({reason})", file=sys.stderr)
    named: dict[str, Study] = {}
    for module in modules:
        if isinstance(study := getattr(module, "STUDY", None), Study):
            named.setdefault(module.__name__.rpartition(".")[2], study)
    return named


def stage_findings() -> list[type[StageFindings]]:
    """Return the kinds of findings that there are studies of."""
    return [study.findings for study in studies().values() if study.findings is not None]


def findings_of(row: Result, reader: FindingsReader) -> list[StageFindings]:
    """Return what the stages of a job found out, as far as it is sound and there is a study of it."""
    return [findings for kind in stage_findings() if (findings := reader.of(row, kind)) is not None]


def boundaries_of(row: Result, calls: int, reader: FindingsReader) -> list[int] | None:
    """Return the states between the groups of calls over which a job was calibrated; None where it was by single ones.

    There are none where it was calibrated for another number of ``calls``.
    """
    known = (findings.boundaries(calls) for findings in findings_of(row, reader))
    return next((states for states in known if states is not None), None)
