"""What families have of their own, beside what all of them go through in test_matrix.py."""

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file
from tiny import CLASSES, autoencoder, dit, save_pipeline, unet, vq_autoencoder
from twins import PIPELINES, diffusion_transformer

from dmqbench import api
from dmqbench.data.noise import draw_labels
from dmqbench.models.exchange import network_name

SIZES = (*FEW, "sampler.chunk=4", "metrics.samples=4", "metrics.pairs=4", "metrics.names=[psnr,mse]", "model=local")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run store, and beside it the folders of the models."""
    root = tmp_path_factory.mktemp("families")
    save_pipeline(root / "dit", dit(), autoencoder())
    save_pipeline(root / "vq", unet(class_entries=None, in_channels=4, out_channels=4), vq_autoencoder())
    return root


def test_labels_of_samples_are_balanced_or_drawn(places):
    drawn = []
    for labels in ("balanced", "random"):
        arguments = (*SIZES, f"model.path={places / 'dit'}", f"inputs.labels={labels}", "task=sample", "method=fp")
        status, output, errors = dmqbench(places / "runs", *arguments)
        assert status == 0, errors
        drawn.append(load_file(result_folder(output) / "chunk_00000.safetensors")["images"])
    same = [torch.equal(*images) for images in zip(*drawn, strict=True)]
    labels = draw_labels("eval", 0, range(4), CLASSES, balanced=False)
    assert same == (labels == torch.arange(4)).tolist() and not all(same)


def test_labels_of_a_model_without_classes_are_refused(places):
    arguments = (*SIZES, f"model.path={places / 'vq'}", "inputs.labels=random")
    status, _, errors = dmqbench(places / "runs", *arguments)
    assert status == 2 and "inputs.labels=random is not possible: local knows no classes" in errors


def test_a_model_without_text_takes_no_prompts(places):
    arguments = (*SIZES, f"model.path={places / 'dit'}", "inputs.prompts=prompts.txt")
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


@pytest.mark.parametrize("twin", ["dit", "sd"])
def test_absorbed_scales_are_divided_by_no_more_in_a_saved_pipeline(tmp_path, twin):
    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        asked = {"class_labels": [1, 2]} if twin == "dit" else {"prompt": ["a cat"] * 2, "height": 16, "width": 16}
        pictures = pipe(**asked, num_inference_steps=4, guidance_scale=2.0, generator=generator, output_type="np")
        return torch.from_numpy(pictures.images)

    pipe = PIPELINES[twin]() if twin in PIPELINES else diffusion_transformer()
    before = drawn(pipe)
    overrides = ["method.equivalent_scaling.absorb=true", *(item for item in FEW if item.startswith("budget."))]
    prompts = {} if twin == "dit" else {"prompts": ["a cat", "a dog"]}
    api.quantize_(pipe, "dmq", "w8a8", steps=4, guidance=2.0, store=tmp_path, overrides=overrides, **prompts)
    scaled = [name for name in getattr(pipe, network_name(pipe)).state_dict() if name.endswith("_scale")]
    assert scaled and not any("attn1.to_q" in name for name in scaled)
    pictures = drawn(pipe)
    assert 0 < (pictures - before).abs().max() < 0.2
    assert torch.equal(drawn(api.load(api.save(pipe, tmp_path / "saved"))), pictures)


def test_a_transformer_with_ranges_of_tokens_is_quantized_saved_and_loaded_by_a_script(tmp_path):
    pipe = DiTPipeline(dit(classes=1000), autoencoder(), DDIMScheduler(clip_sample=False))

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": generator, "output_type": "np"}
        return torch.from_numpy(pipe(class_labels=[1, 2], **settings).images)

    before = drawn(pipe)
    overrides = ["bits.granularity=token", *(item for item in FEW if item.startswith("budget."))]
    api.quantize_(pipe, "q_diffusion", "w4a6", steps=4, guidance=2.0, store=tmp_path / "runs", overrides=overrides)
    quantized = drawn(pipe)
    assert 0 < (quantized - before).abs().max() < 0.2
    api.save(pipe, tmp_path / "saved")
    assert (tmp_path / "saved" / "transformer" / "quantized.safetensors").is_file()
    assert torch.equal(drawn(api.load(tmp_path / "saved")), quantized)
