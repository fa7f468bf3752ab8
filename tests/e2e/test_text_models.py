"""Models of text of every family: prompts, and samples as their pipelines draw them."""

import json
from functools import partial

import pytest
import torch
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file
from twins import PIPELINES, SAMPLED, asked_of, pixart_alpha, stable_diffusion_3

from dmqbench import api
from dmqbench.data.noise import initial_noise

SIZES = (*FEW, "sampler.chunk=4", "metrics.samples=4", "metrics.pairs=4", "metrics.names=[psnr,mse]", "model=local")

WITHOUT_T5 = "sd3_without_t5"
MODELS = {**PIPELINES, "pixart_alpha": pixart_alpha, WITHOUT_T5: partial(stable_diffusion_3, t5=False)}
DRAWN = {**SAMPLED, "pixart_alpha": SAMPLED["pixart"], WITHOUT_T5: SAMPLED["sd3"]}

LONG = "a " * 500
PROMPTS = ["a red fox", "two foxes 🦊", "", "A red  fox", "snow", LONG, "rain", "fog", "a lake", "sun"]
"""One twice, one empty, one with a sign that no tokenizer has, one of 500 words."""
HELD_OUT = ["a red fox", "", LONG, "fog"]
"""The first of the evaluation: every other one of those that differ."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run store, and beside it the folders of the models and their prompts."""
    root = tmp_path_factory.mktemp("families")
    for name, build in MODELS.items():
        build().save_pretrained(root / name)
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return root


def run(places, model, *overrides, runs=None):
    prompts = f"inputs.prompts={places / 'prompts.txt'}"
    return dmqbench(runs or places / "runs", *SIZES, f"model.path={places / model}", prompts, *overrides)


@pytest.mark.parametrize("model", DRAWN)
@pytest.mark.parametrize("size", [(16, 16), (24, 16)], ids=["its size", "another size"])
def test_samples_are_those_of_the_pipeline(places, tmp_path, model, size):
    """Under guidance, with a negative prompt, from the same noise; diffusers' own pipeline is the oracle."""
    height, width = size
    settings = ("sampler.guidance=3", "sampler.steps=4", "inputs.negative_prompt=rain", "task=sample", "method=fp")
    settings += (f"model.size=[{height},{width}]", *DRAWN[model].split())
    status, output, errors = run(places, model, *settings, runs=tmp_path)
    assert status == 0, errors
    assert "1 prompt is longer" in errors
    drawn = load_file(result_folder(output) / "chunk_00000.safetensors")["images"]
    pipe = MODELS[model]()
    pipe.set_progress_bar_config(disable=True)
    noise = initial_noise("eval", 0, range(4), (4, height // 2, width // 2))
    asked = asked_of(model, steps=4, guidance=3.0) | {"height": height, "width": width}
    if model == "flux":  # takes the noise as tokens, and embeds guidance instead of leading away from a prompt
        asked["latents"] = pipe._pack_latents(noise, 4, *noise.shape[1:])
    else:
        asked |= {"latents": noise, "negative_prompt": ["rain"] * 4}
    expected = pipe(HELD_OUT, **asked).images
    assert drawn.shape == (4, 3, height, width)
    difference = (drawn.permute(0, 2, 3, 1) - torch.from_numpy(expected * 255)).abs()
    assert difference.max() <= 1
    assert drawn.float().std() > 5


def test_a_script_quantizes_a_pipeline_without_its_third_encoder(tmp_path):
    pipe = MODELS[WITHOUT_T5]()

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return torch.from_numpy(pipe("fog", generator=generator, **asked_of("sd3", steps=2, guidance=3.0)).images)

    before, few = drawn(pipe), [item for item in FEW if item.startswith("budget.")]
    asked = {"steps": 2, "prompts": ["rain", "fog"], "store": tmp_path / "runs", "overrides": few}
    api.quantize_(pipe, "rtn", "w4a6", **asked)
    quantized = drawn(pipe)
    assert 0 < (quantized - before).abs().max() < 0.5
    assert torch.equal(drawn(api.load(api.save(pipe, tmp_path / "saved"))), quantized)


@pytest.mark.parametrize("size", [(16, 16), (32, 16)])
def test_cost_is_counted_at_the_size(places, size):
    """The products of attention in the middle, of width 8, where both sides of the latents are halved."""
    status, output, errors = run(places, "sd", "task=cost", "method=rtn", f"model.size=[{size[0]},{size[1]}]")
    assert status == 0, errors
    tokens, words = (size[0] // 4) * (size[1] // 4), 77
    assert json.loads(output.splitlines()[-1])["attention_macs"] == 2 * 8 * tokens * (tokens + words)


def sizes_told(store, asked):
    """The conditions of SDXL that are sizes, as the only embeddings of a store of ``quantize_`` have them."""
    pipe = MODELS["sdxl"]()
    few = [item for item in FEW if item.startswith("budget.")]
    api.quantize_(pipe, "rtn", "w4a6", steps=2, prompts=["rain", "fog"], store=store, overrides=few, **asked)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("fog", **asked_of("sdxl", steps=2, guidance=3.0) | {"height": 8, "width": 32}).images
    assert drawn.shape == (1, 8, 32, 3)
    files = [load_file(path) for path in (store / "embeddings").rglob("*.safetensors")]
    return {tuple(row) for file in files for row in file["time_ids"].reshape(-1, 6).tolist()}


def test_a_script_calibrates_at_a_size_and_calls_at_any(tmp_path):
    """Sizes are told in pixels, though no decoder is exported."""
    assert sizes_told(tmp_path / "own", {}) == {(16, 16, 0, 0, 16, 16)}
    assert sizes_told(tmp_path / "other", {"size": (24, 16)}) == {(24, 16, 0, 0, 24, 16)}
    with pytest.raises(api.ConfigError, match=r"model\.size=\[25,16\] must be multiples of 2 .* nearest: \[26,16\]"):
        sizes_told(tmp_path / "none", {"size": (25, 16)})


def test_prompts_are_read_once(places):
    """Jobs of other bits find what the encoders made, and no prompt is read that no sample has."""
    status, _, errors = run(places, "sd", "method=rtn", "bits=w8a8", "sampler.guidance=3")
    assert status == 0, errors
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
