"""A pipeline is quantized, saved and loaded in three lines, and computes what the benchmark measured."""

import copy
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
from served import STEPS, TINY, draw, pipeline, quantized
from tiny import smallest_unet, text_unet, vq_autoencoder

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.models.folders import ModelError
from dmqbench.models.quantized import load, save
from dmqbench.quant.serving import ServingError
from dmqbench.store.artifacts import Store
from dmqbench.tasks import calibrate, trajectories
from dmqbench.tasks.sample import frozen
from dmqbench.tasks.workshop import Workshop

ALLOWED = r"\(allowed: unet or transformer of DiTTransformer2DModel, .*, and a scheduler\)"


# ---- what it computes


@pytest.mark.parametrize(
    ("method", "bits", "scope", "ranges", "override"),
    [
        ("rtn", "w4a6", "common", "step", "engine=int_reference"),
        ("rtn", "w4a6", "paper", "step", "method.paper_scope.attention=true"),
        ("q_diffusion", "w3a8", "paper", "shared", "engine=simulate"),
        ("dmq", "w4a6", "common", "step", "method.equivalent_scaling.absorb=true"),
        ("rtn", "w4a6", "common", "step", "model.planted.dose=8"),
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
    assert not list((store / ".work").glob(".tmp*"))


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
    assert not list(tmp_path.rglob(".tmp*"))


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
        (lambda: pipeline().to(torch.float16), r"its unet is in float16"),
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
