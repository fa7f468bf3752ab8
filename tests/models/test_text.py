"""The parts of a pipeline that read prompts."""

import json
import shutil

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel
from twins import stable_diffusion, stable_diffusion_3

from dmqbench.models.families import family_of
from dmqbench.models.folders import ModelError
from dmqbench.models.text import PromptEncoder
from dmqbench.models.text_files import INDEX, text_files

SD = family_of({"_class_name": "UNet2DConditionModel", "in_channels": 4, "sample_size": 8, "cross_attention_dim": 12})
PIXART = family_of(
    {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "in_channels": 4, "out_channels": 8}
    | {"sample_size": 8, "caption_channels": 12}
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def test_a_prompt_is_read_alone_and_as_its_pipeline_reads_it(original):
    encoder, pipe = PromptEncoder(original, SD, 2), stable_diffusion()
    for prompt in ("a fox", "", "a fox that jumps"):
        [expected], _ = pipe.encode_prompt([prompt], "cpu", 1, do_classifier_free_guidance=False)
        assert torch.equal(encoder.encoded(prompt)["encoder_hidden_states"], expected)
    assert [encoder.cuts(prompt) for prompt in ("a fox", "a fox that jumps over")] == [False, True]


def test_a_vocabulary_of_sentencepiece_alone_is_read(tmp_path):
    """As the folder of PixArt has it; sentencepiece itself is the oracle."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["red", "fox", "snow", "rain", "fog", "lake", "sun", "tree", "river", "stone"] * 20))
    (tmp_path / "tokenizer").mkdir()
    prefix, marks = tmp_path / "tokenizer" / "spiece", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(prefix), vocab_size=26, minloglevel=2, **marks
    )
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    config = T5Config(vocab_size=32, d_model=12, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    read = PromptEncoder(tmp_path, PIXART, 2).encoded("red fox")
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    ids = [*processor.encode("red fox"), processor.eos_id()]
    encoder = T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    padded = torch.tensor([ids + [0] * (300 - len(ids))])
    mask = (torch.arange(300) < len(ids)).float()[None]
    assert torch.equal(read["encoder_attention_mask"], mask[0])
    assert torch.allclose(read["encoder_hidden_states"], encoder(padded, mask)[0][0], atol=1e-6)


def test_the_third_encoder_may_lack_where_the_folder_says_so(tmp_path):
    """The network's condition keeps its shape: zeros of T5's length follow what CLIP read."""
    stable_diffusion_3(t5=False).save_pretrained(tmp_path)
    family = family_of(json.loads((tmp_path / "transformer" / "config.json").read_text()))
    assert {path.parent.name for path in text_files(tmp_path, family)} == {
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    }
    encoder = PromptEncoder(tmp_path, family, 2)
    read = encoder.encoded("a fox")["encoder_hidden_states"]
    assert read[:-256].any() and not read[-256:].any() and len(read) > 256
    assert [encoder.cuts(prompt) for prompt in ("a fox", "a fox that jumps over")] == [False, True]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["text_encoder_3"] == [None, None]
    (tmp_path / INDEX).write_text(json.dumps(index | {"text_encoder_3": ["transformers", "T5EncoderModel"]}))
    with pytest.raises(ModelError, match=r"no text_encoder_3/config\.json") as refused:
        text_files(tmp_path, family)
    assert "\n" not in str(refused.value)


def without_a_weight(folder):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path, {"format": "pt"})


DAMAGED = {
    "no vocabulary": (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "none of tokenizer.json"),
    "no encoder": (lambda folder: shutil.rmtree(folder / "text_encoder"), "no text_encoder/config.json"),
    "a weight missing": (without_a_weight, "lacks 1 of the network's weights"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_part_that_is_not_whole_is_refused_in_one_line(folder, damage, said):
    damage(folder)
    with pytest.raises(ModelError, match=said) as refused:
        text_files(folder, SD)
        PromptEncoder(folder, SD, 2)
    assert "\n" not in str(refused.value)
