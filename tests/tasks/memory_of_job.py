"""What the parts of a job hold at most, planned and measured, in a process of its own: prints one JSON object."""

import ctypes
import gc
import json
import sys
from pathlib import Path

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.store.artifacts import Store
from dmqbench.tasks import calibrate
from dmqbench.tasks.memory_plan import planned_phases
from dmqbench.tasks.workshop import open_workshop

MIB = 2**20


def resident() -> float:
    """MiB of this process, what was freed given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def measured(overrides: list[str]) -> dict[str, float]:
    """MiB that the parts of a calibration held at most beyond what the process held before."""
    job = make_job(compose(overrides))
    before = resident()
    calibrate.carry_out(job)
    ids, store = open_workshop(job).ids, Store(job.store_root)
    parts = {"trajectories": ("trajectories", ids.trajectories)}
    parts |= {name: ("quantized", id) for name, id in ids.stages}
    artifacts = {name: store.verified(*part) for name, part in parts.items()}
    return {name: made.facts["peak_memory_mib"] - before for name, made in artifacts.items() if made}


def main() -> None:
    small, large, *overrides = sys.argv[1:]
    measured([*overrides, f"model.path={small}"])  # what is imported and made once belongs to no part
    plan = planned_phases(make_job(compose([*overrides, f"model.path={large}"])))
    found = measured([*overrides, f"model.path={large}"])
    planned = {phase.name: (phase.computing + phase.keeping) / MIB for phase in plan}
    print(json.dumps({name: [planned[name], found[name]] for name in found}))


if __name__ == "__main__":
    main()
