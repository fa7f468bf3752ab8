"""Networks in bfloat16, everything around them in float32: the command line and a script."""

import json

import pytest
import torch
from e2e.commands import FEW, dmqbench, result_folder
from e2e.test_matrix import BUDGET
from safetensors.torch import load_file
from torch.utils._pytree import tree_map
from twins import SAMPLED, TWINS, asked_of, save_twin

from dmqbench import api
from dmqbench.data.noise import initial_noise
from dmqbench.store.files import load_json

NARROW = torch.bfloat16
SIZES = (*FEW, *BUDGET, "sampler.steps=4", "sampler.chunk=4", "metrics.samples=4", "metrics.pairs=4", "model=local")
PROMPTS = ["a red fox", "snow", "two foxes", "fog"]
USUAL, BFLOAT16 = "model.dtype=float32", "model.dtype=bfloat16"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("precision")
    for name in ("unet", "sd", "flux"):
        save_twin(name, root / name)
    for stream in ("eval", "cal"):
        (root / f"{stream}.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    (root / "cal.txt").write_text("rain\na lake\nsun\nmist\n")
    return root


def run(places, model, *overrides):
    words = [f"model.path={places / model}", *SAMPLED.get(model, "").split()]
    if model != "unet":
        words += [f"inputs.prompts={places / 'eval.txt'}", f"inputs.calibration_prompts={places / 'cal.txt'}"]
    status, output, errors = dmqbench(places / "runs", *SIZES, *words, *overrides)
    assert status == 0, errors
    return result_folder(output)


def drawn(places, model, *overrides):
    folder = run(places, model, "task=sample", "method=fp", "sampler.guidance=3", *overrides)
    return load_file(folder / "chunk_00000.safetensors")["images"].permute(0, 2, 3, 1).float()


def cast_around_(network):
    """Bring a network alone to bfloat16, in a pipeline that computes in float32."""

    def cast(value):
        return value.to(NARROW) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def before(_, args, kwargs):
        timestep = {"timestep": kwargs["timestep"]} if "timestep" in kwargs else {}
        return tree_map(cast, args[:1]) + args[1:], tree_map(cast, kwargs) | timestep

    network.to(NARROW)
    network.register_forward_pre_hook(before, with_kwargs=True)
    network.register_forward_hook(lambda _, __, output: (output[0].float(),))


def of_pipeline(model, dtype=torch.float32, around=False):
    pipe = TWINS[model]().to(dtype)
    pipe.set_progress_bar_config(disable=True)
    if around:
        cast_around_(pipe.transformer if model == "flux" else pipe.unet)
    asked, noise = asked_of(model, steps=4, guidance=3.0), initial_noise("eval", 0, range(4), (4, 8, 8)).to(dtype)
    asked["latents"] = pipe._pack_latents(noise, 4, 4, 8, 8) if model == "flux" else noise
    return torch.from_numpy(pipe(PROMPTS, **asked).images * 255)


def distance(one, other):
    return float((one - other).square().mean().sqrt())


@pytest.mark.parametrize("model", ["sd", "flux"])
def test_samples_are_those_of_diffusers(places, model):
    """Of its pipeline with the network alone in bfloat16; and as near to that wholly in bfloat16 as this to float32."""
    own, exact = drawn(places, model, BFLOAT16), drawn(places, model, USUAL)
    wholly, whole = of_pipeline(model, NARROW), of_pipeline(model)
    floor = distance(wholly, whole)
    rounding = 0.31  # of images to whole levels: a twelfth, of squares
    assert distance(exact, whole) < rounding and distance(own, of_pipeline(model, around=True)) < rounding < floor
    assert rounding < distance(own, exact) < 1.5 * floor
    assert distance(own, wholly) < 1.5 * floor


@pytest.mark.parametrize(
    ("model", "method", "bits"),
    [
        ("sd", "rtn", "w8a8"),
        ("unet", "dmq", "w4a6"),
        ("unet", "accuquant", "w3a6"),
        ("unet", "efficient_dm", "w4a4"),
        ("unet", "mpq_dm", "w3a6"),
    ],
)
def test_a_method_calibrates_in_float32_what_computes_in_bfloat16(places, model, method, bits):
    job = (f"method={method}", f"bits={bits}", "metrics.names=[psnr]")
    narrow, usual = (json.loads((run(places, model, *job, dtype) / "result.json").read_text()) for dtype in DTYPES)
    assert narrow["config"]["model"]["dtype"] == "bfloat16" and "dtype" not in usual["config"]["model"]
    assert abs(narrow["metrics"]["psnr"]["value"] - usual["metrics"]["psnr"]["value"]) < 3
    for state in (places / "runs" / "quantized").glob("*/state.safetensors"):
        tensors = load_file(state)
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} <= {torch.float32}


DTYPES = (BFLOAT16, USUAL)


def test_a_pipeline_in_bfloat16_is_quantized_saved_and_loaded(tmp_path):
    pipe = TWINS["dit"]().to(NARROW)
    pipe.set_progress_bar_config(disable=True)

    def images(pipe):
        asked = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
        return torch.from_numpy(pipe(class_labels=[1, 2], **asked).images)

    full, parameters = images(pipe), pipe.transformer.num_parameters()
    asked = {"steps": 2, "guidance": 4.0, "ranges": "step", "store": tmp_path / "runs"}
    with pytest.raises(api.ConfigError, match=r"model\.dtype=float32 is that of the network itself"):
        api.quantize_(pipe, "rtn", "w8a8", overrides=[*BUDGET, USUAL], **asked)
    api.quantize_(pipe, "rtn", "w8a8", overrides=BUDGET, **asked)
    quantized = images(pipe)
    assert 0 < (quantized - full).abs().max() < 0.1
    api.save(pipe, tmp_path / "saved")
    facts = load_json(tmp_path / "saved" / "dmqbench.json")
    assert facts["parts"] == {"vae": "bfloat16"} and facts["bytes"]["full_precision"] == 2 * parameters
    loaded = api.load(tmp_path / "saved")
    assert torch.equal(images(loaded), quantized)
    assert torch.equal(images(loaded.to("cpu", NARROW)), quantized)
    assert "bfloat16" in str(api.report(loaded))
    with pytest.raises(api.ModelError, match=r"its transformer is in float16 \(allowed: float32, bfloat16\)"):
        api.quantize_(TWINS["dit"]().to(torch.float16), "rtn", "w8a8", **asked)
