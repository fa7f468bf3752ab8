"""Models of every family that runs: each method on one of them, and its pipeline in a script of one's own."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file
from tiny import (
    autoencoder,
    dit,
    save_class_table,
    save_pipeline,
    stable_diffusion,
    text_unet,
    unet,
    vq_autoencoder,
)

from dmqbench import api
from dmqbench.data.noise import initial_noise

SIZES = (*FEW, "sampler.chunk=4", "metrics.samples=4", "metrics.pairs=4", "metrics.names=[psnr,mse]", "model=local")

PROMPTS = ["a red fox", "two foxes 🦊", "", "A red  fox", "snow", "a " * 500, "rain", "fog", "a lake", "sun"]
"""One twice, one empty, one with a sign that no tokenizer has, one of 500 words."""

JOBS = {
    "DiT, guided": ("dit", "method=rtn bits=w8a8 sampler.guidance=1.5 diagnose=true"),
    "DiT, attention quantized": ("dit", "method=q_diffusion bits=w4a6 bits.scope=paper"),
    "DiT without skips": ("dit", "method=dmq bits=w4a6"),
    "DiT, mixed rows": ("dit", "method=mpq_dm bits=w3a6"),
    "DiT, over several steps": ("dit", "method=accuquant bits=w3a6"),
    "DiT, adapters": ("dit", "method=efficient_dm bits=w4a4"),
    "DiT, ranges of tokens": ("dit", "method=efficient_dm bits=w4a4 bits.granularity=token diagnose=true"),
    "LDM of classes, guided": ("classes", "method=q_diffusion bits=w4a8 sampler.guidance=3 model.classes=10"),
    "Stable Diffusion, guided": ("sd", "method=rtn bits=w8a8 sampler.guidance=3 diagnose=true"),
    "Stable Diffusion": ("sd", "method=dmq bits=w4a6"),
    "latents of a VQ autoencoder": ("vq", "method=rtn bits=w8a8"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run store, and beside it the folders of the models."""
    root = tmp_path_factory.mktemp("families")
    save_pipeline(root / "dit", dit(), autoencoder())
    save_class_table(save_pipeline(root / "classes", text_unet(), vq_autoencoder()))
    stable_diffusion().save_pretrained(root / "sd")
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    save_pipeline(root / "vq", unet(class_entries=None, in_channels=4, out_channels=4), vq_autoencoder())
    return root


@pytest.mark.parametrize(("model", "overrides"), JOBS.values(), ids=JOBS)
def test_a_job_runs(places, model, overrides):
    prompts = [f"inputs.prompts={places / 'prompts.txt'}"] if model == "sd" else []
    arguments = (*SIZES, f"model.path={places / model}", *prompts, *overrides.split())
    status, output, errors = dmqbench(places / "runs", *arguments)
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["metrics"]["psnr"]["value"] > 15
    assert result["cost"]["quantized_layers"] > 10


def test_a_model_of_text_draws_what_its_pipeline_draws(places, tmp_path):
    """Under guidance, with a negative prompt, from the same noise; diffusers' own pipeline is the oracle."""
    overrides = ["sampler.guidance=3", "sampler.steps=4", "sampler.steps_offset=1", "inputs.negative_prompt=rain"]
    prompts = f"inputs.prompts={places / 'prompts.txt'}"
    arguments = (*SIZES, f"model.path={places / 'sd'}", prompts, *overrides, "task=sample", "method=fp")
    status, output, errors = dmqbench(tmp_path, *arguments)
    assert status == 0, errors
    assert "1 prompt is longer" in errors
    drawn = load_file(result_folder(output) / "chunk_00000.safetensors")["images"]
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    held_out = [PROMPTS[0], "", "a " * 500, "fog"]  # every other one of those that differ
    noise = initial_noise("eval", 0, range(4), (4, 8, 8))
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": noise, "output_type": "np"}
    expected = pipe(held_out, negative_prompt=["rain"] * 4, **asked).images
    assert (drawn.permute(0, 2, 3, 1) - torch.from_numpy(expected * 255)).abs().max() <= 1


def test_prompts_are_read_once(places):
    """Jobs of other bits find what the encoders made, and no prompt is read that no sample has."""
    files = sorted(path.name for path in (places / "runs" / "embeddings").rglob("prompts_*.safetensors"))
    made = {path: path.stat().st_mtime_ns for path in (places / "runs" / "embeddings").rglob("*")}
    prompts = f"inputs.prompts={places / 'prompts.txt'}"
    arguments = (*SIZES, f"model.path={places / 'sd'}", prompts, "method=rtn", "bits=w4a8")
    status, _, errors = dmqbench(places / "runs", *arguments)
    assert status == 0, errors
    assert files and made == {path: path.stat().st_mtime_ns for path in (places / "runs" / "embeddings").rglob("*")}


WRONG_PROMPTS = {
    "inputs.prompts=null": "inputs.prompts=null must be given, as local reads text",
    "inputs.prompts=absent.txt": "inputs.prompts=absent.txt cannot be read (No such file or directory)",
    "inputs.calibration_prompts={few}": "holds 1 different prompts that are not of the evaluation",
}


@pytest.mark.parametrize(("override", "said"), WRONG_PROMPTS.items())
def test_prompts_that_cannot_be_used_are_refused_in_one_line(places, tmp_path, override, said):
    (tmp_path / "few.txt").write_text("mist\nA RED fox\n")
    arguments = (*SIZES, f"model.path={places / 'sd'}", f"inputs.prompts={places / 'prompts.txt'}")
    status, _, errors = dmqbench(places / "runs", *arguments, override.format(few=tmp_path / "few.txt"))
    assert status == 2 and said in errors and errors.count("\n") == 1


def test_a_model_without_text_takes_no_prompts(places):
    arguments = (*SIZES, f"model.path={places / 'dit'}", f"inputs.prompts={places / 'prompts.txt'}")
    status, _, errors = dmqbench(places / "runs", *arguments)
    assert status == 2 and "reads none" in errors


def test_a_transformer_of_the_hub_s_older_form_has_the_same_bits(tmp_path):
    """facebook/DiT-XL-2 calls its class as diffusers once did, and says by its norm what it is."""
    folder = save_pipeline(tmp_path / "dit", dit(), autoencoder())
    status, new, errors = dmqbench(tmp_path / "runs", *SIZES, f"model.path={folder}", "task=sample")
    assert status == 0, errors
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    status, old, errors = dmqbench(tmp_path / "runs", *SIZES, f"model.path={folder}", "task=sample")
    assert status == 0, errors
    first, second = (result_folder(output) / "chunk_00000.safetensors" for output in (new, old))
    assert first != second and first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_a_transformer_is_quantized_saved_and_loaded_by_a_script(tmp_path, granularity):
    pipe = DiTPipeline(dit(classes=1000), autoencoder(), DDIMScheduler(clip_sample=False))

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": generator, "output_type": "np"}
        return torch.from_numpy(pipe(class_labels=[1, 2], **settings).images)

    before = drawn(pipe)
    overrides = [f"bits.granularity={granularity}", *(item for item in FEW if item.startswith("budget."))]
    api.quantize_(pipe, "q_diffusion", "w4a6", steps=4, guidance=2.0, store=tmp_path / "runs", overrides=overrides)
    quantized = drawn(pipe)
    assert 0 < (quantized - before).abs().max() < 0.2
    api.save(pipe, tmp_path / "saved")
    assert (tmp_path / "saved" / "transformer" / "quantized.safetensors").is_file()
    assert torch.equal(drawn(api.load(tmp_path / "saved")), quantized)


def test_a_pipeline_of_text_is_quantized_saved_and_loaded_by_a_script(tmp_path):
    pipe = stable_diffusion()

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": generator, "output_type": "np"}
        return torch.from_numpy(pipe(["a red fox", "snow"], **settings).images)

    before = drawn(pipe)
    sizes = [item for item in FEW if item.startswith("budget.")]
    settings = {"steps": 4, "guidance": 2.0, "store": tmp_path / "runs", "overrides": sizes}
    with pytest.raises(api.ConfigError, match="prompts"):
        api.quantize_(pipe, "q_diffusion", "w4a6", **settings)
    api.quantize_(pipe, "q_diffusion", "w4a6", prompts=["fog", "a\nlake", "sun"], **settings)
    quantized = drawn(pipe)
    assert 0 < (quantized - before).abs().max() < 0.2
    api.save(pipe, tmp_path / "saved")
    assert torch.equal(drawn(api.load(tmp_path / "saved")), quantized)
