"""Loading: same bits as were saved, and one clear line for everything that can be wrong with a folder."""

import json
import shutil
import time

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from tiny import CLASSES, autoencoder, dit, inputs, save_pipeline, text_unet, unet, vq_autoencoder

from dmqbench.models import folders, location
from dmqbench.models.families import family_of
from dmqbench.models.folders import WEIGHTS, ModelError, ModelSource, read_config
from dmqbench.models.location import locate
from dmqbench.models.sources import (
    example_inputs,
    load_decoder_network,
    load_model,
    meta_model,
)


@pytest.fixture
def folder(tmp_path):
    return save_pipeline(tmp_path / "model", unet())


def local(folder, **settings):
    return ModelSource("local", str(folder), **settings)


def refusal(source):
    """The message with which loading ``source`` is refused."""
    with pytest.raises(ModelError) as caught:
        load_model(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def edit_config(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


@pytest.mark.parametrize("build", [unet, text_unet, dit])
@pytest.mark.parametrize("bare", [False, True])
def test_a_saved_network_comes_back_with_the_same_bits(tmp_path, build, bare):
    network = build(seed=3)
    if bare:
        network.save_pretrained(tmp_path)
    else:
        save_pipeline(tmp_path, network)
    model = load_model(local(tmp_path))
    assert type(model.network) is type(network)
    expected = network.state_dict()
    assert model.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.network.state_dict().items())
    args, kwargs = inputs(network)
    with torch.no_grad():
        assert torch.equal(model.network(*args, **kwargs)[0], network(*args, **kwargs)[0])
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert (model.scheduler is None) == bare


def test_what_a_model_says_about_itself(tmp_path):
    pixel = load_model(local(save_pipeline(tmp_path / "a", unet()), classes=CLASSES))
    assert (pixel.kind, pixel.sample_shape, pixel.classes, pixel.null_label) == ("class", (1, 8, 8), 10, 10)
    assert not pixel.family.learned_variance
    unguided = load_model(local(tmp_path / "a"))
    assert (unguided.classes, unguided.null_label) == (11, None)
    plain = load_model(local(save_pipeline(tmp_path / "b", unet(class_entries=None))))
    assert (plain.kind, plain.classes, plain.null_label) == ("none", None, None)
    text = load_model(local(save_pipeline(tmp_path / "c", text_unet(), prediction_type="v_prediction")))
    assert (text.kind, text.sample_shape, text.prediction_type) == ("text", (4, 8, 8), "v_prediction")
    transformer = load_model(local(save_pipeline(tmp_path / "d", dit())))
    assert (transformer.classes, transformer.null_label) == (10, 10)
    assert transformer.family.learned_variance
    assert transformer.prediction_type == "epsilon"
    assert transformer.scheduler["num_train_timesteps"] == 1000


def test_a_scheduler_with_infinities_is_read(tmp_path):
    DPMSolverMultistepScheduler().save_pretrained(tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    assert "-Infinity" in path.read_text()
    assert read_config(path)["num_train_timesteps"] == 1000


def test_half_precision_weights_are_computed_with_in_float32(tmp_path):
    unet().half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_model(local(tmp_path)).network.parameters()} == {torch.float32}


def test_sharded_weights_load_and_a_lost_shard_is_named(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / WEIGHTS).exists()
    loaded = load_model(local(tmp_path)).network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(local(tmp_path))


def test_missing_folder(tmp_path):
    message = refusal(local(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    assert "save_pretrained" in message


def test_missing_embedded_model_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "EMBEDDED", tmp_path)
    assert "python -m dmqbench.zoo.digits" in refusal(ModelSource("embedded", "digits"))


def test_an_embedded_model_is_an_ordinary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "EMBEDDED", tmp_path)
    save_pipeline(tmp_path / "digits", unet())
    assert load_model(ModelSource("embedded", "digits", classes=10)).null_label == 10


def test_folder_without_a_network(tmp_path):
    (tmp_path / "scheduler").mkdir()
    message = refusal(local(tmp_path))
    assert "config.json" in message
    assert "unet/" in message


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_weights(folder, keep):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(local(folder))
    assert "truncated" in message
    assert str(path) in message


def test_weights_followed_by_garbage(folder):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes() + b"\0")
    assert "bytes" in refusal(local(folder))


def test_missing_weights_file(folder):
    (folder / "unet" / WEIGHTS).unlink()
    message = refusal(local(folder))
    assert WEIGHTS in message
    assert str(folder / "unet") in message


def test_pickled_weights_are_never_opened(folder):
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    message = refusal(local(folder))
    assert "diffusion_pytorch_model.bin" in message
    assert "never opened" in message


def rewrite(folder, change):
    path = folder / "unet" / WEIGHTS
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_a_missing_weight_is_named(folder):
    rewrite(folder, lambda weights: weights.pop("mid_block.resnets.0.conv1.weight"))
    message = refusal(local(folder))
    assert "lacks 1 " in message
    assert "mid_block.resnets.0.conv1.weight" in message


def test_an_unknown_weight_is_named(folder):
    rewrite(folder, lambda weights: weights.update(stray=torch.zeros(1)))
    assert "stray" in refusal(local(folder))


def test_a_weight_of_another_shape_is_named(folder):
    rewrite(folder, lambda weights: weights.update({"conv_in.weight": torch.zeros(16, 2, 3, 3)}))
    assert "conv_in.weight" in refusal(local(folder))


def test_a_class_off_the_allow_list(folder):
    edit_config(folder / "unet" / "config.json", _class_name="UNet3DConditionModel")
    message = refusal(local(folder))
    assert "UNet3DConditionModel" in message
    assert "UNet2DModel" in message
    edit_config(folder / "unet" / "config.json", _class_name="AutoencoderKL")
    assert "AutoencoderKL" in refusal(local(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"sample_size": NaN}'])
def test_a_broken_configuration(folder, text):
    (folder / "unet" / "config.json").write_text(text)
    assert "config.json" in refusal(local(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample_size": None}, "sample_size"),
        ({"out_channels": 5}, "5 output channels"),
        ({"class_embed_type": "timestep"}, "class_embed_type=timestep"),
        ({"block_out_channels": "wide"}, "do not fit"),
        ({"norm_num_groups": 7}, "do not fit"),
    ],
)
def test_a_configuration_that_cannot_be_used(folder, changes, said):
    edit_config(folder / "unet" / "config.json", **changes)
    assert said in refusal(local(folder))


def test_more_classes_than_labels(folder):
    assert "classes=12" in refusal(local(folder, classes=12))


def test_an_uncached_hub_repository_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(ModelSource("hub", "nobody/nothing", revision="0" * 40))
    assert "hf download nobody/nothing --revision 000" in message
    assert "nobody:nothing" in refusal(ModelSource("hub", "nobody:nothing", revision="main"))


def test_a_cached_hub_repository_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--model" / "snapshots" / ("a" * 40)
    save_pipeline(snapshot, unet())
    source = ModelSource("hub", "someone/model", revision="a" * 40)
    assert locate(source) == snapshot
    assert load_model(source).sample_shape == (1, 8, 8)
    refusal(ModelSource("hub", "someone/model", revision="b" * 40))


def test_a_hub_that_says_nothing_does_not_hang_a_job(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(location, "unanswered", lambda url: "no answer within 10 s")
    started = time.monotonic()
    message = refusal(ModelSource("hub", "nobody/nothing", revision="0" * 40))
    assert "neither cached nor to be had" in message
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "settings",
    [
        ("hub", "owner/name"),
        ("local", "folder", "revision"),
        ("embedded", "../digits"),
        ("elsewhere", "digits"),
    ],
)
def test_impossible_sources(settings):
    with pytest.raises(ValueError):
        ModelSource(*settings)


@pytest.mark.parametrize("build", [autoencoder, vq_autoencoder])
def test_decoders(tmp_path, build):
    decoder = build()
    save_pipeline(tmp_path, unet(), decoder)
    loaded = load_decoder_network(tmp_path)
    assert type(loaded) is type(decoder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in decoder.state_dict().items())
    shutil.rmtree(tmp_path / ("vqvae" if build is vq_autoencoder else "vae"))
    assert load_decoder_network(tmp_path) is None


def test_networks_are_no_decoders(tmp_path):
    unet().save_pretrained(tmp_path / "vae")
    with pytest.raises(ModelError, match="AutoencoderKL, VQModel"):
        load_decoder_network(tmp_path)


@pytest.mark.parametrize("build", [unet, text_unet, dit])
def test_meta_models_have_shapes_and_no_weights(build):
    network = build()
    config = {**network.config, "_class_name": type(network).__name__}
    on_meta = meta_model(config)
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    assert {n: p.shape for n, p in on_meta.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    args, kwargs = example_inputs(family_of(config), batch=3, device="meta", tokens=5)
    output = on_meta(*args, **kwargs)[0]
    assert output.shape == (3, family_of(config).output_channels, *family_of(config).sample_shape[1:])
