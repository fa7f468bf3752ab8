"""A user's own diffusers folder as the model, and one that is damaged."""

import json

from e2e.commands import SMALL, dmqbench, result_folder
from tiny import save_pipeline, unet

OWN = (
    *SMALL,
    "model=local",
    "metrics.names=[psnr,mse]",
    "metrics.samples=32",
    "sampler.chunk=16",
    "method=rtn",
    "bits=w8a8",
)


def test_a_folder_of_ones_own(tmp_path):
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    status, output, errors = dmqbench(tmp_path / "runs", *OWN, f"model.path={folder}")
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["metrics"]["psnr"]["value"] > 20
    assert result["cost"]["skip_layers"] > 0


def test_a_truncated_checkpoint_is_one_line(tmp_path):
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    [weights] = folder.rglob("diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    status, _, errors = dmqbench(tmp_path / "runs", *OWN, f"model.path={folder}")
    assert status == 2
    assert len(errors.strip().splitlines()) == 1
    assert str(weights) in errors


def test_the_folder_of_the_network_alone_says_where_the_scheduler_is(tmp_path):
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    status, _, errors = dmqbench(tmp_path / "runs", *OWN, f"model.path={folder / 'unet'}")
    assert status == 2
    assert errors.strip().endswith(f"{folder}, the folder around it, has one")
