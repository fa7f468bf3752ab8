"""Where a result was made, and how much memory that took."""

import ctypes
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "pytorch-lightning", "numpy", "scikit-learn"),
    *("torchmetrics", "torch-fidelity", "clean-fid", "optimum-quanto"),
)
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Start measuring the peak anew: jobs of a sweep share a process. Where the system cannot, the peak is its own."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory_mib() -> int:
    """Largest resident memory of this process since the last reset, in MiB."""
    try:
        [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return round(int(line.split()[1]) / 1024)
    except (OSError, ValueError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def give_back_freed_memory() -> None:
    """Let the system have what was freed: glibc keeps what lies between blocks in use, in long stages gigabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class PeakMemory:
    """The largest memory since the last part began, and since all of them did."""

    def __init__(self) -> None:
        reset_peak_memory()
        self._before = 0

    def begin_part(self) -> None:
        """Measure anew, on the GPU as well, if there is one in use."""
        self._before = self.total_mib
        give_back_freed_memory()
        reset_peak_memory()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    @property
    def total_mib(self) -> int:
        """Largest resident memory over all parts, in MiB."""
        return max(self._before, peak_memory_mib())


def memory_facts(device_type: str) -> dict[str, int]:
    """Peaks since they were last reset, in MiB: resident memory, and on CUDA what was allocated there."""
    device = {"peak_device_memory_mib": torch.cuda.max_memory_allocated() >> 20} if device_type == "cuda" else {}
    return {"peak_memory_mib": peak_memory_mib(), **device}


def environment(device_type: str) -> dict[str, Any]:
    """Versions, device and threads of this run, and the commit where it ran from a checkout."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if device_type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": device,
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package lies in, or None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None
