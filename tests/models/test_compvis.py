"""Original checkpoints, converted: each network computes what the original's, restated in original_ldm, does."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DModel
from original_ldm import Autoencoder, UNet
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.config.notices import notices
from dmqbench.models import folders
from dmqbench.models.adapter import load_adapter
from dmqbench.models.attention import attention_modules, set_explicit_attention_, set_heads_
from dmqbench.models.compvis import settings as settings_module
from dmqbench.models.compvis.__main__ import main
from dmqbench.models.compvis.autoencoder import autoencoder_config, converted_autoencoder
from dmqbench.models.compvis.settings import settings_of_architecture, settings_of_yaml
from dmqbench.models.compvis.unet import converted_unet
from dmqbench.models.folders import ModelError, ModelSource, read_config
from dmqbench.models.likeness import require_same_outputs
from dmqbench.models.sources import load_decoder_network, load_model
from dmqbench.models.weight_fit import require_shapes_fit
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext

SHARED = {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}
PIXELS = SHARED | {"in_channels": 3, "out_channels": 3, "image_size": 8}
TOKENS = PIXELS | {"use_spatial_transformer": True, "context_dim": 12, "legacy": False}
UNETS = {
    "LDM-4": PIXELS | {"num_head_channels": 16},
    "LDM-4, deeper": PIXELS | {"num_head_channels": 32, "channel_mult": [1, 2, 3], "num_res_blocks": 2},
    "LDM-8": PIXELS
    | {"num_heads": 4, "channel_mult": [1, 2, 2], "attention_resolutions": [1, 2], "num_res_blocks": 2}
    | {"use_scale_shift_norm": True, "resblock_updown": True},
    "resampling blocks without attention": PIXELS | {"num_heads": 2, "resblock_updown": True},
    "queries of all heads together": PIXELS | {"num_head_channels": 16, "use_new_attention_order": True},
    "class-conditional LDM-4": TOKENS | {"num_heads": 1},
    "Stable Diffusion 1": TOKENS | {"num_heads": 4, "attention_resolutions": [1], "transformer_depth": 2},
    "Stable Diffusion 2": TOKENS | {"num_head_channels": 16, "use_linear_in_transformer": True},
}
AUTOENCODERS = {
    "VQ": Autoencoder(codes=16),
    "VQ with attention at a level": Autoencoder(attends=(1,), layers=2, widths=(32, 64, 64), codes=16),
    "KL": Autoencoder(latent=4),
    "KL with attention at a level": Autoencoder(attends=(0,)),
}


def randomized(network: nn.Module) -> nn.Module:
    """Norms too, which would otherwise hide an order of channels; convolutions so small that an epsilon counts."""
    generator = torch.Generator().manual_seed(1)
    for name, module in network.named_modules():
        size = 0.05 if isinstance(module, (nn.Conv1d, nn.Conv2d)) and "qkv" not in name else 1.0
        for parameter in module.parameters(recurse=False):
            fan = parameter[0].numel() if parameter.ndim > 1 else 9
            one = isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and parameter is module.weight
            parameter.data.normal_(float(one), size / fan**0.5, generator=generator)
    return network.eval().requires_grad_(False)


def state_of(unet=None, autoencoder=None, **others) -> dict[str, torch.Tensor]:
    """What the original saves of a diffusion of latents."""
    parts = {"model.diffusion_model.": unet, "first_stage_model.": autoencoder}
    state = {
        prefix + name: value for prefix, part in parts.items() if part for name, value in part.state_dict().items()
    }
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    return {**state, "betas": betas.float(), **others}


def written(folder, state, unet=None, **settings):
    """A checkpoint as Lightning saves it, and the YAML beside it; returns the checkpoint's path."""
    folder.mkdir(exist_ok=True)
    model = {"image_size": 8, "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, **settings}
    parameters = {**model, "unet_config": {"target": "ldm.UNetModel", "params": unet}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"target": "ldm.DDPM", "params": parameters}}))
    torch.save({"epoch": 3, "state_dict": state}, folder / "model.ckpt")
    return folder / "model.ckpt"


def converted(tmp_path, state, *arguments, unet=None, **settings):
    """The diffusers folder of a checkpoint."""
    checkpoint = written(tmp_path / "original", state, unet, **settings)
    assert main([str(checkpoint), str(tmp_path / "folder"), *arguments]) == 0
    return tmp_path / "folder"


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loaded(folder, **settings):
    return load_model(ModelSource("local", str(folder), **settings)).network


def assert_same(found, expected, tolerance=1e-9):
    assert expected.dtype == torch.float64
    assert expected.abs().max() > 0.01
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("settings", UNETS.values(), ids=UNETS)
def test_a_unet_predicts_what_the_original_does(tmp_path, settings):
    original = randomized(UNet(**settings))
    network = loaded(converted(tmp_path, state_of(original), unet=settings)).double()
    x, context, t = random(2, 3, 8, 8), random(2, 5, 12), torch.tensor([7, 640])
    tokens = {"encoder_hidden_states": context} if "context_dim" in settings else {}
    with torch.no_grad():
        assert_same(network(x, t, **tokens)[0], original.double()(x, t, context), 1e-5)  # of sines in float32


@pytest.mark.parametrize("original", AUTOENCODERS.values(), ids=AUTOENCODERS)
def test_an_autoencoder_encodes_and_decodes_as_the_original_does(tmp_path, original):
    randomized(original)
    unet = UNETS["LDM-4"]
    folder = converted(tmp_path, state_of(UNet(**unet), original), unet=unet, scale_factor=0.25)
    network = load_decoder_network(folder).double()
    assert network.config.scaling_factor == 0.25
    images = random(2, 3, 32, 32)
    with torch.no_grad():
        latents, encoded = original.double().encode(images), network.encode(images, return_dict=False)[0]
        assert_same(encoded if isinstance(encoded, torch.Tensor) else encoded.parameters, latents)
        latents = latents[:, : network.config.latent_channels]
        assert_same(network.decode(latents, return_dict=False)[0], original.decode(latents))


LDM4, CLASSES = UNETS["LDM-4"], UNETS["class-conditional LDM-4"]


def test_classes_are_rows_of_the_original_s_table_and_the_schedule_that_of_its_sampler(tmp_path):
    original, table = UNet(**CLASSES), torch.randn(11, 12)
    state = state_of(original, Autoencoder(codes=16), **{"cond_stage_model.embedding.weight": table})
    folder = converted(tmp_path, state, unet=CLASSES)
    adapter = load_adapter(ModelSource("local", str(folder), classes=10))
    cond = adapter.conditioner.conditions("eval", 0, [3])
    assert torch.equal(cond["encoder_hidden_states"], table[3].expand(1, 1, 12))
    assert adapter.decoder.scaling_factor == 1.0
    assert torch.allclose(adapter.schedule.alphas_cumprod().float(), (1 - state["betas"]).cumprod(0), rtol=1e-5)
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.0015, 0.0195)
    assert (scheduler["clip_sample"], scheduler["set_alpha_to_one"], scheduler["steps_offset"]) == (False, False, 1)


def test_the_text_encoder_of_stable_diffusion_is_transformers_own(tmp_path):
    settings = UNETS["Stable Diffusion 1"]
    sizes = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = CLIPTextConfig(**sizes, num_attention_heads=1, max_position_embeddings=9, eos_token_id=2, bos_token_id=0)
    encoder = randomized(CLIPTextModel(config))
    names = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    names["embeddings.position_ids"] = torch.arange(9)[None]
    text = {f"cond_stage_model.transformer.text_model.{name}": value for name, value in names.items()}
    folder = converted(tmp_path, state_of(UNet(**settings), Autoencoder(latent=4), **text), unet=settings)
    found, loading = CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(tokens).last_hidden_state, encoder(tokens).last_hidden_state)


def test_averaged_weights_are_taken_where_there_are_any(tmp_path, capsys):
    original, average = UNet(**LDM4), randomized(UNet(**LDM4))
    averages = {
        f"model_ema.{f'diffusion_model.{name}'.replace('.', '')}": value for name, value in average.state_dict().items()
    }
    averages["model_ema.decay"] = torch.tensor(0.9999)
    folder = converted(tmp_path, state_of(original) | averages, unet=LDM4)
    assert "averaged over training (EMA)" in capsys.readouterr().out
    assert torch.equal(loaded(folder).conv_in.weight, average.input_blocks[0][0].weight)
    del averages["model_ema.diffusion_modelout2bias"]
    checkpoint = written(tmp_path / "partly", state_of(original) | averages, LDM4)
    assert "model_ema.diffusion_modelout2bias is not among them" in refusal(capsys, checkpoint, tmp_path / "other")


def test_a_network_of_a_known_name_needs_no_yaml_and_runs_under_it(tmp_path, monkeypatch):
    table = {"cond_stage_model.embedding.weight": torch.randn(11, 12)}
    state = state_of(randomized(UNet(**CLASSES)), Autoencoder(codes=16), **table)
    first = converted(tmp_path, state, unet=CLASSES)
    (tmp_path / "known" / "ldm4_imagenet").mkdir(parents=True)
    config = read_config(first / "unet" / "config.json") | {"_origin": "of CompVis", "_class_entries": 11}
    (tmp_path / "known" / "ldm4_imagenet" / "config.json").write_text(json.dumps(config))
    for module in (settings_module, folders):
        monkeypatch.setattr(module, "ARCHITECTURES", tmp_path / "known")
    (tmp_path / "original" / "config.yaml").unlink()
    save_file(state, tmp_path / "model.safetensors")
    for checkpoint in (tmp_path / "original" / "model.ckpt", tmp_path / "model.safetensors"):
        second = tmp_path / checkpoint.suffix
        assert main([str(checkpoint), str(second), "--model=ldm4_imagenet"]) == 0
        for file in sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file()):
            assert (first / file).read_bytes() == (second / file).read_bytes(), file
    sizes = ("model.sample_shape=[3,8,8]", "model.classes=10")
    job = make_job(compose(["model=ldm4_imagenet", *sizes, f"model.path={first}", "method=rtn", "bits=w8a8"]))
    assert (job.model.checkpoint.kind, job.model.classes, job.sampler.guidance) == ("local", 10, 3.0)
    [said] = notices([job])
    assert said.startswith("ldm4_imagenet: its DDIMScheduler has other settings than this job: sampler.steps_offset=1")


def test_heads_that_diffusers_does_not_know_are_those_of_every_attention(tmp_path):
    settings = UNETS["LDM-8"]
    folder = converted(tmp_path, state_of(randomized(UNet(**settings))), unet=settings)
    adapter, network = load_adapter(ModelSource("local", str(folder))), UNet2DModel.from_pretrained(folder / "unet")
    with pytest.raises(ModelError, match="computes something else"):
        require_same_outputs(network, adapter, "unet")
    set_heads_(network)
    require_same_outputs(network, adapter, "unet")
    quantizers = {name: AttentionQuantizers(StepContext(), 256) for name in attention_modules(network)}
    set_explicit_attention_(network, quantizers)
    require_same_outputs(network, adapter, "unet")


@pytest.mark.parametrize("name", ["ldm4_bedroom", "ldm4_imagenet", "ldm8_church", "sd14"])
def test_a_published_yaml_is_of_the_known_network_and_names_and_shapes_fit_at_full_size(tmp_path, name):
    """The values are those of the YAML files that were published with the checkpoints."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"model": {"params": PUBLISHED[name]}}))
    found = settings_of_yaml(path).network
    assert settings_of_architecture(name).network.items() <= found.items()
    with torch.device("meta"):
        tensors = UNet(**PUBLISHED[name]["unet_config"]["params"]).state_dict()
    require_shapes_fit(path, found, shapes(converted_unet(tensors, found)))


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_the_autoencoder_of_stable_diffusion_fits_at_full_size():
    with torch.device("meta"):
        tensors = Autoencoder(widths=(128, 256, 512, 512), layers=2, latent=4).state_dict()
    config = autoencoder_config(tensors, sample_size=64, scaling_factor=0.18215)
    require_shapes_fit(Path("vae"), config, shapes(converted_autoencoder(tensors, config)))
    assert config["sample_size"] == 512
    assert sum(tensor.numel() for tensor in tensors.values()) == 83_653_863  # as published


PUBLISHED = {
    "ldm4_bedroom": {
        "image_size": 64,
        "unet_config": {
            "params": {
                **{"image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 224},
                **{"attention_resolutions": [8, 4, 2], "num_res_blocks": 2, "channel_mult": [1, 2, 3, 4]},
                "num_head_channels": 32,
            }
        },
    },
    "ldm4_imagenet": {
        "image_size": 64,
        "unet_config": {
            "params": {
                **{"image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 192},
                **{"attention_resolutions": [8, 4, 2], "num_res_blocks": 2, "channel_mult": [1, 2, 3, 5]},
                **{"num_heads": 1, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 512},
            }
        },
    },
    "ldm8_church": {
        "image_size": 32,
        "scale_by_std": True,
        "unet_config": {
            "params": {
                **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 192},
                **{"attention_resolutions": [1, 2, 4, 8], "num_res_blocks": 2, "channel_mult": [1, 2, 2, 4, 4]},
                **{"num_heads": 8, "use_scale_shift_norm": True, "resblock_updown": True},
            }
        },
    },
    "sd14": {
        "image_size": 64,
        "scale_factor": 0.18215,
        "unet_config": {
            "params": {
                **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320},
                **{"attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4]},
                **{"num_heads": 8, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768},
                **{"use_checkpoint": True, "legacy": False},
            }
        },
    },
}


class Callback:
    """What a trainer leaves in a checkpoint; it would write a file when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


def test_other_objects_in_a_checkpoint_are_neither_looked_up_nor_executed(tmp_path):
    checkpoint = written(tmp_path / "original", state_of(UNet(**LDM4)), LDM4)
    content = torch.load(checkpoint, weights_only=True)
    states = {Callback: {"best": np.float64(0.5)}, "list": [Callback(tmp_path / "executed")], "path": tmp_path}
    torch.save(content | {"callbacks": states, "counts": defaultdict(list, a=[1])}, checkpoint)
    assert main([str(checkpoint), str(tmp_path / "folder")]) == 0
    assert not (tmp_path / "executed").exists()
    torch.load(checkpoint, weights_only=False)["callbacks"]["list"][0].close()
    assert (tmp_path / "executed").exists()  # so it would have been


def refusal(capsys, checkpoint, folder, *arguments):
    """The line with which a conversion is refused; nothing is left of it."""
    before = sorted(folder.parent.iterdir())
    assert main([str(checkpoint), str(folder), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m dmqbench.models.compvis: ")
    assert sorted(folder.parent.iterdir()) == before
    return line


KL = {"autoencoder": Autoencoder(latent=4)}
UNUSABLE = {
    "a tensor of no block": (
        {"state": {"model.diffusion_model.output_blocks.9.0.conv.weight": torch.ones(1)}},
        "output_blocks.9.0.conv.weight belongs to no block",
    ),
    "a layer of no block": (
        {"state": {"model.diffusion_model.out.2.0.w": torch.ones(1)}},
        "out.2.0.w is no layer that such a block has",
    ),
    "another network": ({"unet": LDM4 | {"out_channels": 6}}, "the checkpoint misfits 2 of the network's weights"),
    "a network of more levels": ({"unet": LDM4 | {"channel_mult": [1, 2, 2]}}, "output_blocks.0.1.norm.weight belongs"),
    "a network without some": ({"state": {"model.diffusion_model.out.2.bias": []}}, "lacks 1 of the network's weights"),
    "what cannot be converted": ({"unet": LDM4 | {"num_classes": 10}}, "a U-Net with num_classes=10 cannot be"),
    "what is not known": ({"unet": LDM4 | {"sparse": True}}, "a U-Net with sparse=True cannot be converted"),
    "another prediction": ({"parameterization": "flow"}, "parameterization=flow is not known (allowed: eps, x0, v)"),
    "another schedule": ({"state": {"betas": torch.linspace(0.0001, 0.02, 1000)}}, "square roots are evenly spaced"),
    "no scale": ({"parts": KL, "scale_by_std": True}, "the scale of its latents is not in the checkpoint"),
    "no YAML of a diffusion": ({"unet": None}, "no YAML of latent diffusion"),
}


@pytest.mark.parametrize(("changes", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path, capsys, changes, said):
    changes = {"unet": LDM4, **changes}
    state = state_of(UNet(**LDM4), **changes.pop("parts", {})) | changes.pop("state", {})
    checkpoint = written(tmp_path / "original", state, **changes)
    assert said in refusal(capsys, checkpoint, tmp_path / "folder")


def test_files_that_are_no_checkpoints_and_a_folder_that_is_there_are_refused(tmp_path, capsys):
    checkpoint = written(tmp_path / "original", {"weight": torch.ones(3)}, LDM4)
    folder = tmp_path / "folder"
    assert "no tensor of it is called model.diffusion_model." in refusal(capsys, checkpoint, folder)
    checkpoint.write_bytes(b"no archive")
    assert "as tensors (ValueError: Expected input to be a checkpoint" in refusal(capsys, checkpoint, folder)
    assert "allowed: ldm4_bedroom, ldm4_celebahq" in refusal(capsys, checkpoint, folder, "--model=dit_xl_256")
    (tmp_path / "original" / "config.yaml").rename(tmp_path / "elsewhere.yaml")
    assert "give --yaml, with which it was trained, as none is beside" in refusal(capsys, checkpoint, folder)
    with pytest.raises(ModelError, match=r"is a file; .* python -m dmqbench\.models\.compvis .* makes a folder"):
        load_model(ModelSource("local", str(checkpoint)))
    folder.mkdir()
    assert "is there already" in refusal(capsys, checkpoint, folder, f"--yaml={tmp_path / 'elsewhere.yaml'}")
