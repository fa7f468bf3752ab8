import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from standins import CLIP_IMAGE_SIZE, CLIP_NAME, save_clip

from dmqbench.config.schema import MetricsConfig
from dmqbench.data.images import ImageError
from dmqbench.eval.clip import clip_metric, locate_clip
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.weights import STAND_IN_MARKER

CAPTIONS = ["a photo of a cat", "Two dogs, one ball!", "x", ""]
SETTINGS = MetricsConfig(names=("clip",), pairs=1, samples=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder of stand-ins that holds nothing but CLIP."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / STAND_IN_MARKER).touch()
    save_clip(folder / CLIP_NAME)
    return folder


@pytest.fixture(scope="module")
def metric(weights):
    return clip_metric(replace(SETTINGS, weights=str(weights)), "cpu")


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def some_images(n: int = len(CAPTIONS), channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (n, channels, CLIP_IMAGE_SIZE, CLIP_IMAGE_SIZE)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def test_values_are_the_models_own_cosines(metric, weights):
    """``logits_per_image`` of transformers are the cosines, times a temperature."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = (kind.from_pretrained(weights / CLIP_NAME) for kind in (CLIPModel, CLIPProcessor))
    images = some_images()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    inputs = processor(text=CAPTIONS, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    values = metric.per_image(images, CAPTIONS)
    assert values == pytest.approx((100 * cosines).clamp(min=0).tolist(), abs=1e-3, rel=1e-5)
    assert len({round(value, 3) for value in values}) == len(CAPTIONS)


def test_values_are_those_of_torchmetrics(metric):
    from torchmetrics.multimodal import CLIPScore

    class Towers(torch.nn.Module):
        """torchmetrics wants tensors, and transformers 5 gives outputs."""

        def __init__(self, model) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def get_image_features(self, *inputs):
            return self.model.get_image_features(*inputs).pooler_output

        def get_text_features(self, *inputs):
            return self.model.get_text_features(*inputs).pooler_output

    images = some_images()
    score = metric.per_image
    reference = CLIPScore(lambda: (Towers(score.model), score.processor))
    expected = [reference(image, caption).item() for image, caption in zip(images, CAPTIONS, strict=True)]
    assert metric.per_image(images, CAPTIONS) == pytest.approx(expected, rel=1e-5)


def test_negative_cosines_count_as_zero(metric, monkeypatch):
    images, captions = some_images(), CAPTIONS
    before = metric.per_image(images, captions)
    weight = metric.per_image.model.text_projection.weight
    monkeypatch.setattr(weight, "data", -weight.data)
    flipped = metric.per_image(images, captions)
    assert all((was > 0) != (now > 0) for was, now in zip(before, flipped, strict=True))
    assert min(before + flipped) == 0


def test_long_prompts_are_cut_with_their_end_mark_kept(metric):
    """75 letters between the two marks: what comes after does not matter, what comes before does."""
    images = some_images(3)
    long = ["a " * 75 + "b " * 100, "a " * 75, "a " * 74]
    values = metric.per_image(images[:1].expand(3, -1, -1, -1), long)
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] != pytest.approx(values[2], rel=1e-4)


def test_grey_images_are_repeated_and_batches_do_not_matter(metric):
    grey = some_images(35, channels=1)
    captions = [f"number {i}" for i in range(35)]
    values = metric.per_image(grey, captions)
    assert values == pytest.approx(metric.per_image(grey.repeat(1, 3, 1, 1), captions), rel=1e-6)
    alone = [metric.per_image(grey[i : i + 1], captions[i : i + 1])[0] for i in (0, 31, 32, 34)]
    assert [values[i] for i in (0, 31, 32, 34)] == pytest.approx(alone, rel=1e-4)


def test_what_does_not_pair_or_is_no_image_is_refused(metric):
    with pytest.raises(ValueError, match="4 images and 1 prompts do not pair"):
        metric.per_image(some_images(), ["one"])
    with pytest.raises(ImageError, match="expected uint8"):
        metric.per_image(some_images() / 255, CAPTIONS)


def test_a_stand_in_says_so_wherever_it_lies(weights, metric, tmp_path):
    assert (metric.network.extractor, metric.network.resize) == (
        f"stand-in-{CLIP_NAME}",
        f"clip-processor-{CLIP_IMAGE_SIZE}+grey-to-rgb",
    )
    save_clip(tmp_path / "mine", layers=2)
    mine = clip_metric(replace(SETTINGS, clip=str(tmp_path / "mine")), "cpu")
    assert mine.network.extractor == "mine"
    assert mine.network.extractor_hash != metric.network.extractor_hash
    (tmp_path / "mine" / STAND_IN_MARKER).touch()
    assert clip_metric(replace(SETTINGS, clip=str(tmp_path / "mine")), "cpu").network.extractor == "stand-in-mine"


def test_the_hash_is_of_content_not_of_place(metric, tmp_path):
    save_clip(tmp_path / "again")
    again = clip_metric(replace(SETTINGS, clip=str(tmp_path / "again")), "cpu")
    assert again.network.extractor_hash == metric.network.extractor_hash
    tokenizer = tmp_path / "again" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert (
        clip_metric(replace(SETTINGS, clip=str(tmp_path / "again")), "cpu").network.extractor_hash
        != metric.network.extractor_hash
    )


def test_the_hubs_cache_is_used_offline(empty_hub):
    """As huggingface_hub lays it out: a branch that points to a snapshot."""
    repository = empty_hub / "models--someone--small-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    save_clip(snapshot)
    settings = replace(SETTINGS, clip="someone/small-clip", download=False)
    assert locate_clip(settings) == snapshot
    assert clip_metric(settings, "cpu").network.extractor == "small-clip"


@pytest.mark.parametrize("why", ["HF_HUB_OFFLINE is set", "metrics.download=false"])
def test_a_missing_model_is_one_line(monkeypatch, why):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if why.startswith("HF"):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = replace(SETTINGS, download=not why.startswith("metrics"))
    with pytest.raises(MetricUnavailable) as error:
        clip_metric(settings, "cpu")
    assert "\n" not in str(error.value)
    for part in ("openai/clip-vit-large-patch14", why, "hf download", "metrics.clip"):
        assert part in str(error.value)


def test_a_silent_hub_is_given_up(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("dmqbench.store.downloads.SILENCE_S", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *names: "/".join((address, *names)))
        with pytest.raises(MetricUnavailable, match=r"was not downloaded: no answer within 0\.2 s"):
            clip_metric(SETTINGS, "cpu")


def test_a_folder_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    refused(tmp_path / "none", "is not in the hub's cache and was not downloaded: Repo id must")


def test_pickled_weights_are_not_loaded(tmp_path):
    save_clip(tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(MetricUnavailable, match=r"mine holds no model\.safetensors"):
        clip_metric(replace(SETTINGS, clip=str(tmp_path / "mine")), "cpu")


def test_shapes_that_do_not_fit_are_one_line(tmp_path):
    save_clip(tmp_path / "mine")
    config = tmp_path / "mine" / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 16', '"projection_dim": 17'))
    refused(tmp_path / "mine", "does not load as CLIP: its weights are not of the shapes")


def test_weights_are_never_filled_with_random_numbers(tmp_path):
    save_clip(tmp_path / "mine")
    path = tmp_path / "mine" / "model.safetensors"
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    refused(tmp_path / "mine", "holds no visual_projection.weight, the first of 1 missing weights")


def test_a_damaged_configuration_is_one_line(tmp_path):
    save_clip(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text("{")
    refused(tmp_path / "mine", "does not load as CLIP")


def refused(folder: Path, said: str) -> None:
    with pytest.raises(MetricUnavailable) as error:
        clip_metric(replace(SETTINGS, clip=str(folder)), "cpu")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
