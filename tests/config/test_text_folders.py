"""Folders of pipelines that read text, as users have them: what runs, and what is refused in one line, status 2."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from tiny import text_unet
from twins import stable_diffusion

from dmqbench import cli
from dmqbench.models.folders import WEIGHTS


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("original")
    stable_diffusion().save_pretrained(root / "model")
    (root / "prompts.txt").write_text("".join(f"{word}\n" for word in ("fox", "snow", "rain", "fog")))
    return root


@pytest.fixture
def folder(original, tmp_path) -> Path:
    shutil.copytree(original, tmp_path / "mine")
    return tmp_path / "mine" / "model"


def planned(folder: Path, capsys, *more: str) -> tuple[int, str]:
    """Status of a plan on a folder, and what was said."""
    prompts = f"inputs.prompts={folder.parent / 'prompts.txt'}"
    job = ["task=plan", "model=local", f"model.path={folder}", prompts, "method=rtn", "trainer=cpu", *more]
    status = cli.main([*job, f"store.root={folder.parent / 'runs'}", "metrics.names=[psnr]"])
    return status, capsys.readouterr().err


def moved(name: str, to: str):
    return lambda folder: (folder / name).rename(folder / to)


def network(**config):
    """Another network in the folder's place."""

    def write(folder: Path) -> None:
        shutil.rmtree(folder / "unet")
        text_unet(**config).save_pretrained(folder / "unet")

    return write


def stated(**changes):
    def edit(folder: Path) -> None:
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def controlled(folder: Path) -> None:
    ControlNetModel.from_unet(text_unet()).save_pretrained(folder / "controlnet")


def lora_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    save_file({"unet.conv_in.lora_A.weight": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")


def control_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    ControlNetModel.from_unet(text_unet()).save_pretrained(folder)


REFUSED = {
    "a network of another name": (moved("unet", "unet_ft"), "; if unet_ft/ is meant, call it unet"),
    "an encoder of another name": (moved("text_encoder", "my_text_encoder"), "; if my_text_encoder/ is meant, call it"),
    "a tokenizer of another name": (
        moved("tokenizer", "tokenizer_ft"),
        "; if tokenizer_ft/ is meant, call it",
    ),
    "a decoder of another name": (moved("vae", "vae-ft-mse"), "if vae-ft-mse/ is meant, call it vae"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "give the folder of the whole pipeline"),
    "a scheduler of another name": (moved("scheduler", "noise"), "name one with model.scheduler"),
    "LoRA alone": (lora_alone, "pytorch_lora_weights.safetensors changes a network (LoRA) and is none; fuse it: pipe."),
    "ControlNet alone": (control_alone, "holds a ControlNetModel; allowed: "),
    "ControlNet beside": (controlled, "has controlnet/, and no job has images for it"),
    "inpainting": (network(in_channels=9), "in_channels=9 does not fit out_channels=4: a network that inpaints"),
    "editing": (network(in_channels=8), "in_channels=8 does not fit out_channels=4: a network that inpaints or edits"),
    "classes and text": (network(num_class_embeds=4), "num_class_embeds=4 is not possible"),
    "guidance distilled": (network(time_cond_proj_dim=4), "time_cond_proj_dim=4 is not possible"),
    "two texts": (stated(dual_cross_attention=True), "dual_cross_attention=true is not possible"),
    "a word for a size": (stated(sample_size="big"), "sample_size=big is not possible"),
    "a word for channels": (stated(in_channels="4"), 'in_channels="4" is not possible'),
    "no groups": (stated(norm_num_groups=0), "norm_num_groups=0 is not possible"),
    "a pickled network": (moved(f"unet/{WEIGHTS}", "unet/diffusion_pytorch_model.bin"), f"convert them to {WEIGHTS}"),
    "a pickled decoder": (moved(f"vae/{WEIGHTS}", "vae/diffusion_pytorch_model.bin"), f"convert them to {WEIGHTS}"),
    "a pickled encoder": (
        moved("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
        "only pickled weights (pytorch_model.bin), which are never opened; convert them to model.safetensors",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_refused_in_one_line(folder, capsys, change):
    write, said = REFUSED[change]
    write(folder)
    status, errors = planned(folder, capsys)
    assert status == 2 and said in errors and errors.count("\n") == 1


@pytest.mark.parametrize("guidance", ["inf", "nan", "-1"])
def test_guidance_must_be_a_number(folder, capsys, guidance):
    status, errors = planned(folder, capsys, f"sampler.guidance={guidance}")
    assert status == 2 and f"sampler.guidance={'-1.0' if guidance == '-1' else guidance} is" in errors
    assert errors.count("\n") == 1
