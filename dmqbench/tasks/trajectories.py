"""``task=trajectories``: the calibration and validation trajectories of a job, followed batch by batch."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from dmqbench.config.checked_job import Job
from dmqbench.config.effort import work_of_trajectories
from dmqbench.data.bank import Trajectories, TrajectoryBank, join
from dmqbench.data.noise import Stream
from dmqbench.data.tensor_files import save_tensors
from dmqbench.store.artifact import StoreError
from dmqbench.tasks.workshop import OUTCOME, Workshop, open_workshop
from dmqbench.tracking.environment import memory_facts
from dmqbench.tracking.progress import Meter
from dmqbench.tracking.stopwatch import Stopwatch


def carry_out(job: Job) -> Path:
    """Make the trajectory bank of ``job``; return its folder."""
    shop = open_workshop(job)
    bank_of(shop)
    return shop.store.path("trajectories", shop.ids.trajectories)


def bank_of(shop: Workshop) -> TrajectoryBank:
    """Return the calibration and validation trajectories, from the store or made now."""
    artifact = shop.made_once("trajectories", shop.ids.trajectories, lambda: _follow_all(shop))

    def stream(name: Stream) -> Trajectories:
        parts = [path for file, path in sorted(artifact.files.items()) if file.startswith(name)]
        found = join([Trajectories.from_tensors(load_file(path)) for path in parts])
        if {found.x.dtype, found.output.dtype} != {torch.float32}:  # versions before left a caller's autocast on
            raise StoreError(f"{artifact.path}: these trajectories are not of float32; remove the folder")
        return found

    return TrajectoryBank(stream("cal"), stream("val"), shop.job.seed)


def _follow_all(shop: Workshop) -> dict[str, float]:
    """Follow the trajectories batch by batch into the work folder; batches that a killed run left are kept."""
    job, folder = shop.job, shop.store.work(shop.ids.trajectories) / OUTCOME
    batch = job.sampler.chunk
    counts: dict[Stream, int] = {"cal": job.budget.trajectories, "val": job.budget.validation}
    starts: list[tuple[Stream, int]] = [
        (stream, start) for stream, count in counts.items() for start in range(0, count, batch)
    ]
    shop.read_prompts(counts)
    denoising = shop.calibrating(shop.full_precision)
    shop.memory.begin_part()
    watch, title = Stopwatch(), f"trajectories of {job.model.name}"
    with watch.running(), Meter(title, len(starts), work=work_of_trajectories(job)) as meter:
        for stream, start in starts:
            path = folder / f"{stream}_{start // batch:05d}.safetensors"
            if not path.exists():
                indices = range(start, min(start + batch, counts[stream]))
                part = denoising.follow(stream=stream, seed=job.seed, indices=indices, move=meter.move)
                save_tensors(path, part.to_tensors())
            meter.advance()
    return {
        **watch.facts,
        "network_forwards": sum(counts.values()) * denoising.sampler.network_calls * denoising.branches,
        **memory_facts(job.device_type),
    }
