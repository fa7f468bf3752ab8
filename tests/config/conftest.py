"""What configurations look at: the environment, and the folder of a model."""

import pytest


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("DMQBENCH_RUNS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder as far as a configuration looks into it."""
    network = tmp_path / "mine" / "unet"
    network.mkdir(parents=True)
    (network / "config.json").write_text(
        '{"_class_name": "UNet2DModel", "in_channels": 3, "sample_size": 8, "num_class_embeds": null}'
    )
    (tmp_path / "mine" / "scheduler").mkdir()
    (tmp_path / "mine" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    return network.parent
