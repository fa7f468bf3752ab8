"""Models of text of every family: prompts, samples as their pipelines draw them, methods, and scripts of one's own."""

import json

import pytest
import torch
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file
from twins import PIPELINES

from dmqbench import api
from dmqbench.data.noise import initial_noise

SIZES = (*FEW, "sampler.chunk=4", "metrics.samples=4", "metrics.pairs=4", "metrics.names=[psnr,mse]", "model=local")

LONG = "a " * 500
PROMPTS = ["a red fox", "two foxes 🦊", "", "A red  fox", "snow", LONG, "rain", "fog", "a lake", "sun"]
"""One twice, one empty, one with a sign that no tokenizer has, one of 500 words."""
HELD_OUT = ["a red fox", "", LONG, "fog"]
"""The first of the evaluation: every other one of those that differ."""

FLOW = "sampler=flow sampler.spacing=linspace"
SAMPLED = {
    "sd": "sampler.steps_offset=1",
    "sdxl": "sampler.steps_offset=1",
    "pixart": "sampler=dpmpp sampler.spacing=linspace",
    "sd3": FLOW,
    "flux": "sampler=flow sampler.spacing=trailing",
}
"""How a pipeline's own scheduler draws."""

JOBS = {
    "sd": "method=dmq bits=w4a6 sampler.guidance=3 diagnose=true",
    "sdxl": "method=q_diffusion bits=w4a6 bits.scope=paper",
    "pixart": "method=rtn bits=w8a8 sampler.guidance=3",
    "sd3": f"method=q_diffusion bits=w4a6 {FLOW}",
    "flux": "method=efficient_dm bits=w4a8 sampler=flow sampler.guidance=3.5",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run store, and beside it the folders of the models and their prompts."""
    root = tmp_path_factory.mktemp("families")
    for name in PIPELINES:
        PIPELINES[name]().save_pretrained(root / name)
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return root


def run(places, model, *overrides, runs=None):
    prompts = f"inputs.prompts={places / 'prompts.txt'}"
    return dmqbench(runs or places / "runs", *SIZES, f"model.path={places / model}", prompts, *overrides)


def asked_of(model, guidance):
    """What a pipeline is called with for pictures of 16 by 16 in four steps."""
    asked = {"num_inference_steps": 4, "guidance_scale": guidance, "height": 16, "width": 16, "output_type": "np"}
    return asked | ({"use_resolution_binning": False, "clean_caption": False} if model == "pixart" else {})


@pytest.mark.parametrize(("model", "overrides"), JOBS.items())
def test_a_job_runs(places, model, overrides):
    status, output, errors = run(places, model, *overrides.split())
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["metrics"]["psnr"]["value"] > 15
    assert result["cost"]["quantized_layers"] > 10


@pytest.mark.parametrize(("model", "overrides"), SAMPLED.items())
def test_samples_are_those_of_the_pipeline(places, tmp_path, model, overrides):
    """Under guidance, with a negative prompt, from the same noise; diffusers' own pipeline is the oracle."""
    settings = ("sampler.guidance=3", "sampler.steps=4", "inputs.negative_prompt=rain", "task=sample", "method=fp")
    status, output, errors = run(places, model, *settings, *overrides.split(), runs=tmp_path)
    assert status == 0, errors
    assert "1 prompt is longer" in errors
    drawn = load_file(result_folder(output) / "chunk_00000.safetensors")["images"]
    pipe = PIPELINES[model]()
    pipe.set_progress_bar_config(disable=True)
    noise = initial_noise("eval", 0, range(4), (4, 8, 8))
    asked = asked_of(model, guidance=3.0)
    if model == "flux":  # takes the noise as tokens, and embeds guidance instead of leading away from a prompt
        asked["latents"] = pipe._pack_latents(noise, 4, 4, 8, 8)
    else:
        asked |= {"latents": noise, "negative_prompt": ["rain"] * 4}
    expected = pipe(HELD_OUT, **asked).images
    difference = (drawn.permute(0, 2, 3, 1) - torch.from_numpy(expected * 255)).abs()
    assert difference.max() <= 1
    assert drawn.float().std() > 5


def test_prompts_are_read_once(places):
    """Jobs of other bits find what the encoders made, and no prompt is read that no sample has."""
    files = sorted(path.name for path in (places / "runs" / "embeddings").rglob("prompts_*.safetensors"))
    made = {path: path.stat().st_mtime_ns for path in (places / "runs" / "embeddings").rglob("*")}
    status, _, errors = run(places, "sd", "method=rtn", "bits=w4a8", "sampler.guidance=3")
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
    status, _, errors = run(places, "sd", override.format(few=tmp_path / "few.txt"))
    assert status == 2 and said in errors and errors.count("\n") == 1


BY_SCRIPT = {"sd": "q_diffusion", "sdxl": "rtn", "pixart": "rtn", "sd3": "rtn", "flux": "q_diffusion"}
"""Methods that scripts use; jobs have the others on the other networks."""


@pytest.mark.parametrize("model", PIPELINES)
def test_a_pipeline_is_quantized_saved_and_loaded_by_a_script(tmp_path, model):
    pipe, method = PIPELINES[model](), BY_SCRIPT[model]

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return torch.from_numpy(pipe(["a red fox", "snow"], generator=generator, **asked_of(model, 2.0)).images)

    before = drawn(pipe)
    sizes = [item for item in FEW if item.startswith("budget.")]
    settings = {"steps": 4, "guidance": 2.0, "store": tmp_path / "runs", "overrides": sizes}
    with pytest.raises(api.ConfigError, match="prompts"):
        api.quantize_(pipe, method, "w4a6", **settings)
    api.quantize_(pipe, method, "w4a6", prompts=["fog", "a\nlake", "sun"], **settings)
    quantized = drawn(pipe)
    assert 0 < (quantized - before).abs().max() < 0.3
    api.save(pipe, tmp_path / "saved")
    loaded = api.load(tmp_path / "saved")
    assert torch.equal(drawn(loaded), quantized)
    said = api.report(loaded)
    assert said == api.report(pipe) and len(said.quantized) > 10
    assert {"first or last layer", "embedding of time, label or text"} == {*said.full_precision.values()}
