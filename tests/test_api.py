"""A pipeline is quantized, saved and loaded in three lines, and computes what the benchmark measured."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import smallest_unet, text_unet, vq_autoencoder

from dmqbench.api import quantize_
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.models.folders import ModelError
from dmqbench.models.quantized import DESCRIPTION, load, save
from dmqbench.models.quantized import WEIGHTS as QUANTIZED
from dmqbench.quant.serving import ServingError
from dmqbench.store.artifacts import Store
from dmqbench.store.files import load_json, save_json, short_hash
from dmqbench.store.manifest import Entry
from dmqbench.tasks import calibrate, trajectories
from dmqbench.tasks.sample import frozen
from dmqbench.tasks.workshop import Workshop

STEPS = 4
WEIGHTS = f"unet/{QUANTIZED}"
ALLOWED = r"\(allowed: unet or transformer of DiTTransformer2DModel, .*, and a scheduler\)"
TINY = (
    "sampler.chunk=4",
    "budget.trajectories=4",
    "budget.validation=4",
    "budget.samples=8",
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


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def shared(store):
    """Quantized once with ranges shared by all steps; tests that change it take a copy."""
    return quantized(store)


@pytest.fixture(scope="module")
def saved(shared, tmp_path_factory) -> Path:
    """The folder of ``shared``; tests that damage it take a copy."""
    return save(shared, tmp_path_factory.mktemp("saved") / "pipeline")


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    return folder


# ---- what it computes


@pytest.mark.parametrize(
    ("method", "bits", "scope", "ranges", "override"),
    [
        ("rtn", "w4a6", "common", "step", "engine=int_reference"),
        ("rtn", "w4a6", "paper", "step", "method.paper_scope.attention=true"),
        ("q_diffusion", "w3a8", "paper", "shared", "engine=simulate"),
        ("efficient_dm", "w2a4", "common", "step", "engine=simulate"),
        ("rtn", "w4a32", "common", "shared", "engine=simulate"),
        ("rtn", "w8a8", "common", "shared", "bits.weight=32"),
    ],
)
def test_it_computes_what_the_benchmark_samples_from(tmp_path, method, bits, scope, ranges, override):
    names = (f"method={method}", f"bits={bits}", f"bits.scope={scope}", f"bits.ranges={ranges}", override)
    pipeline().save_pretrained(tmp_path / "model")
    local = (
        f"model.path={tmp_path / 'model'}",
        "model=local",
        f"sampler.steps={STEPS}",
        f"store.root={tmp_path / 'a'}",
    )
    job = make_job(compose([*local, *names, *TINY, "trainer=cpu"]))
    adapter = frozen(Workshop(job, Store(job.store_root)))
    x = torch.randn(3, *adapter.sample_shape, generator=torch.Generator().manual_seed(1))
    expected = adapter.denoise(x, 500, {}, torch.tensor([1, 1, 1]))

    pipe = quantized(tmp_path / "b", method=method, bits=bits, scope=scope, ranges=ranges, overrides=(*TINY, override))
    assert torch.equal(pipe.unet(x, 500).sample, expected)

    again = load(save(pipe, tmp_path / "saved"))
    assert torch.equal(again.unet(x, torch.tensor(500)).sample, expected)
    assert torch.equal(draw(again), draw(pipe))
    assert not torch.equal(draw(pipe), draw(pipeline()))


def test_a_fresh_process_imports_no_torch_before_the_api_and_loads_the_same_bits_without_the_run_store(
    shared, saved, tmp_path
):
    script = """
import sys, dmqbench
assert {"quantize_", "save", "load"} <= set(dir(dmqbench))
assert not hasattr(dmqbench, "quantise_")
assert "torch" not in sys.modules
import torch, dmqbench.api
for name in dmqbench.__all__:
    assert getattr(dmqbench, name) is getattr(dmqbench.api, name)
pipe = dmqbench.load(sys.argv[1])
generator = torch.Generator().manual_seed(3)
images = pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="pt").images
open(sys.argv[2], "wb").write(images.numpy().tobytes())
"""
    out = tmp_path / "images"
    command = [sys.executable, "-c", script, saved, out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == draw(shared).numpy().tobytes()
    assert list(tmp_path.iterdir()) == [out]


def never(*_):
    raise AssertionError("computed again")


def test_the_second_time_it_answers_from_the_store(store, shared, monkeypatch):
    monkeypatch.setattr(calibrate, "_run_stage", never)
    monkeypatch.setattr(trajectories, "_follow_all", never)
    assert torch.equal(draw(quantized(store)), draw(shared))
    with pytest.raises(AssertionError, match="computed again"):
        quantized(store, pipeline(seed=1))
    assert not list((store / ".work").glob(".tmp-*"))


def test_the_same_model_from_another_place_is_the_same(store, shared, tmp_path, monkeypatch):
    pipeline().save_pretrained(tmp_path / "elsewhere")
    monkeypatch.setattr(calibrate, "_run_stage", never)
    pipe = quantized(store, DDIMPipeline.from_pretrained(tmp_path / "elsewhere"))
    assert torch.equal(draw(pipe), draw(shared))


def test_calling_it_changes_nothing_and_any_mode_will_do(shared):
    expected = draw(shared)
    with torch.inference_mode():
        assert torch.equal(draw(shared), expected)
        moved = copy.deepcopy(shared).to("cpu")
    with torch.enable_grad():
        x = torch.ones(1, 1, 8, 8)
        assert not shared.unet(x, 10).sample.requires_grad
        assert torch.equal(moved.unet(x, 10).sample, shared.unet(x, 10).sample)
    shared.unet.train()
    assert torch.equal(draw(shared), expected)
    shared.unet.eval()


def test_a_copy_is_its_own(shared):
    expected, other = draw(shared), copy.deepcopy(shared)
    assert torch.equal(draw(other), expected)
    for name, buffer in other.unet.named_buffers():
        if name.endswith("codes"):
            buffer.zero_()
    other.to("cpu")
    other = copy.deepcopy(other)
    assert not torch.equal(draw(other), expected)
    assert torch.equal(draw(shared), expected)


def test_quantizing_leaves_random_numbers_and_settings_alone(tmp_path):
    before = torch.get_rng_state(), torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    with torch.inference_mode():
        pipe = quantized(tmp_path)
        save(pipe, tmp_path / "saved")
        load(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == before[1:]
    assert torch.is_grad_enabled()


def test_each_sample_has_the_step_of_its_own_timestep(store):
    pipe = quantized(store, DDIMPipeline(smallest_unet(), DDIMScheduler(clip_sample=False)), ranges="step")
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([4, 5, 10])
    whole = pipe.unet(x, torch.tensor([750, 0, 250]), class_labels=labels).sample
    parts = [pipe.unet(x[i : i + 1], t, class_labels=labels[i : i + 1]).sample for i, t in enumerate((750, 0, 250.0))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-6)
    doubled = pipe.unet(torch.cat([x, x]), 750, class_labels=torch.cat([labels, labels])).sample
    assert torch.equal(doubled[:3], doubled[3:])
    wrong = pipe.unet(x[:1], timestep=250, class_labels=labels[:1]).sample
    assert not torch.allclose(wrong, pipe.unet(x[:1], timestep=750, class_labels=labels[:1]).sample)
    with pytest.raises(ServingError, match=r"timestep 800 was not calibrated.*allowed: 750, 500, 250, 0"):
        pipe.unet(x, 800, class_labels=labels)
    assert torch.equal(pipe.unet(x, torch.tensor([750, 0, 250]), class_labels=labels).sample, whole)


def test_the_nearest_step_serves_any_number_of_steps_and_is_saved_with_the_network(store, tmp_path):
    pipe = quantized(store, ranges="group2", match="nearest")
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    outputs = {t: pipe.unet(x, t).sample for t in (750, 700, 600, 500)}
    ranges = {name: value for name, value in pipe.unet.state_dict().items() if name.endswith("row_of_call")}
    assert {tuple(rows.tolist()) for rows in ranges.values()} == {(0, 0, 1, 1)}
    refusing = quantized(store, ranges="group2")
    assert torch.equal(refusing.unet(x, 750).sample, outputs[750])
    with pytest.raises(ServingError, match=r"timestep 700 was not calibrated.*match='nearest'.*750, 500, 250, 0"):
        refusing.unet(x, 700)
    again = load(save(pipe, tmp_path / "nearest"))
    assert all(torch.equal(again.unet(x, t).sample, expected) for t, expected in outputs.items())
    assert torch.equal(draw(again, steps=7), draw(pipe, steps=7))


def test_timesteps_between_the_calibrated_ones_are_interpolated_before_and_after_saving(store, tmp_path):
    pipe, nearest = (quantized(store, ranges="step", match=match) for match in ("interpolate", "nearest"))
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    same = {t: torch.equal(pipe.unet(x, t).sample, nearest.unet(x, t).sample) for t in (900, 750, 600.5, 250, 100, 0)}
    assert same == {900: True, 750: True, 600.5: False, 250: True, 100: False, 0: True}
    tables = {name: len(value) for name, value in pipe.unet.state_dict().items() if name.endswith("quantizer.scale")}
    expected = draw(pipe, steps=7)
    assert tables == {
        name: len(value) for name, value in pipe.unet.state_dict().items() if name.endswith("quantizer.scale")
    }
    again = load(save(pipe, tmp_path / "interpolate"))
    assert torch.equal(draw(again, steps=7), expected)
    assert not torch.equal(draw(nearest, steps=7), expected)


def test_a_folder_from_before_match_refuses_other_timesteps(store, tmp_path):
    folder = save(quantized(store, ranges="step", match="nearest"), tmp_path / "saved")
    redescribe(folder, lambda facts: facts["quantization"].pop("match"))
    network = load(folder).unet
    with pytest.raises(ServingError, match="timestep 700 was not calibrated"):
        network(torch.zeros(1, 1, 8, 8), 700)


def test_shared_ranges_serve_any_number_of_steps(shared):
    assert draw(shared, steps=7).shape == (2, 1, 8, 8)
    assert not torch.equal(draw(shared, steps=7), draw(shared))


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": True, "clip_sample_range": 2.0}),
        (DDIMScheduler, {"steps_offset": 1, "set_alpha_to_one": False}),
        (DDPMScheduler, {}),
        (PNDMScheduler, {"skip_prk_steps": True}),
        (DPMSolverMultistepScheduler, {}),
    ],
)
def test_calibration_follows_the_scheduler_of_the_pipeline(store, scheduler, settings):
    pipe = pipeline()
    pipe.scheduler = scheduler(**settings)
    quantized(store, pipe)
    pipe.scheduler.set_timesteps(STEPS)
    described = pipe.unet.dmqbench
    assert list(described.timesteps) == pipe.scheduler.timesteps.tolist()
    if scheduler in (DDIMScheduler, DDPMScheduler):
        config = pipe.scheduler.config
        assert described.sampler["clip_sample"] == (config.clip_sample_range if config.clip_sample else None)
        assert described.sampler["final_alpha_one"] == config.get("set_alpha_to_one", True)


def test_a_latent_pipeline_keeps_its_decoder(tmp_path):
    network = smallest_unet(class_entries=None, in_channels=4, out_channels=4)
    pipe = quantized(tmp_path, LDMPipeline(vq_autoencoder(), network, DDIMScheduler(clip_sample=False)))
    assert torch.equal(latent(load(save(pipe, tmp_path / "saved"))), latent(pipe))


def latent(pipe):
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    return torch.tensor(pipe(num_inference_steps=STEPS, generator=generator, output_type="np").images)


class Labelled(DDIMPipeline):
    """A pipeline of the user's own."""


def test_a_pipeline_class_of_ones_own_is_given_to_load(shared, tmp_path):
    pipe = Labelled(copy.deepcopy(shared.unet), shared.scheduler)
    folder = save(pipe, tmp_path / "saved")
    with pytest.raises(ModelError, match=r"pipeline=Labelled"):
        load(folder)
    again = load(folder, pipeline=Labelled)
    assert isinstance(again, Labelled)
    assert torch.equal(draw(again), draw(shared))


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "q_difusion"}, r"method=q_difusion is not known; nearest: q_diffusion"),
        ({"method": "quest"}, r"method=quest is not built yet"),
        ({"method": "fp"}, r"quantizes nothing"),
        ({"bits": "w32a32"}, r"quantizes nothing"),
        ({"bits": "w4a7"}, r"bits=w4a7 is not known; nearest: w4a"),
        ({"budget": "quik"}, r"budget=quik is not known; nearest: quick"),
        ({"scope": "papier"}, r"bits.scope=papier is not known; nearest: paper"),
        ({"ranges": "steps"}, r"bits.ranges=steps is not known; nearest: step"),
        ({"sampler": "dim"}, r"sampler=dim is not known; nearest: ddim"),
        ({"steps": 0}, r"sampler.steps=0 is too small"),
        ({"steps": 2000}, r"sampler.steps=2000 is not possible"),
        ({"guidance": 2.0}, r"sampler.guidance=2.0 needs a model with classes"),
        ({"overrides": ["budget.sample=4"]}, r"budget.sample=4 is not a key; nearest: budget.samples"),
        ({"overrides": ["model=digits"]}, r"model.path=digits is the pipeline's own"),
        ({"sampler": "pndm", "ranges": "step"}, r"bits.ranges=step needs one network call per timestep"),
        ({"sampler": "pndm", "ranges": "group2"}, r"bits.ranges=group2 needs one network call per timestep"),
        ({"ranges": "group02"}, r"bits.ranges=group02 is not known; nearest: group2"),
        ({"match": "closest"}, r"calibration.match=closest is not known \(allowed: refuse, nearest, interpolate\)"),
    ],
)
def test_wrong_names_are_one_line_and_the_pipeline_is_untouched(tmp_path, options, message):
    pipe = pipeline()
    with pytest.raises(ConfigError, match=message) as refused:
        quantized(tmp_path, pipe, **options)
    assert "\n" not in str(refused.value)
    assert torch.equal(draw(pipe), draw(pipeline()))
    assert not list(tmp_path.rglob(".tmp-*"))


def without_unet():
    pipe = pipeline()
    pipe.unet = None
    return pipe


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (lambda: smallest_unet(class_entries=None), r"a UNet2DModel cannot be quantized: give a diffusers pipeline"),
        (without_unet, rf"DDIMPipeline: its unet is NoneType {ALLOWED}"),
        (
            lambda: DDIMPipeline(text_unet(), DDIMScheduler()),
            r"DDIMPipeline: it has no text_encoder",
        ),
        (lambda: pipeline().to(torch.float16), r"its unet is in float16; quantization computes in float32"),
        (lambda: DDIMPipeline(pipeline().unet, DDIMScheduler(trained_betas=[0.1, 0.2])), r"its scheduler cannot be"),
    ],
)
def test_what_cannot_be_quantized_is_one_line(tmp_path, pipe, message):
    with pytest.raises(ModelError, match=message) as refused:
        quantized(tmp_path, pipe())
    assert "\n" not in str(refused.value)


def test_schedulers_that_calibration_cannot_follow_are_refused_unless_a_sampler_is_named(store):
    pipe = DDPMPipeline(pipeline().unet, DDPMScheduler(variance_type="fixed_large"))
    with pytest.raises(ConfigError, match=r"DDPMScheduler.variance_type=fixed_large is not computed.*sampler=ddpm"):
        quantized(store, pipe)
    assert quantized(store, pipe, sampler="ddpm").unet.dmqbench.sampler["name"] == "ddpm"
    euler = pipeline()
    euler.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ConfigError, match=r"sampler=EulerDiscreteScheduler is no sampler of dmqbench"):
        quantized(store, euler)


def test_twice_is_refused(shared, store):
    with pytest.raises(ModelError, match="is quantized already"):
        quantized(store, shared)


def test_half_precision_gradients_and_foreign_saving_are_refused(shared):
    pipe = copy.deepcopy(shared)
    with pytest.raises(ServingError, match="has no gradients"):
        pipe.unet(torch.ones(1, 1, 8, 8, requires_grad=True), 10)
    with pytest.raises(ModelError, match=r"use dmqbench.api.save"):
        pipe.save_pretrained("never-written")
    assert not Path("never-written").exists()
    with pytest.raises(ServingError, match="computes in float32, and its input is float16"):
        draw(pipe.to(torch.float16))


# ---- what is saved


def test_codes_are_stored_and_no_weight_that_was_quantized(shared, saved):
    facts = load_json(saved / DESCRIPTION)
    layers = {layer["name"]: layer for layer in facts["quantization"]["plan"]["layers"]}
    full = dict(pipeline().unet.named_parameters())
    with safe_open(saved / WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, layer in layers.items():
        codes, weight = tensors[f"{name}.weight_quantizer.codes"], full[f"{name}.weight"]
        assert f"{name}.weight" not in tensors
        assert codes.dtype == torch.uint8
        assert len(codes) == -(-weight.numel() * layer["weight_bits"] // 8)
        assert tensors[f"{name}.weight_quantizer.bits"].tolist() == [layer["weight_bits"]] * len(weight)
    for name in facts["quantization"]["plan"]["full_precision"]:
        assert torch.equal(tensors[f"{name}.weight"], full[f"{name}.weight"])
    assert facts["bytes"]["full_precision"] == 4 * sum(parameter.numel() for parameter in full.values())
    assert facts["bytes"]["quantized"] == (saved / WEIGHTS).stat().st_size < facts["bytes"]["full_precision"]


def test_folders_from_when_a_code_took_a_byte_still_load(shared, damaged):
    """They held the state of the network as it is."""
    state = {name: tensor.contiguous() for name, tensor in shared.unet.state_dict().items()}
    assert state[CODES].ndim == 4
    packed = (damaged / WEIGHTS).stat().st_size
    save_file(state, damaged / WEIGHTS)
    assert packed < (damaged / WEIGHTS).stat().st_size
    redescribe(damaged, lambda facts: facts.update(version=1))
    again = load(damaged)
    loaded = again.unet.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert torch.equal(draw(again), draw(shared))


def test_a_folder_holds_safetensors_and_json_and_no_place_of_this_machine(saved, store):
    for path in saved.rglob("*"):
        if path.is_file():
            assert path.suffix in (".safetensors", ".json")
            if path.suffix == ".json":
                assert str(store) not in path.read_text() and "_name_or_path" not in path.read_text()


def test_an_existing_folder_is_replaced_only_if_asked_to_and_only_if_it_is_a_saved_pipeline(shared, tmp_path):
    (tmp_path / "empty").mkdir()
    folder = save(shared, tmp_path / "empty")
    (folder / "left").write_text("over")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(shared, folder)
    assert save(shared, folder, overwrite=True) == folder
    assert not (folder / "left").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="not a saved pipeline"):
        save(shared, tmp_path / "own", overwrite=True)
    with pytest.raises(ModelError, match="is not quantized"):
        save(pipeline(), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "own"]


def test_a_failing_save_leaves_what_was_there(shared, tmp_path, monkeypatch):
    folder = save(shared, tmp_path / "saved")
    before = (folder / DESCRIPTION).read_bytes()
    monkeypatch.setattr("dmqbench.models.quantized.environment", None)
    with pytest.raises(TypeError):
        save(shared, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (folder / DESCRIPTION).read_bytes() == before


# ---- what is not loaded


def redescribe(folder: Path, change) -> None:
    """Change the description as somebody would who knows of its digests."""
    facts = load_json(folder / DESCRIPTION)
    facts.pop("digest")
    change(facts)
    for name in facts["files"]:
        entry = Entry.of(folder / name)
        facts["files"][name] = {"sha256": entry.sha256, "bytes": entry.bytes}
    save_json(folder / DESCRIPTION, {**facts, "digest": short_hash(facts)})


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    redescribe(folder, lambda facts: None)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CODES = "mid_block.resnets.0.conv1.weight_quantizer.codes"
BITS = "mid_block.resnets.0.conv1.weight_quantizer.bits"
NORM = "conv_norm_out.weight"
DAMAGES = {
    "no description": (lambda f: (f / DESCRIPTION).unlink(), r"no dmqbench.json there"),
    "not JSON": (lambda f: (f / DESCRIPTION).write_text("{"), r"cannot be read as JSON"),
    "format": (lambda f: redescribe(f, lambda facts: facts.update(version=3)), r"format .* 3 is not known here"),
    "edited": (
        lambda f: (f / DESCRIPTION).write_text((f / DESCRIPTION).read_text().replace("750", "751")),
        r"was changed after it was written",
    ),
    "missing": (lambda f: (f / WEIGHTS).unlink(), r"quantized.safetensors is missing"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), r"has \d+ bytes instead of"),
    "flipped": (lambda f: flip_last_byte(f / WEIGHTS), r"does not have its recorded sha256"),
    "scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), r"scheduler_config.json is missing"),
    "pickle": (lambda f: (f / "unet" / "diffusion_pytorch_model.bin").write_bytes(b""), r"is a pickle, which is never"),
    "lacking": (lambda f: rewrite(f, lambda t: t.pop(NORM)), rf"lacks {NORM}"),
    "no codes": (lambda f: rewrite(f, lambda t: t.pop(CODES)), rf"lacks {CODES}"),
    "shape": (lambda f: rewrite(f, lambda t: t.update({NORM: t[NORM][:-1].clone()})), rf"{NORM} has shape \[7\]"),
    "codes' length": (
        lambda f: rewrite(f, lambda t: t.update({CODES: t[CODES][:-1].clone()})),
        rf"holds {CODES} that cannot be read: packed codes are uint8 \[\d+\], .* make uint8",
    ),
    "no bits": (lambda f: rewrite(f, lambda t: t.pop(BITS)), rf"lacks {BITS}"),
    "other bits": (lambda f: rewrite(f, lambda t: t[BITS].__setitem__(0, 5)), rf"{BITS} of other rows or bit-widths"),
    "other layers": (
        lambda f: redescribe(f, lambda facts: facts["quantization"]["plan"]["layers"][0].update(name="none")),
        r"has layer none, which this model lacks",
    ),
    "old version": (
        lambda f: redescribe(f, lambda facts: facts.update(version=1)),
        r"quantizer.bits, which this model",
    ),
    "surplus": (lambda f: rewrite(f, lambda t: t.update(other=t[NORM].clone())), r"holds other, which this model"),
    "engine": (lambda f: redescribe(f, lambda facts: facts["quantization"].update(engine="x")), r"cannot be loaded"),
    "class": (
        lambda f: (
            (f / "model_index.json").write_text(json.dumps({"_class_name": "os"})),
            redescribe(f, lambda facts: None),
        ),
        r"its pipeline os is not diffusers' own",
    ),
    "code": (
        lambda f: (
            (f / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline", "unet": ["mine", "Net"]})),
            redescribe(f, lambda facts: None),
        ),
        r"unet is of mine \(allowed: diffusers, transformers\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(damaged, damage):
    change, message = DAMAGES[damage]
    change(damaged)
    with pytest.raises(ModelError, match=message) as refused:
        load(damaged)
    assert "\n" not in str(refused.value)


def test_no_folder_and_no_such_device(saved, tmp_path):
    with pytest.raises(ModelError, match=r"no dmqbench.json there"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(saved, device="cuda:77")


@pytest.mark.gpu
def test_it_moves_between_devices(shared, saved):
    pipe = copy.deepcopy(shared)
    x = torch.randn(2, 1, 8, 8)
    expected = pipe.unet(x, 500).sample
    on_gpu = pipe.to("cuda").unet(x.cuda(), 500).sample
    torch.testing.assert_close(on_gpu.cpu(), expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(load(saved, device="cuda").unet(x.cuda(), 500).sample, on_gpu)
    assert torch.equal(pipe.to("cpu").unet(x, 500).sample, expected)


def test_the_description_says_where_it_is_from(shared, store):
    described = shared.unet.dmqbench
    assert (described.method, described.bits["weight"], described.bits["ranges"]) == ("rtn", 4, "shared")
    for id in described.ids["stages"].values():
        assert Store(store).verified("quantized", id) is not None
    assert replace(described, seed=1) != described
