"""What a saved pipeline holds, and what is not loaded."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from served import draw, pipeline, quantized

from dmqbench.models.folders import ModelError
from dmqbench.models.quantized import DESCRIPTION, load, save
from dmqbench.models.quantized import WEIGHTS as QUANTIZED
from dmqbench.quant.serving import ServingError
from dmqbench.store.files import load_json, save_json, short_hash
from dmqbench.store.manifest import Entry

WEIGHTS = f"unet/{QUANTIZED}"


def test_a_folder_from_before_match_refuses_other_timesteps(store, tmp_path):
    folder = save(quantized(store, ranges="step", match="nearest"), tmp_path / "saved")
    redescribe(folder, lambda facts: facts["quantization"].pop("match"))
    network = load(folder).unet
    with pytest.raises(ServingError, match="timestep 700 was not calibrated"):
        network(torch.zeros(1, 1, 8, 8), 700)


class Labelled(DDIMPipeline):
    """A pipeline of the user's own."""


def test_a_pipeline_class_of_ones_own_is_given_to_load(shared, tmp_path):
    pipe = Labelled(copy.deepcopy(shared.unet), shared.scheduler)
    folder = save(pipe, tmp_path / "saved")
    with pytest.raises(ModelError, match=r"pipeline=Labelled"):
        load(folder)
    again = load(folder, pipeline=Labelled)
    assert isinstance(again, Labelled)
    assert torch.equal(draw(again), draw(shared))


# ---- what is saved


def test_codes_are_stored_and_no_weight_that_was_quantized(shared, saved):
    facts = load_json(saved / DESCRIPTION)
    layers = {layer["name"]: layer for layer in facts["quantization"]["plan"]["layers"]}
    full = dict(pipeline().unet.named_parameters())
    with safe_open(saved / WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, layer in layers.items():
        codes, weight = tensors[f"{name}.weight_quantizer.codes"], full[f"{name}.weight"]
        assert f"{name}.weight" not in tensors
        assert codes.dtype == torch.uint8
        assert len(codes) == -(-weight.numel() * layer["weight_bits"] // 8)
        assert tensors[f"{name}.weight_quantizer.bits"].tolist() == [layer["weight_bits"]] * len(weight)
    for name in facts["quantization"]["plan"]["full_precision"]:
        assert torch.equal(tensors[f"{name}.weight"], full[f"{name}.weight"])
    assert facts["bytes"]["full_precision"] == 4 * sum(parameter.numel() for parameter in full.values())
    assert facts["bytes"]["quantized"] == (saved / WEIGHTS).stat().st_size < facts["bytes"]["full_precision"]


def test_folders_from_when_a_code_took_a_byte_still_load(shared, damaged):
    """They held the state of the network as it is."""
    state = {name: tensor.contiguous() for name, tensor in shared.unet.state_dict().items()}
    assert state[CODES].ndim == 4
    packed = (damaged / WEIGHTS).stat().st_size
    save_file(state, damaged / WEIGHTS)
    assert packed < (damaged / WEIGHTS).stat().st_size
    redescribe(damaged, lambda facts: facts.update(version=1))
    again = load(damaged)
    loaded = again.unet.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert torch.equal(draw(again), draw(shared))


def test_a_folder_holds_safetensors_and_json_and_no_place_of_this_machine(saved, store):
    for path in saved.rglob("*"):
        if path.is_file():
            assert path.suffix in (".safetensors", ".json")
            if path.suffix == ".json":
                assert str(store) not in path.read_text() and "_name_or_path" not in path.read_text()


def test_an_existing_folder_is_replaced_only_if_asked_to_and_only_if_it_is_a_saved_pipeline(shared, tmp_path):
    (tmp_path / "empty").mkdir()
    folder = save(shared, tmp_path / "empty")
    (folder / "left").write_text("over")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(shared, folder)
    assert save(shared, folder, overwrite=True) == folder
    assert not (folder / "left").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="not a saved pipeline"):
        save(shared, tmp_path / "own", overwrite=True)
    with pytest.raises(ModelError, match="is not quantized"):
        save(pipeline(), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "own"]


def test_a_failing_save_leaves_what_was_there(shared, tmp_path, monkeypatch):
    folder = save(shared, tmp_path / "saved")
    before = (folder / DESCRIPTION).read_bytes()
    monkeypatch.setattr("dmqbench.models.quantized.environment", None)
    with pytest.raises(TypeError):
        save(shared, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (folder / DESCRIPTION).read_bytes() == before


# ---- what is not loaded


def redescribe(folder: Path, change) -> None:
    """Change the description as somebody would who knows of its digests."""
    facts = load_json(folder / DESCRIPTION)
    facts.pop("digest")
    change(facts)
    for name in facts["files"]:
        entry = Entry.of(folder / name)
        facts["files"][name] = {"sha256": entry.sha256, "bytes": entry.bytes}
    save_json(folder / DESCRIPTION, {**facts, "digest": short_hash(facts)})


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    redescribe(folder, lambda facts: None)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CODES = "mid_block.resnets.0.conv1.weight_quantizer.codes"
BITS = "mid_block.resnets.0.conv1.weight_quantizer.bits"
NORM = "conv_norm_out.weight"
DAMAGES = {
    "no description": (lambda f: (f / DESCRIPTION).unlink(), r"no dmqbench.json there"),
    "not JSON": (lambda f: (f / DESCRIPTION).write_text("{"), r"cannot be read as JSON"),
    "format": (lambda f: redescribe(f, lambda facts: facts.update(version=3)), r"format .* 3 is not known here"),
    "edited": (
        lambda f: (f / DESCRIPTION).write_text((f / DESCRIPTION).read_text().replace("750", "751")),
        r"was changed after it was written",
    ),
    "missing": (lambda f: (f / WEIGHTS).unlink(), r"quantized.safetensors is missing"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), r"has \d+ bytes instead of"),
    "flipped": (lambda f: flip_last_byte(f / WEIGHTS), r"does not have its recorded sha256"),
    "scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), r"scheduler_config.json is missing"),
    "pickle": (lambda f: (f / "unet" / "diffusion_pytorch_model.bin").write_bytes(b""), r"is a pickle, which is never"),
    "lacking": (lambda f: rewrite(f, lambda t: t.pop(NORM)), rf"lacks {NORM}"),
    "no codes": (lambda f: rewrite(f, lambda t: t.pop(CODES)), rf"lacks {CODES}"),
    "shape": (lambda f: rewrite(f, lambda t: t.update({NORM: t[NORM][:-1].clone()})), rf"{NORM} has shape \[7\]"),
    "codes' length": (
        lambda f: rewrite(f, lambda t: t.update({CODES: t[CODES][:-1].clone()})),
        rf"holds {CODES} that cannot be read: packed codes are uint8 \[\d+\], .* make uint8",
    ),
    "no bits": (lambda f: rewrite(f, lambda t: t.pop(BITS)), rf"lacks {BITS}"),
    "other bits": (lambda f: rewrite(f, lambda t: t[BITS].__setitem__(0, 5)), rf"{BITS} of other rows or bit-widths"),
    "other layers": (
        lambda f: redescribe(f, lambda facts: facts["quantization"]["plan"]["layers"][0].update(name="none")),
        r"has layer none, which this model lacks",
    ),
    "old version": (
        lambda f: redescribe(f, lambda facts: facts.update(version=1)),
        r"quantizer.bits, which this model",
    ),
    "surplus": (lambda f: rewrite(f, lambda t: t.update(other=t[NORM].clone())), r"holds other, which this model"),
    "engine": (lambda f: redescribe(f, lambda facts: facts["quantization"].update(engine="x")), r"cannot be loaded"),
    "class": (
        lambda f: (
            (f / "model_index.json").write_text(json.dumps({"_class_name": "os"})),
            redescribe(f, lambda facts: None),
        ),
        r"its pipeline os is not diffusers' own",
    ),
    "code": (
        lambda f: (
            (f / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline", "unet": ["mine", "Net"]})),
            redescribe(f, lambda facts: None),
        ),
        r"unet is of mine \(allowed: diffusers, transformers\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(damaged, damage):
    change, message = DAMAGES[damage]
    change(damaged)
    with pytest.raises(ModelError, match=message) as refused:
        load(damaged)
    assert "\n" not in str(refused.value)


def test_no_folder_and_no_such_device(saved, tmp_path):
    with pytest.raises(ModelError, match=r"no dmqbench.json there"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(saved, device="cuda:77")
