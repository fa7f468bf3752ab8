"""A small pipeline, quantized as a script does it, and its pictures."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from tiny import smallest_unet

from dmqbench.api import quantize_

STEPS = 4
TINY = (
    "sampler.chunk=4",
    "budget.trajectories=4",
    "budget.validation=4",
    "budget.samples=8",
    "budget.scale_iterations=2",
    "budget.weight_iterations=2",
    "budget.activation_iterations=1",
    "budget.trajectory_iterations=1",
    "budget.tuning_iterations=2",
)


def pipeline(seed=0) -> DDIMPipeline:
    pipe = DDIMPipeline(smallest_unet(seed, class_entries=None), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quantized(store, pipe=None, method="rtn", bits="w4a6", **options):
    pipe = pipeline() if pipe is None else pipe
    options = {"steps": STEPS, "overrides": TINY, **options}
    quantize_(pipe, method=method, bits=bits, store=store, **options)
    return pipe


def draw(pipe, steps=STEPS, **options):
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, num_inference_steps=steps, generator=generator, output_type="pt", **options).images
