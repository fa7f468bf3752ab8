"""From a command line to a list of checked jobs, each once: sweeps, products, and what is in the store."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from yaml import YAMLError

from dmqbench.config.checked_job import Job, full_precision
from dmqbench.config.compose import compose, search_path
from dmqbench.config.errors import ConfigError, closest
from dmqbench.config.ids import JobIds, job_ids
from dmqbench.config.job import cuda_expected, make_job
from dmqbench.config.model_facts import weights_hash
from dmqbench.config.overrides import expand, parse
from dmqbench.config.places import SWEEPS
from dmqbench.config.plugins import left_out_with, usable
from dmqbench.store.artifacts import Store
from dmqbench.store.files import canonical_json

SWEEP_KEY = "+sweeps="
LOCAL_LAUNCHERS = ("basic", "joblib")

_SWEEP_FIELDS = ("jobs", "overrides", "takes")


class Planned(NamedTuple):
    """A checked job, the overrides it came from, and its ids and those of its full precision.

    A task without weights has none.
    """

    overrides: tuple[str, ...]
    hydra_own: tuple[str, ...]
    job: Job
    ids: JobIds | None = None
    full_precision: JobIds | None = None

    @property
    def result(self) -> str | None:
        return None if self.ids is None else self.ids.result

    @property
    def folder(self) -> Path | None:
        return None if self.result is None else Store(self.job.store_root).path("result", self.result)

    @property
    def command(self) -> str:
        """The command that runs this job alone."""
        return shlex.join(["dmqbench", *self.overrides, *self.hydra_own])


def plan(options: Namespace) -> list[Planned]:
    """Return all jobs that parsed options ask for, composed and checked.

    Raises:
        ConfigError, ModelError: one of them is wrong or cannot start.
    """
    sweeps, config_dirs = _sweeps(options)
    plain = [text for text in options.overrides if not text.startswith(SWEEP_KEY)]
    hydra_own, own = _divided([*search_path(config_dirs), *plain])
    listed = [job for name in sweeps for job in sweep_jobs(name, config_dirs)] if sweeps else [[]]
    chosen = expand(own) if options.multirun else [own]
    products = [[*job, *choice] for job in listed for choice in chosen]
    says_what = any(override.key_or_group in ("method", "task") for override in parse(own))
    if not (sweeps or options.multirun or options.cfg or says_what):
        return _beside_full_precision(check(own, hydra_own))
    if options.cfg and len(products) > 1:
        raise ConfigError("--cfg", options.cfg, problem=f"shows one job, and these are {len(products)}")
    unique: dict[Any, Planned] = {}
    for overrides in products:
        planned = check(overrides, hydra_own)
        unique.setdefault(_sameness(planned), planned)
    return list(unique.values())


def _sweeps(options: Namespace) -> tuple[list[str], list[str]]:
    """Return the names of the sweeps on a command line, and the folders of its ``--config-dir``."""
    names = [text.removeprefix(SWEEP_KEY) for text in options.overrides if text.startswith(SWEEP_KEY)]
    return names, [options.config_dir] if options.config_dir else []


def _beside_full_precision(planned: Planned) -> list[Planned]:
    """Return a job that nobody named a method for, after full precision, which it is compared with."""
    of_method = ("method.", "calibration.")
    others = [text for text in planned.overrides if not text.lstrip("+~").startswith(of_method)]
    try:
        return [check(["method=fp", *others], planned.hydra_own), planned]
    except ConfigError:
        return [planned]


def _divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Hydra's own overrides, and those of this project."""
    hydra_own, own = [], []
    for text, override in zip(overrides, parse(overrides), strict=True):
        if text.startswith("hydra/sweeper"):
            problem = "is not offered: jobs are expanded before Hydra sees them"
            raise ConfigError("hydra/sweeper", override.value(), ["basic"], problem)
        (hydra_own if override.is_hydra_override() else own).append(text)
    return hydra_own, own


def sweep_jobs(name: str, config_dirs: Sequence[str] = ()) -> list[list[str]]:
    """Return the jobs of a sweep: ``jobs``, a list of lists of overrides, and ``overrides``, which come before each.

    ``takes`` says in words how long all take. A sweep lies in ``sweeps/<name>.yaml``, of this project, a plug-in or a
    folder given by ``--config-dir``.

    Raises:
        ConfigError: there is no such sweep, or it is something else.
    """
    content = _sweep_content(name, config_dirs)
    common, jobs = content.get("overrides", []), content.get("jobs")
    if not (_is_words(common) and isinstance(jobs, list) and jobs and all(map(_is_words, jobs))):
        problem = "is not a list of lists of key=value"
        raise ConfigError(f"sweeps/{name}.yaml: jobs", "...", problem=problem)
    return [[*common, *job] for job in jobs]


def how_long(options: Namespace) -> str:
    """Return what the sweeps on a command line say of how long they take; "" where they say nothing."""
    names, config_dirs = _sweeps(options)
    return ", then ".join(str(takes) for name in names if (takes := _sweep_content(name, config_dirs).get("takes")))


def _sweep_content(name: str, config_dirs: Sequence[str]) -> dict[Any, Any]:
    plugged = (plugin.conf.parent / "sweeps" for plugin in usable())
    folders = [SWEEPS, *plugged, *(Path(folder) / "sweeps" for folder in config_dirs)]
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    if name not in files:
        plugin = left_out_with("sweeps", name)
        problem = "is not known" if plugin is None else f"is of the plug-in {plugin.name}, {plugin.summary}"
        raise ConfigError("sweeps", name, files, problem)
    try:
        content = OmegaConf.to_container(OmegaConf.load(files[name]))
    except (YAMLError, OSError) as error:
        problem = f"cannot be read ({str(error).splitlines()[0]})"
        raise ConfigError("sweeps", name, problem=problem) from None
    if not isinstance(content, dict):
        raise ConfigError(f"sweeps/{name}.yaml", "...", _SWEEP_FIELDS, "has none of its keys", "jobs")
    for key, value in content.items():
        if key not in _SWEEP_FIELDS:
            nearest = closest(key, _SWEEP_FIELDS)
            raise ConfigError(f"sweeps/{name}.yaml: {key}", value, _SWEEP_FIELDS, "is not a key", nearest)
    return content


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def check(overrides: Sequence[str], hydra_own: Sequence[str] = ()) -> Planned:
    """Compose and check one job, down to the files of its model; ConfigError or ModelError."""
    job = make_job(compose([*hydra_own, *overrides]))
    launchers = [text.partition("=")[2] for text in hydra_own if text.startswith("hydra/launcher=")]
    here = not launchers or launchers[-1] in LOCAL_LAUNCHERS
    if here and job.trainer.accelerator == "gpu" and not cuda_expected():
        problem = "needs a CUDA device, and none is seen here"
        raise ConfigError("trainer.accelerator", "gpu", ["cpu"], problem)
    planned = Planned(tuple(overrides), tuple(hydra_own), job)
    if job.task == "cost" or job.model.shapes_only:
        return planned
    weights = hash_once(job.model)
    return planned._replace(ids=job_ids(job, weights), full_precision=job_ids(full_precision(job), weights))


hash_once = cache(weights_hash)


def _sameness(planned: Planned) -> Any:
    """Return what is equal for jobs of which one is enough."""
    job = planned.job
    if planned.result is None or job.task == "evaluate":
        return job.task, canonical_json(job.config)
    return job.task, str(job.store_root), planned.result, job.metrics
