"""Networks that read a class as one token of context, from a table beside them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tiny import CLASSES, save_class_table, save_pipeline, text_unet

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import weights_hash
from dmqbench.models import class_table
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import CONFIG, WEIGHTS, ModelError, ModelSource


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder, and the table in it."""
    folder = save_pipeline(tmp_path_factory.mktemp("model"), text_unet(in_channels=1, out_channels=1))
    return folder, save_class_table(folder)


def job_of(folder, *overrides):
    return make_job(compose(["model=local", f"model.path={folder}", "method=rtn", "bits=w8a8", *overrides]))


@pytest.fixture
def copied(model, tmp_path):
    return shutil.copytree(model[0], tmp_path / "copy")


def test_a_class_is_its_row_and_no_class_the_row_behind_them(model):
    folder, table = model
    adapter = load_adapter(ModelSource("local", str(folder), classes=CLASSES))
    conditioner = adapter.conditioner
    cond = conditioner.conditions("eval", 0, [3, 25])
    assert torch.equal(cond["encoder_hidden_states"], table[[3, 5]][:, None])
    null = conditioner.null(cond)
    assert torch.equal(null["encoder_hidden_states"], table[[CLASSES, CLASSES]][:, None])
    example = conditioner.example(3, "cpu")["encoder_hidden_states"]
    assert (example.shape, example.dtype) == ((3, 1, table.shape[1]), torch.float32)
    x, step = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        prediction = adapter.denoise(x, 7, cond, step, guidance=3.0)
        guided, unguided = (
            adapter.network(x, 7, encoder_hidden_states=table[rows][:, None])[0] for rows in ([3, 5], [CLASSES] * 2)
        )
    assert torch.allclose(prediction, unguided + 3 * (guided - unguided), atol=1e-5)


def test_classes_are_as_many_as_rows_unless_a_model_says_how_many(model):
    folder, table = model
    assert job_of(folder).model.classes == len(table)
    assert job_of(folder, f"model.classes={CLASSES}", "sampler.guidance=3").model.classes == CLASSES
    with pytest.raises(ConfigError, match="needs a null label"):
        job_of(folder, "sampler.guidance=3")
    with pytest.raises(ConfigError, match=f"the model knows {len(table)} labels"):
        job_of(folder, "model.classes=12")


def test_the_table_is_part_of_the_weights(copied, model):
    shutil.rmtree(copied / class_table.FOLDER)
    other = save_class_table(copied)
    assert torch.equal(other, model[1])
    before = weights_hash(job_of(copied).model)
    assert before == weights_hash(job_of(model[0]).model)
    save_file({class_table.TABLE: other + 1}, copied / class_table.FOLDER / WEIGHTS)
    assert weights_hash(job_of(copied).model) != before


@pytest.mark.parametrize(
    ("tensors", "name", "said"),
    [
        ({"embedding.weight": (11, 13)}, "ClassEmbedder", "of width 13, and cross_attention_dim=12"),
        ({"embedding.weight": (12,)}, "ClassEmbedder", "a ClassEmbedder with embedding.weight; allowed: ClassEmbedder"),
        ({"weight": (11, 12)}, "ClassEmbedder", "a ClassEmbedder with weight; allowed"),
        ({"embedding.weight": (11, 12)}, "BERTEmbedder", "a BERTEmbedder with"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_when_a_job_is_composed(copied, tensors, name, said):
    part = copied / class_table.FOLDER
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, part / WEIGHTS)
    (part / CONFIG).write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ModelError, match=said):
        job_of(copied)


def test_a_table_must_be_finite(copied):
    save_file({class_table.TABLE: torch.full((11, 12), torch.nan)}, copied / class_table.FOLDER / WEIGHTS)
    with pytest.raises(ModelError, match="not all finite"):
        load_adapter(ModelSource("local", str(copied)))
