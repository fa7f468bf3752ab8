"""What users try with a pipeline of text: it works, or one line says what to do."""

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.models.controlnets.controlnet import ControlNetModel
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file, save_file
from tiny import save_pipeline, smallest_unet, text_unet
from torch import nn
from twins import clip_encoder, stable_diffusion

from dmqbench import api
from dmqbench.data.noise import initial_noise
from dmqbench.models.conditioning import LatentDecoder
from dmqbench.models.text import PromptEncoder
from dmqbench.tasks import embeddings

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAMPLE = (*FEW, "sampler.chunk=1", "metrics.samples=4", "metrics.pairs=4", "metrics.names=[psnr]", "model=local")
PROMPTS = ["fox\tand\thound", "🦊", "", "snow", "rain", "fog", "a lake", "sun"]
HELD_OUT = PROMPTS[::2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pipeline's folder, prompts and a run store."""
    root = tmp_path_factory.mktemp("trials")
    stable_diffusion().save_pretrained(root / "sd")
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def folder(root, tmp_path):
    return shutil.copytree(root / "sd", tmp_path / "mine")


def drawn(root, folder, *overrides, runs=None) -> tuple[int, Any, str]:
    """Status, images if there are any, and what was said of full-precision samples."""
    own = (f"model.path={folder}", f"inputs.prompts={root / 'prompts.txt'}", "task=sample", "method=fp")
    status, output, errors = dmqbench(runs or root / "runs", *SAMPLE, *own, *overrides)
    if status:
        return status, None, errors
    chunks = sorted(result_folder(output).glob("chunk_*.safetensors"))
    return status, torch.cat([load_file(chunk)["images"] for chunk in chunks]), errors


# ---- a command line


SAYS = {
    "clipping, which the pipeline takes back": (DDIMScheduler(**BETAS), (), "this job: sampler.steps_offset=1 would"),
    "Stable Diffusion's": (
        DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        (),
        "than this job: sampler.steps_offset=1 sampler.final_alpha_one=false would be as it samples",
    ),
    "spacing": (
        EulerAncestralDiscreteScheduler(**BETAS),
        (),
        "this job: sampler.spacing=linspace sampler.steps_offset=1 would",
    ),
    "PNDM": (PNDMScheduler(**BETAS), ("sampler=pndm",), "sampler.final_alpha_one=false sampler.skip_prk=false would"),
    "thresholding": (
        DDIMScheduler(**BETAS, clip_sample=False, thresholding=True),
        ("sampler.steps_offset=1",),
        "thresholding=True, which no",
    ),
}


@pytest.mark.parametrize("case", SAYS)
def test_what_a_scheduler_does_otherwise_is_said_in_one_line(root, folder, case):
    scheduler, overrides, said = SAYS[case]
    scheduler.save_pretrained(folder / "scheduler")
    status, _, errors = drawn(root, folder, *overrides)
    [line] = [line for line in errors.splitlines() if "mine: its " in line]
    assert status == 0 and said in line
    settings = [word for word in line.split() if word.startswith("sampler.")]
    status, _, errors = drawn(root, folder, *overrides, *settings, "seed=1")
    assert status == 0 and "other settings" not in errors


def test_clipping_of_a_network_of_pixels_is_said(tmp_path):
    folder = save_pipeline(tmp_path / "pixels", smallest_unet(class_entries=None))
    DDIMScheduler(clip_sample_range=2.0).save_pretrained(folder / "scheduler")
    job = (*SAMPLE, f"model.path={folder}", "task=sample", "method=fp")
    status, _, errors = dmqbench(tmp_path / "runs", *job)
    assert status == 0 and "pixels: its DDIMScheduler has other settings" in errors
    assert "than this job: sampler.clip_sample=2.0 would" in errors
    status, _, errors = dmqbench(tmp_path / "runs", *job, "sampler.clip_sample=2")
    assert status == 0 and "other settings" not in errors


def test_what_changes_nothing_is_said(root, folder):
    save_file({"x": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")
    status, _, errors = drawn(root, folder, "inputs.negative_prompt=rain")
    assert status == 0
    assert "inputs.negative_prompt changes nothing with sampler.guidance=1" in errors
    assert "pytorch_lora_weights.safetensors changes nothing, as LoRA is not loaded; fuse it" in errors
    status, _, errors = drawn(root, root / "sd", "inputs.negative_prompt=rain", "sampler.guidance=2")
    assert status == 0 and "nothing" not in errors


def test_a_network_of_stable_diffusion_2_that_is_not_square_draws_what_its_pipeline_draws(root, tmp_path):
    network = text_unet(sample_size=[8, 16], use_linear_projection=True, attention_head_dim=[2, 4])
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction")
    parts = {**stable_diffusion().components, "unet": network, "scheduler": scheduler}
    pipe: Any = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "mine")
    status, images, errors = drawn(root, tmp_path / "mine", "sampler.guidance=3", "sampler.steps_offset=1")
    assert status == 0, errors
    pipe.set_progress_bar_config(disable=True)
    noise = initial_noise("eval", 0, range(4), (4, 8, 16))
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 16, "width": 32, "output_type": "np"}
    expected = torch.from_numpy(pipe(HELD_OUT, latents=noise, **asked).images * 255)
    assert (images.permute(0, 2, 3, 1) - expected).abs().max() <= 1


def test_a_folder_of_half_precision_alone_has_the_bits_of_its_weights_in_float32(root, tmp_path):
    pipe = stable_diffusion()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.half()
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.float()
    pipe.save_pretrained(tmp_path / "full")
    assert not (tmp_path / "half" / "text_encoder" / "model.safetensors").exists()
    (status, half, errors), (_, full, _) = (drawn(root, tmp_path / name) for name in ("half", "full"))
    assert status == 0, errors
    assert torch.equal(half, full)


def test_the_text_encoder_of_another_model_is_one_line(root, folder):
    clip_encoder(width=16).save_pretrained(folder / "text_encoder")
    status, _, errors = drawn(root, folder)
    assert status == 1
    assert "its text encoders give encoder_hidden_states of width 16, and its network reads 12" in errors


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_says_which_key_is_smaller_and_goes_on(root, tmp_path, monkeypatch, error):
    decode, decoded = LatentDecoder.decode, []

    def decode_two(self, state):
        if len(decoded) == 2:
            raise error
        decoded.append(state)
        return decode(self, state)

    monkeypatch.setattr(LatentDecoder, "decode", decode_two)
    status, _, errors = drawn(root, root / "sd", runs=tmp_path)
    assert status == 1 and "sampler.chunk=1 samples" in errors and "again with: dmqbench" in errors
    [report] = tmp_path.rglob("error.json")
    assert "with more memory the same command goes on" in json.loads(report.read_text())["advice"]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("chunk_*.safetensors")}
    assert len(kept) == 2
    monkeypatch.setattr(LatentDecoder, "decode", decode)
    status, images, errors = drawn(root, root / "sd", runs=tmp_path)
    assert status == 0 and kept == {path: path.stat().st_mtime_ns for path in kept}
    assert torch.equal(images, drawn(root, root / "sd")[1])


def test_prompts_that_were_read_before_an_interrupt_are_not_read_again(root, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "PROMPTS_PER_FILE", 1)
    encoded, read = PromptEncoder.encoded, []

    def encoded_twice(self, prompt):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(prompt)
        return encoded(self, prompt)

    monkeypatch.setattr(PromptEncoder, "encoded", encoded_twice)
    status, _, errors = drawn(root, root / "sd", runs=tmp_path)
    assert status == 130 and "the same command goes on" in errors
    monkeypatch.setattr(PromptEncoder, "encoded", lambda self, prompt: read.append(prompt) or encoded(self, prompt))
    status, images, errors = drawn(root, root / "sd", runs=tmp_path)
    assert status == 0, errors
    assert read == HELD_OUT
    assert torch.equal(images, drawn(root, root / "sd")[1])


# ---- a script


class Adapted(nn.Module):
    """A layer as peft leaves it, which need not be installed."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 1, bias=False)})

    def forward(self, x):
        return self.base_layer(x)


def adapted(part):
    pipe: Any = stable_diffusion()
    name = next(name for name, _ in getattr(pipe, part).named_modules() if name.endswith(("to_q", "q_proj")))
    parent, _, child = name.rpartition(".")
    owner = getattr(pipe, part).get_submodule(parent)
    setattr(owner, child, Adapted(getattr(owner, child)))
    return pipe


def without(part):
    pipe = stable_diffusion()
    setattr(pipe, part, None)
    return pipe


def scheduled(scheduler):
    pipe: Any = stable_diffusion()
    pipe.scheduler = scheduler
    return pipe


def controlled():
    parts = {**stable_diffusion().components, "controlnet": ControlNetModel.from_unet(text_unet())}
    return StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)


def inpainting():
    parts = {**stable_diffusion().components, "unet": text_unet(in_channels=9)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


GIVEN: dict[str, Any] = {"prompts": ["fog", "a\nlake", "sun"]}
REFUSED = {
    "LoRA in the network": (lambda: adapted("unet"), GIVEN, "its unet has LoRA beside its weights; fuse it: pipe.fuse"),
    "LoRA in the encoder": (lambda: adapted("text_encoder"), GIVEN, "its text_encoder has LoRA beside"),
    "ControlNet": (controlled, GIVEN, "its controlnet adds to the network what no calibration sees"),
    "inpainting": (inpainting, GIVEN, "in_channels=9 does not fit out_channels=4"),
    "no scheduler": (lambda: without("scheduler"), GIVEN, "it has no scheduler, which states the noise schedule"),
    "no tokenizer": (lambda: without("tokenizer"), GIVEN, "it has no tokenizer"),
    "Euler's ancestral": (
        lambda: scheduled(EulerAncestralDiscreteScheduler(**BETAS)),
        GIVEN,
        "name the one to calibrate with, and call the pipeline as ever afterwards; nearest: ddim (allowed: ddim, ddpm, "
        "dpmpp, pndm)",
    ),
    "no prompts": (stable_diffusion, {}, "prompts=null must be given"),
    "a prompt": (stable_diffusion, {"prompts": "a fox"}, "prompts=a fox is no file: give a list of prompts, or a file"),
    "one prompt": (stable_diffusion, {"prompts": ["a", "A"]}, "prompts=[...] holds 1 different prompts"),
    "numbers": (stable_diffusion, {"prompts": [1, 2, 3]}, "prompts=[...] has no text in column prompt of row 1"),
    "half a sign": (stable_diffusion, {"prompts": ["\ud800", "b"]}, "number 1, with half a surrogate pair in it"),
    "endless guidance": (stable_diffusion, {**GIVEN, "guidance": float("inf")}, "sampler.guidance=inf is not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_script_is_refused_in_one_line(tmp_path, case):
    make, options, said = REFUSED[case]
    with pytest.raises((api.ConfigError, api.ModelError)) as error:
        api.quantize_(make(), "rtn", "w4a8", steps=4, store=tmp_path, **options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_quantized_pipeline_is_called_with_any_scheduler_and_size(tmp_path):
    """Ranges are of every step; between the calibrated timesteps those of the nearest one are taken."""
    pipe = scheduled(EulerAncestralDiscreteScheduler(**BETAS))
    sizes = [item for item in FEW if item.startswith("budget.")]
    settings: dict[str, Any] = {"steps": 4, "sampler": "ddim", "match": "nearest", "ranges": "step"}
    api.quantize_(pipe, "rtn", "w4a8", **settings, **GIVEN, store=tmp_path, overrides=sizes)
    pipe.set_progress_bar_config(disable=True)
    full: Any = stable_diffusion()
    full.set_progress_bar_config(disable=True)
    kinds = (EulerAncestralDiscreteScheduler, UniPCMultistepScheduler, KDPM2DiscreteScheduler, LMSDiscreteScheduler)
    for kind in kinds:
        images = []
        for each in (pipe, full):
            each.scheduler = kind(**BETAS)
            asked = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
            images.append(each(["a fox"], height=16, width=32, **asked).images)
        assert images[0].shape == (1, 16, 32, 3)
        assert 0 < abs(images[0] - images[1]).max() < 0.3
