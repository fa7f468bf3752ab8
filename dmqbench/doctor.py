"""What this machine can and cannot run: ``dmqbench-doctor``. Downloads nothing and writes nothing."""

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmqbench.config.job import cuda_expected
from dmqbench.config.plugins import metrics, plugins
from dmqbench.config.schema import ACCELERATORS, MetricsConfig
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.weights import (
    LPIPS_BACKBONE_FILES,
    WEIGHT_FILES,
    WeightFile,
    find,
    inception_file,
    torch_checkpoints,
)
from dmqbench.models.folders import EMBEDDED, ModelError, ModelSource, locate, network_folder, weight_files
from dmqbench.store.artifacts import KINDS, Store
from dmqbench.tracking.record import redact
from dmqbench.tracking.wandb_client import resolve_mode

Status = Literal["ok", "absent", "broken"]
OK, ABSENT, BROKEN = "ok", "absent", "broken"
"""``absent`` is something that can be done without; ``broken`` something that nothing runs without."""

LAUNCHERS = {
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
"""``hydra/launcher`` → the package that it needs."""

_STYLES: Mapping[str, str] = {OK: "green", ABSENT: "yellow", BROKEN: "bold red"}
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``advice``: what to do about it; ``facts``: what programs may want to know."""

    group: str
    name: str
    status: Status
    detail: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[], Iterator[Finding]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 1 if something is broken that every job needs, else 0."""
    options = _parser().parse_args(arguments)
    found = findings(options.weights)
    healthy = all(one.status != BROKEN for one in found)
    if options.format == "json":
        rows = [redact(asdict(one)) for one in found]
        print(json.dumps({"version": 1, "healthy": healthy, "findings": rows}, indent=1, ensure_ascii=False))
    else:
        _print(found, Console())
    return 0 if healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dmqbench-doctor", description="What this machine can and cannot run.")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--weights", metavar="FOLDER", help="where to look first, as metrics.weights")
    return parser


def findings(weights: str | None = None) -> list[Finding]:
    """Everything that was found; ``weights`` is a folder of weights of metrics."""
    settings = MetricsConfig(names=tuple(metrics()), pairs=1, samples=1, weights=weights, download=False)
    checks: dict[str, Check] = {
        "machine": _machine,
        "packages": _packages,
        "plug-ins": _plugins,
        "metrics": lambda: _metrics(settings),
        "weights": lambda: _weights(settings),
        "models": _models,
        "tracking": _tracking,
        "store": _store,
        "launchers": _launchers,
        "display": _display,
    }
    return [finding for group, check in checks.items() for finding in _guarded(group, check)]


def _guarded(group: str, check: Check) -> Iterator[Finding]:
    """What ``check`` finds; that it fails is a finding too."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(group, "check", BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())}")


# ---- the machine


def _machine() -> Iterator[Finding]:
    memory = _memory_gib()
    shown = "" if memory is None else f", {memory:.1f} GiB of memory"
    yield Finding("machine", "python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("machine", "cpu", OK, f"{_cores()} cores{shown}", facts={"cores": _cores(), "memory_gib": memory})
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
        gib = about.total_memory / _GIB
        yield Finding("machine", f"cuda:{number}", OK, f"{about.name}, {gib:.0f} GiB", facts={"memory_gib": gib})
    if not torch.cuda.is_available():
        yield _no_gpu(cuda)


def _no_gpu(built_for: str | None) -> Finding:
    """Why there is no GPU."""
    if cuda_expected():
        advice = f"trainer={'|'.join(ACCELERATORS)}: say cpu, or repair the driver"
        return Finding("machine", "gpu", ABSENT, "there is a driver, but torch sees no device", advice)
    if built_for is None and Path("/proc/driver/nvidia/version").exists():
        detail = "there is a driver, but torch is built for the CPU"
        return Finding("machine", "gpu", ABSENT, detail, "install a torch that is built for CUDA")
    return Finding("machine", "gpu", ABSENT, "none: jobs run on the CPU")


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    """Installed memory, or the container's share of it where that is smaller; None where the system does not say."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = installed
    return min(installed, limit) / _GIB


# ---- packages


def _packages() -> Iterator[Finding]:
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
    plain = [one for one in stated if one.marker is None or one.marker.evaluate({"extra": ""})]
    present = {one.name: version(one.name) for one in plain if _wrong(one) is None}
    yield Finding("packages", "required", OK, f"{len(present)} of {len(plain)} as needed", facts={"versions": present})
    for requirement in plain:
        if wrong := _wrong(requirement):
            advice = f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'"
            yield Finding("packages", requirement.name, BROKEN, wrong, advice)
    for extra in about.get_all("Provides-Extra") or ():
        members = [one for one in stated if one not in plain and one.marker and one.marker.evaluate({"extra": extra})]
        lacking = [wrong for member in members if (wrong := _wrong(member)) is not None]
        detail = "; ".join(lacking) or ", ".join(member.name for member in members)
        advice = f"pip install -c constraints.txt -e .[{extra}]" if lacking else ""
        yield Finding("packages", f"[{extra}]", ABSENT if lacking else OK, detail, advice)


def _wrong(requirement: Any) -> str | None:
    """What is wrong with an installed package; None if it is as required."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} is {found}, needed is {requirement.specifier}"


def _plugins() -> Iterator[Finding]:
    """Every declared plug-in: what it brings, and what of it cannot be used."""
    from dmqbench.config.compose import wrong_options

    for plugin in plugins():
        facts = {"distribution": plugin.distribution, "version": plugin.version, "brings": plugin.brings}
        wrong = "; ".join(wrong_options(plugin))
        advice = f"tell the makers of {plugin.distribution}, or uninstall it" if wrong or plugin.problem else ""
        yield Finding("plug-ins", plugin.title, ABSENT if advice else OK, wrong or plugin.summary, advice, facts)


# ---- metrics and their weights


def _metrics(settings: MetricsConfig) -> Iterator[Finding]:
    """Whether each metric can be computed here, with the default settings, without downloading anything."""
    for name in metrics():
        try:
            detail = _measured_with(name, settings)
        except MetricUnavailable as reason:
            yield Finding("metrics", name, ABSENT, *_split(str(reason)))
        except (OSError, ModelError) as error:
            yield Finding("metrics", name, BROKEN, " ".join(str(error).split()))
        else:
            yield Finding("metrics", name, OK, detail)


def _split(reason: str) -> tuple[str, str]:
    """What is missing, and how to get it."""
    problem, _, advice = reason.partition("; ")
    return problem, advice


def _measured_with(name: str, settings: MetricsConfig) -> str:
    """What ``name`` is computed with; MetricUnavailable if that is not here."""
    if metrics()[name].features == "digits":
        return f"classifier {_classifier()}"
    if name == "clip":
        from dmqbench.eval.clip import locate_clip

        return str(locate_clip(settings))
    file = weight_file(name, settings)
    if file is None:
        return "needs no weights"
    located = find(file, settings)
    if located is None:
        raise MetricUnavailable(f"needs {file.name}, {file.size}")
    return located.path.name


def weight_file(metric: str, settings: MetricsConfig) -> WeightFile | None:
    """The file that a metric other than ``clip`` needs under these settings; None if it needs none."""
    if metric == "lpips":
        return LPIPS_BACKBONE_FILES[settings.lpips]
    features = metrics()[metric].features
    if features not in ("inception", "adm"):
        return None
    return inception_file("adm" if features == "adm" else settings.inception)


def _weights(settings: MetricsConfig) -> Iterator[Finding]:
    """Every file of weights that some metric needs under some settings."""
    place = settings.weights or str(torch_checkpoints())
    for file in WEIGHT_FILES:
        facts = {"sha256": file.sha256, "bytes": file.size_bytes, "url": file.url, "metrics": list(file.metrics)}
        about = f"{file.size}, sha256 {file.sha256[:12]}…, for {', '.join(file.metrics)}"
        try:
            located = find(file, settings)
        except MetricUnavailable as reason:
            yield Finding("weights", file.name, ABSENT, *_split(str(reason)), facts)
            continue
        if located is None:
            detail = f"not in {place}, which metrics.weights can change; {about}"
            yield Finding("weights", file.name, ABSENT, detail, f"get {file.url}", facts)
        else:
            detail = f"{located.path}{', a stand-in' if located.stand_in else ''}; {about}"
            yield Finding("weights", file.name, OK, detail, facts={**facts, "path": str(located.path)})


# ---- models, tracking, store


def _classifier() -> str:
    """Name of the shipped classifier's file, if it is whole."""
    from safetensors import SafetensorError, safe_open

    path = EMBEDDED / "digits_classifier.safetensors"
    try:
        with safe_open(path, framework="np"):
            return path.name
    except SafetensorError as error:
        raise ModelError(f"{path}: truncated or not a safetensors file ({error}); install dmqbench again") from None


def _models() -> Iterator[Finding]:
    """The embedded model, and where models from the hub are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    for name in sorted(path.name for path in EMBEDDED.iterdir() if path.is_dir()):
        source = ModelSource("embedded", name)
        try:
            files = weight_files(network_folder(locate(source)), source.advice)
        except ModelError as error:
            yield Finding("models", name, BROKEN, str(error), "install dmqbench again")
        else:
            mib = sum(path.stat().st_size for path in files) / 2**20
            yield Finding("models", name, OK, f"embedded, whole, {mib:.1f} MiB")
    cache = Path(HF_HUB_CACHE)
    count = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    offline = ", offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else ""
    status = OK if count else ABSENT
    yield Finding(
        "models", "hub cache", status, f"{cache}, {count} repositories{offline}", facts={"repositories": count}
    )


def _tracking() -> Iterator[Finding]:
    """What ``tracker=auto`` does here. Whether there is a key is told, never which."""
    try:
        installed = version("wandb")
    except PackageNotFoundError:
        return  # the packages say so already
    mode = resolve_mode("auto")
    keyed = resolve_mode("auto", {**os.environ, "WANDB_MODE": ""}) == "online"
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    place = {"online": server, "offline": str(store_root() / "wandb"), "disabled": "nowhere"}[mode]
    detail = f"{installed}, tracker=auto is {mode}, {'a' if keyed else 'no'} key; runs go to {place}"
    advice = "" if keyed or mode == "disabled" else "wandb login, or WANDB_API_KEY, to record online"
    yield Finding("tracking", "wandb", OK, redact(detail), advice, {"mode": mode, "has_key": keyed})


def store_root() -> Path:
    """The run store that a command without ``store.root`` uses."""
    return Path(os.environ.get("DMQBENCH_RUNS") or "runs").expanduser().absolute()


def _store() -> Iterator[Finding]:
    root = store_root()
    existing = next(place for place in (root, *root.parents) if place.exists())
    free = shutil.disk_usage(existing).free / _GIB
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        advice = "choose another with store.root=… or DMQBENCH_RUNS"
        yield Finding("store", "run store", BROKEN, f"{root} cannot be written", advice)
        return
    store = Store(root)
    counts = {kind: len(store.ids(kind)) for kind in KINDS} if root.exists() else {}
    held = f"{counts['result']} results" if counts else "not made yet"
    facts = {"root": str(root), "free_gib": free, "artifacts": counts}
    yield Finding("store", "run store", OK, f"{root}, writable, {held}, {free:.0f} GiB free", facts=facts)


# ---- the rest


def _launchers() -> Iterator[Finding]:
    yield Finding("launchers", "basic", OK, "jobs of a sweep one after another")
    for name, package in LAUNCHERS.items():
        try:
            yield Finding("launchers", name, OK, f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding("launchers", name, ABSENT, f"{package} is not installed")


def _display() -> Iterator[Finding]:
    yield Finding("display", "none needed", OK, "pictures and pages are files; any browser shows a page")


def _print(found: Sequence[Finding], console: Console) -> None:
    for group in dict.fromkeys(one.group for one in found):
        table = Table(
            title=group, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1)
        )
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, min_width=14)
        table.add_column(overflow="fold")
        for one in (one for one in found if one.group == group):
            text = one.detail + (f"\n→ {one.advice}" if one.advice else "")
            mark = f"[{_STYLES[one.status]}]{one.status}[/]"
            table.add_row(mark, escape(one.name), escape(str(redact(text))))
        console.print(table)
        console.print()
    broken = [one.name for one in found if one.status == BROKEN]
    console.print(f"broken: {', '.join(broken)}" if broken else "Nothing that a job needs is broken.", markup=False)


if __name__ == "__main__":
    sys.exit(main())
