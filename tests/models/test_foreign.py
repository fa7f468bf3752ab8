"""Networks from elsewhere: what is read back, to the same bits, and what is refused in one line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import dit, inputs, save_pipeline, text_unet, unet
from workbench import adapter_of

from dmqbench.models.families import family_of
from dmqbench.models.folders import CONFIG, WEIGHTS, ModelError, read_config
from dmqbench.models.foreign import (
    foreign_facts,
    foreign_hash,
    load_foreign_adapter,
    load_foreign_network,
    require_fit,
)

BUILDERS = {"unet": unet, "text_unet": text_unet, "dit": dit}


def changed_config(folder: Path, **entries) -> Path:
    config = read_config(folder / CONFIG) | entries
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def changed_weights(folder: Path, drop=(), add=()) -> Path:
    weights = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(tuple(drop) or "\0")}
    assert not drop or len(kept) < len(weights)
    save_file(kept | {name: torch.zeros(1) for name in add}, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture
def like():
    return family_of({**unet().config, "_class_name": "UNet2DModel"})


@pytest.fixture
def folder(tmp_path) -> Path:
    """A network of the right shape with other weights than the base."""
    unet(seed=1).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def refusal(action, *arguments) -> str:
    with pytest.raises(ModelError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# ---- ordinary folders


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_changed_network_is_sampled_in_place_of_the_base(tmp_path, builder):
    theirs = BUILDERS[builder](seed=1)
    theirs.save_pretrained(tmp_path)
    base = adapter_of(BUILDERS[builder]())
    adapter = load_foreign_adapter(tmp_path, base)
    args, kwargs = inputs(theirs)
    torch.testing.assert_close(adapter.network(*args, **kwargs)[0], theirs(*args, **kwargs)[0], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in adapter.network.parameters())
    assert not adapter.network.training
    assert adapter.network is not base.network
    assert (adapter.schedule, adapter.prediction, adapter.sample_shape) == (
        base.schedule,
        base.prediction,
        base.sample_shape,
    )
    assert foreign_facts(tmp_path).quantizer is None
    assert foreign_facts(tmp_path).bits is None


def test_a_pipeline_folder_is_read_like_a_bare_network(tmp_path, folder, like):
    save_pipeline(tmp_path / "pipeline", unet(seed=1))
    assert foreign_hash(tmp_path / "pipeline") == foreign_hash(folder)
    one, other = (load_foreign_network(path, like).state_dict() for path in (folder, tmp_path / "pipeline"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_hash_follows_weights_and_configuration_and_not_the_place(tmp_path, folder):
    before = foreign_hash(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert foreign_hash(tmp_path / "copy") == before
    (tmp_path / "copy" / "README.md").write_text("not part of the network")
    assert foreign_hash(tmp_path / "copy") == before
    assert foreign_hash(changed_config(tmp_path / "copy", note=1)) != before
    unet(seed=2).save_pretrained(folder)
    assert foreign_hash(folder) != before


def test_the_size_is_that_of_the_weight_files(folder):
    facts = foreign_facts(folder)
    assert facts.packed_mib == (folder / WEIGHTS).stat().st_size / 2**20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet1DModel"}, "_class_name is UNet1DModel, and UNet2DModel"),
        ({"sample_size": 16}, "sample_size is 16, and 8"),
        ({"in_channels": 3, "out_channels": 3}, "in_channels is 3, and 1"),
        ({"num_class_embeds": None}, "num_class_embeds is None, and 11"),
        ({"quantization_config": {"quant_method": "nunchaku_lite"}}, "'nunchaku_lite', which is not read here"),
        ({"quantization_config": "int8"}, "quantized by None"),
    ],
)
def test_a_network_that_does_not_fit(folder, like, change, said):
    changed_config(folder, **change)
    assert said in refusal(require_fit, folder, like.config)
    assert said in refusal(load_foreign_network, folder, like)


def test_an_old_configuration_may_leave_out_what_is_at_its_default(folder, like):
    config = read_config(folder / CONFIG)
    del config["freq_shift"], config["dropout"]
    (folder / CONFIG).write_text(json.dumps(config))
    load_foreign_network(folder, like)


def test_a_label_table_that_only_one_configuration_names(folder, like):
    config = read_config(folder / CONFIG)
    del config["num_class_embeds"]
    (folder / CONFIG).write_text(json.dumps(config))
    require_fit(folder, like.config)
    assert "conditioning is none, and class" in refusal(load_foreign_network, folder, like)


def test_weights_that_are_missing_or_unknown(folder, tmp_path, like):
    assert "no config.json" in refusal(load_foreign_network, tmp_path / "absent", like)
    shutil.copytree(folder, tmp_path / "a")
    changed_weights(tmp_path / "a", drop=["conv_in.weight"])
    assert "lacks 1 of the network's weights, the first is conv_in.weight" in refusal(
        load_foreign_network, tmp_path / "a", like
    )
    changed_weights(folder, add=["stranger"])
    assert "has unknown 1 of the network's weights, the first is stranger" in refusal(
        load_foreign_network, folder, like
    )
    (folder / WEIGHTS).rename(folder / "model.bin")
    assert "only pickled weights" in refusal(foreign_hash, folder)
    assert "only pickled weights" in refusal(require_fit, folder, like.config)
    (folder / "model.bin").rename(folder / WEIGHTS)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    assert "truncated" in refusal(foreign_facts, folder)


def test_weights_of_another_width(folder, like):
    unet(seed=1, block_out_channels=(16, 16)).save_pretrained(folder.parent / "narrow")
    (folder.parent / "narrow" / WEIGHTS).replace(folder / WEIGHTS)
    assert "cannot be loaded" in refusal(load_foreign_network, folder, like)


def test_predictions_that_are_not_finite(folder, like):
    weights = load_file(folder / WEIGHTS)
    weights["conv_out.bias"][:] = float("nan")
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert "not finite" in refusal(load_foreign_network, folder, like)


# ---- quantizers


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "quanto", "weights_dtype": "int4"}, "w4a32"),
        ({"quant_method": "quanto", "weights_dtype": "float8"}, "w8a32"),
        ({"quant_method": "quanto"}, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "w4a32"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "w8a8"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "w8a32"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt4WeightConfig"}}},
            "w4a8",
        ),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig"}}}, None),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, None),
    ],
)
def test_bits_are_what_the_configuration_says(folder, settings, bits):
    facts = foreign_facts(changed_config(folder, quantization_config=settings))
    assert (facts.quantizer, facts.bits) == (settings["quant_method"], bits)


def test_a_quantizer_that_is_not_installed(folder, like, monkeypatch):
    monkeypatch.setattr("dmqbench.models.foreign.find_spec", lambda name: None)
    changed_config(folder, quantization_config={"quant_method": "quanto", "weights_dtype": "int8"})
    assert refusal(require_fit, folder, like.config).endswith("to read it, pip install optimum-quanto")


@pytest.fixture
def quanto(folder, monkeypatch):
    """The folder of the network above, its linear layers quantized by optimum-quanto.

    Codes of 4 bits are unpacked by Python here: the package would compile a kernel for that at its first use.
    """
    pytest.importorskip("optimum.quanto")
    from optimum.quanto.library.extensions.cpp import ext

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])

    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack))
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.quantizers.quantization_config import QuantoConfig

    def save(dtype: str) -> tuple[Path, torch.nn.Module]:
        network = UNet2DModel.from_pretrained(
            folder, quantization_config=QuantoConfig(weights_dtype=dtype), torch_dtype=torch.float32
        )
        network.save_pretrained(folder.parent / dtype)
        return folder.parent / dtype, network

    return save


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("dtype", "bits"), [("int8", "w8a32"), ("int4", "w4a32"), ("float8", "w8a32")])
def test_a_network_that_quanto_wrote_predicts_the_same_bits(quanto, folder, like, dtype, bits):
    path, network = quanto(dtype)
    adapter = load_foreign_adapter(path, adapter_of(unet()))
    args, kwargs = inputs(unet())
    found, full = (net(*args, **kwargs)[0] for net in (adapter.network, unet(seed=1)))
    torch.testing.assert_close(found, network(*args, **kwargs)[0], rtol=0, atol=0)
    assert 0 < (found - full).abs().max() < 0.3 * full.abs().max()
    facts = foreign_facts(path)
    assert (facts.quantizer, facts.bits) == ("quanto", bits)
    assert facts.weight_bytes < foreign_facts(folder).weight_bytes
    assert adapter.device == torch.device("cpu")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_codes_or_scales_that_are_missing_are_found(quanto, like):
    """diffusers reports neither: such a weight would stay without values until it is first used."""
    path, _ = quanto("int8")
    for number, part in enumerate(("to_q.weight._data", "to_q.weight._scale")):
        damaged = path.parent / str(number)
        shutil.copytree(path, damaged)
        assert "to_q.weight" in refusal(load_foreign_network, changed_weights(damaged, drop=[part]), like)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ordinary_weights_that_claim_to_be_quantized(quanto, folder, like):
    path, _ = quanto("int8")
    shutil.copy(path / CONFIG, folder / CONFIG)
    assert "of the network's weights, the first is" in refusal(load_foreign_network, folder, like)
