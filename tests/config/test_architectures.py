"""Models that are shipped as shapes alone, with a checkpoint of the user's: it must be of those shapes."""

import json

import pytest
from tiny import save_pipeline, unet

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import _layers_facts
from dmqbench.config.job import make_job
from dmqbench.config.schema import ModelConfig
from dmqbench.models import folders
from dmqbench.models.folders import CONFIG


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A tiny network that stands for the full-size one, with weights."""
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    config = json.loads((folder / "unet" / CONFIG).read_text())
    (tmp_path / "ddpm_cifar10").mkdir()
    (tmp_path / "ddpm_cifar10" / CONFIG).write_text(json.dumps(config))
    monkeypatch.setattr(folders, "ARCHITECTURES", tmp_path)
    return folder


def made(folder, *overrides):
    name = ("model=ddpm_cifar10", "model.sample_shape=[1,8,8]", "bits=w8a8", "method=rtn")
    return make_job(compose([*name, f"model.path={folder}", *overrides]))


def test_a_checkpoint_of_the_same_shapes_is_run(checkpoint):
    job = made(checkpoint)
    assert (job.model.checkpoint.kind, job.model.label, job.model.sample_shape) == ("local", "ddpm_cifar10", (1, 8, 8))
    assert not job.model.shapes_only


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [16, 64]}, r"is no ddpm_cifar10: its block_out_channels is \[16, 64\], not \[16, 32\]"),
        ({"_class_name": "DiTTransformer2DModel"}, "its network is DiTTransformer2DModel, not UNet2DModel"),
        ({"norm_num_groups": 4, "freq_shift": 1}, "its freq_shift is 1, not 0"),
        ({"block_out_channels": None}, r"its block_out_channels is absent, not \[16, 32\]"),
    ],
)
def test_another_one_is_refused_with_the_first_difference(checkpoint, changes, message):
    path = checkpoint / "unet" / CONFIG
    config = json.loads(path.read_text()) | changes
    for key in [key for key, value in changes.items() if value is None]:
        del config[key]  # which would be diffusers' default, of another network
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        made(checkpoint)


def test_without_a_checkpoint_there_are_no_weights(checkpoint):
    with pytest.raises(ConfigError, match="give a checkpoint"):
        make_job(compose(["model=ddpm_cifar10", "model.sample_shape=[1,8,8]"]))


def test_ids_say_which_layers_a_scope_means_where_that_changed():
    assert _layers_facts(ModelConfig("dit_xl_256", "architecture")) == {"layers": 2}
    assert _layers_facts(ModelConfig("sd14", "architecture")) == {}
