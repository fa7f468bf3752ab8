"""The machine and what is installed on it, for the doctor. Imports torch only to ask it."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from dmqbench.config.job import cuda_expected
from dmqbench.config.names import ACCELERATORS
from dmqbench.config.plugins import plugins
from dmqbench.launch.findings import ABSENT, BROKEN, OK, Finding

LAUNCHERS = {
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
"""``hydra/launcher`` → the package that it needs."""

GIB = 2**30


def machine() -> Iterator[Finding]:
    yield Finding("machine", "python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    # Cores that this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory_gib()
    size = "" if memory is None else f", {memory:.1f} GiB of memory"
    yield Finding("machine", "cpu", OK, f"{cores} cores{size}", facts={"cores": cores, "memory_gib": memory})
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways
        reason = " ".join(str(error).split())[:200]
        advice = "pip install -c constraints.txt -e ."
        yield Finding("machine", "torch", BROKEN, f"cannot be imported ({type(error).__name__}: {reason})", advice)
        return
    threads, cuda = torch.get_num_threads(), torch.version.cuda
    build = f"CUDA {cuda}" if cuda else "CPU"
    yield Finding("machine", "torch", OK, f"{torch.__version__}, built for {build}, {threads} threads")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        gib = about.total_memory / GIB
        yield Finding("machine", f"cuda:{number}", OK, f"{about.name}, {gib:.0f} GiB", facts={"memory_gib": gib})
    if not torch.cuda.is_available():
        yield _no_gpu(cuda)


def _no_gpu(built_for: str | None) -> Finding:
    """Return why there is no GPU."""
    detail, advice = "none: jobs run on the CPU", ""
    if cuda_expected():
        detail = "there is a driver, but torch sees no device"
        advice = f"trainer={'|'.join(ACCELERATORS)}: say cpu, or repair the driver"
    elif built_for is None and Path("/proc/driver/nvidia/version").exists():
        detail = "there is a driver, but torch is built for the CPU"
        advice = "install a torch that is built for CUDA"
    return Finding("machine", "gpu", ABSENT, detail, advice)


def _memory_gib() -> float | None:
    """Return the installed memory, or the smaller share of a container; None where the system does not say."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = installed
    return min(installed, limit) / GIB


def packages() -> Iterator[Finding]:
    """The requirements that the installed package states, those of each extra together."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about, stated = metadata("dmqbench"), [Requirement(text) for text in requires("dmqbench") or ()]
    except PackageNotFoundError:
        yield Finding("packages", "dmqbench", BROKEN, "is not installed", "pip install -c constraints.txt -e .")
        return
    running, needed = platform.python_version(), SpecifierSet(about["Requires-Python"] or "")
    fits = needed.contains(running, prereleases=True)
    detail = f"{version('dmqbench')}, for python {needed}{'' if fits else f', and this is {running}'}"
    yield Finding("packages", "dmqbench", OK if fits else BROKEN, detail)
    plain = [needs for needs in stated if needs.marker is None or needs.marker.evaluate({"extra": ""})]
    present = {needs.name: version(needs.name) for needs in plain if _wrong(needs) is None}
    yield Finding("packages", "required", OK, f"{len(present)} of {len(plain)} as needed", facts={"versions": present})
    for needs in plain:
        if wrong := _wrong(needs):
            advice = f"pip install -c constraints.txt '{needs.name}{needs.specifier}'"
            yield Finding("packages", needs.name, BROKEN, wrong, advice)
    for extra in about.get_all("Provides-Extra") or ():
        optional = [needs for needs in stated if needs not in plain]
        members = [needs for needs in optional if needs.marker and needs.marker.evaluate({"extra": extra})]
        lacking = [wrong for member in members if (wrong := _wrong(member)) is not None]
        detail = "; ".join(lacking) or ", ".join(member.name for member in members)
        advice = f"pip install -c constraints.txt -e .[{extra}]" if lacking else ""
        brief = "not whole → pip install -c constraints.txt -e '.[NAME]'" if lacking else "installed"
        yield Finding("packages", f"[{extra}]", ABSENT if lacking else OK, detail, advice, brief=brief)


def _wrong(requirement: Any) -> str | None:
    """Return what is wrong with an installed package; None if it is as required."""
    name, needed = requirement.name, requirement.specifier
    try:
        installed = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    fits = needed.contains(installed, prereleases=True)
    return None if fits else f"{name} is {installed}, needed is {needed}"


def plug_ins() -> Iterator[Finding]:
    """Every declared plug-in: what it brings, and what of it cannot be used."""
    from dmqbench.config.compose import wrong_options

    for plugin in plugins():
        facts = {"distribution": plugin.distribution, "version": plugin.version, "brings": plugin.brings}
        wrong = "; ".join(wrong_options(plugin))
        advice = f"tell the makers of {plugin.distribution}, or uninstall it" if wrong or plugin.problem else ""
        yield Finding("plug-ins", plugin.title, ABSENT if advice else OK, wrong or plugin.summary, advice, facts)


def launchers() -> Iterator[Finding]:
    yield Finding("launchers", "basic", OK, "jobs of a sweep one after another")
    for name, package in LAUNCHERS.items():
        try:
            yield Finding("launchers", name, OK, f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding("launchers", name, ABSENT, f"{package} is not installed", brief="not installed")
