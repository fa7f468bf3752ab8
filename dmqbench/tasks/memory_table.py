"""The plan of a job's memory as a user is told it, beside what the machine has free."""

from pathlib import Path

import torch

from dmqbench.config.checked_job import Job
from dmqbench.tasks.memory_plan import GIB, Phase, host_and_device, planned_phases, too_little


def print_plan(job: Job) -> None:
    """Print the peak of every phase, and in one line if the machine has less memory free."""
    from rich.console import Console
    from rich.table import Column, Table

    try:
        phases = planned_phases(job)
    except Exception as error:  # an estimate must not keep the rest of a plan from being told
        print(f"memory: not planned ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        return
    if not phases:
        print("memory: not planned for a network of one's own or of another program")
        return
    on_gpu = job.device_type == "cuda"
    table = Table("phase", *(Column(f"{place}, GiB", justify="right") for place in ("host", "device")[: 1 + on_gpu]))
    table.title = "Peak memory"
    bounded = job.budget.memory_gib is not None
    if bounded:
        table.title += f" under budget.memory_gib={job.budget.memory_gib:g}"
        table.add_column("how")
    for phase in phases:
        host, device = host_and_device(phase, on_gpu)
        numbers = [f"{host / GIB:.2f}", *([f"{device / GIB:.2f}"] if on_gpu else [])]
        table.add_row(phase.name, *numbers, *([phase.portions.text(on_gpu)] if bounded else []))
    Console().print(table)
    if (error := too_little(job, phases)) is not None:
        print(f"warning: {error}")
    if (warning := too_large(phases, on_gpu, free_memory(), free_device_memory() if on_gpu else None)) is not None:
        print(warning)


def too_large(phases: list[Phase], on_gpu: bool, host: int | None, device: int | None) -> str | None:
    """Return one line on the largest phase that does not fit into what is free, and the keys that make it smaller."""
    over: list[tuple[float, str]] = []
    for phase in phases:
        for place, needed, free in zip(("host", "GPU"), host_and_device(phase, on_gpu), (host, device), strict=True):
            if free is not None and needed > free:
                advice = f"; a smaller {' or '.join(phase.keys)} takes less" if phase.keys else ""
                if phase.is_stage:
                    advice = f"; budget.memory_gib={free / GIB:.0f} cuts it into portions{advice}"
                needs = f"{phase.name} takes about {needed / GIB:.1f} GiB of the {place}'s memory"
                over.append((needed - free, f"warning: {needs}, of which {free / GIB:.1f} are free{advice}"))
    return max(over)[1] if over else None


def free_memory() -> int | None:
    """Bytes that this machine could still give, or that its container may have; None where the system does not say."""
    try:
        [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    try:
        folder = Path("/sys/fs/cgroup")
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used))


def free_device_memory() -> int | None:
    """Bytes that the GPU has free; None without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
