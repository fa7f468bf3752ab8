"""What is hashed is what is loaded: every file that enters a network, and no other; where that is open, a refusal."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import autoencoder, dit, save_pipeline, unet, vq_autoencoder

from dmqbench.config.model_facts import weights_hash
from dmqbench.config.schema import ModelConfig
from dmqbench.models import weight_files
from dmqbench.models.folders import CONFIG, WEIGHTS, ModelError, ModelSource
from dmqbench.models.sources import load_decoder_network, load_model
from dmqbench.store import files

SHARDED = "100KB"


def add(folder, name, source=WEIGHTS):
    """A file of other weights than those that are there."""
    path = folder / "unet" / source
    weights = {key: value + 1 for key, value in load_file(path).items()}
    save_file(weights, folder / "unet" / name, {"format": "pt"})


def shards(folder, **variant):
    unet(seed=1).save_pretrained(folder / "unet", max_shard_size=SHARDED, **variant)


def only(folder, **options):
    """The network saved in another way, and in no other."""
    shutil.rmtree(folder / "unet")
    network = unet()
    half = network.half() if options.get("variant") == "fp16" else network
    half.save_pretrained(folder / "unet", **options)


def rewritten(folder, change):
    path = folder / "unet" / WEIGHTS
    save_file(change(load_file(path)), path, {"format": "pt"})


def prefixed(prefix):
    return lambda folder: rewritten(folder, lambda w: {f"{prefix}{name}": value for name, value in w.items()})


def beside(prefix):
    copy = lambda w: {**w, **{f"{prefix}{name}": value.clone() for name, value in w.items()}}  # noqa: E731
    return lambda folder: rewritten(folder, copy)


def index(folder, content):
    only(folder, max_shard_size=SHARDED)
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(content))


def relinked(folder):
    """As the cache of a hub has them: every file a link to a blob."""
    for number, path in enumerate([p for p in sorted(folder.rglob("*")) if p.is_file()]):
        blob = folder.parent / f"blob{number}"
        path.rename(blob)
        path.symlink_to(blob)


def flat(folder):
    """Network and scheduler beside each other, as google/ddpm-cifar10-32 has them."""
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()


READ = {
    "a single file": lambda f: None,
    "all in one folder": flat,
    "shards": lambda f: only(f, max_shard_size=SHARDED),
    "a variant": lambda f: only(f, variant="fp16"),
    "a variant in shards": lambda f: only(f, variant="fp16", max_shard_size="50KB"),
    "a variant with a dot": lambda f: only(f, variant="ema.v2"),
    "a plain file beside a variant": lambda f: add(f, "diffusion_pytorch_model.fp16.safetensors"),
    "a plain file beside variants": lambda f: [
        add(f, f"diffusion_pytorch_model.{name}.safetensors") for name in ("fp16", "ema")
    ],
    "a plain file beside a variant in shards": lambda f: shards(f, variant="fp16"),
    "shards without their index beside a file": lambda f: add(f, "diffusion_pytorch_model-00001-of-00002.safetensors"),
    "a pickle beside a file": lambda f: (f / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle"),
    "a file of another name beside it": lambda f: add(f, "model.safetensors"),
    "an editor's lock beside it": lambda f: (f / "unet" / f".#{WEIGHTS}").symlink_to("nowhere"),
    "a backup beside it": lambda f: add(f, f"{WEIGHTS}.orig"),
    "a readme": lambda f: (f / "README.md").write_text("a model"),
    "links": relinked,
    "a decoder": lambda f: autoencoder().save_pretrained(f / "vae"),
    "a decoder in shards": lambda f: vq_autoencoder().save_pretrained(f / "vqvae", max_shard_size="40KB"),
    "a folder of another network's name without one": lambda f: (f / "transformer").mkdir(),
}

REFUSED = {
    "a file and an index": (shards, r"holds both .*safetensors and .*index.json, of which only one can be meant"),
    "two variants": (
        lambda f: [only(f, variant="fp16"), add(f, "diffusion_pytorch_model.ema.safetensors", VARIANT)],
        r"holds both diffusion_pytorch_model.ema.safetensors and diffusion_pytorch_model.fp16",
    ),
    "a variant in both forms": (
        lambda f: [only(f, variant="fp16"), shards(f, variant="fp16")],
        r"holds both diffusion_pytorch_model.fp16.safetensors and .*index.fp16.json",
    ),
    "two networks": (lambda f: dit().save_pretrained(f / "transformer"), "holds both unet and transformer"),
    "a network around another": (lambda f: unet().save_pretrained(f), r"holds both unet and \."),
    "two schedulers": (
        lambda f: shutil.copy(f / "scheduler" / "scheduler_config.json", f),
        "holds both scheduler/scheduler_config.json and scheduler_config.json",
    ),
    "two decoders": (
        lambda f: [autoencoder().save_pretrained(f / "vae"), vq_autoencoder().save_pretrained(f / "vqvae")],
        "holds both vqvae and vae",
    ),
    "no weights": (lambda f: (f / "unet" / WEIGHTS).unlink(), f"weights file {WEIGHTS} is missing"),
    "weights of another name": (
        lambda f: (f / "unet" / WEIGHTS).rename(f / "unet" / "model.safetensors"),
        f"weights file {WEIGHTS} is missing; model.safetensors is of no name that diffusers reads",
    ),
    "a dead link": (
        lambda f: [(f / "unet" / WEIGHTS).unlink(), (f / "unet" / WEIGHTS).symlink_to("nowhere")],
        "this part of the weights is missing",
    ),
    "a folder of the file's name": (
        lambda f: [(f / "unet" / WEIGHTS).unlink(), (f / "unet" / WEIGHTS).mkdir()],
        r"cannot be read \(Is a directory\)",
    ),
    "a pickle": (
        lambda f: (f / "unet" / WEIGHTS).rename(f / "unet" / "diffusion_pytorch_model.bin"),
        "only pickled weights",
    ),
    "shards without an index": (
        lambda f: [
            only(f, max_shard_size=SHARDED),
            (f / "unet" / f"{WEIGHTS}.index.json").unlink(),
        ],
        "is a part of weights whose index",
    ),
    "an index of nothing": (lambda f: index(f, {}), "has no weight_map"),
    "an index that is a list": (lambda f: index(f, []), "expected a JSON object"),
    "an index of a list": (lambda f: index(f, {"weight_map": ["a"]}), "has no weight_map"),
    "an index out of the folder": (lambda f: index(f, {"weight_map": {"a": "../b"}}), "has no weight_map"),
    "an index of numbers": (lambda f: index(f, {"weight_map": {"a": 1}}), "has no weight_map"),
    "a lost shard": (
        lambda f: index(f, {"weight_map": {"a": "lost-00001-of-00001.safetensors"}}),
        "lost-00001-of-00001.safetensors: this part of the weights is missing",
    ),
    "data parallel": (prefixed("module."), r"names such as module.*DistributedDataParallel"),
    "compiled": (prefixed("_orig_mod."), r"names such as _orig_mod.*torch.compile"),
    "compiled within data parallel": (prefixed("module._orig_mod."), "names such as module"),
    "sharded data parallel": (prefixed("_fsdp_wrapped_module."), "FSDP"),
    "a trainer's": (prefixed("model."), "a trainer"),
    "an average": (prefixed("ema_model."), "an average of weights"),
    "an average beside": (beside("ema."), "an average of weights"),
    "truncated": (
        lambda f: (f / "unet" / WEIGHTS).write_bytes((f / "unet" / WEIGHTS).read_bytes()[:-9]),
        "truncated",
    ),
}
VARIANT = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("original") / "model", unet())


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def hashed(folder) -> str:
    return weights_hash(ModelConfig(name="mine", source="local", path=str(folder)))


def loaded(folder):
    """All that the network and the decoder are made of."""
    model, decoder = load_model(ModelSource("local", str(folder))), load_decoder_network(folder)
    facts = {**model.family.config, **(model.scheduler or {}), **({} if decoder is None else decoder.config)}
    tensors = [tensor for part in (model.network, decoder) if part is not None for tensor in part.state_dict().values()]
    return facts, torch.cat([tensor.flatten().double() for tensor in tensors])


def one_of_each(paths: list[Path]) -> list[Path]:
    """The paths, of many shards the first."""
    return [path for path in paths if "-of-" not in path.name or "-00001-" in path.name]


def alter(path: Path) -> None:
    """Change what a file says, and not its form."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": 1}))
    elif path.suffix == ".safetensors":
        weights = load_file(path)
        os.remove(path)
        save_file({name: value * 0.5 for name, value in weights.items()}, path, {"format": "pt"})
    else:
        path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("layout", READ)
def test_a_file_changes_the_id_if_and_only_if_it_changes_what_is_loaded(folder, layout):
    READ[layout](folder)
    id, (facts, tensors) = hashed(folder), loaded(folder)
    for path in one_of_each([path for path in sorted(folder.rglob("*")) if path.is_file()]):
        content = path.read_bytes()
        alter(path)
        new_facts, new_tensors = loaded(folder)
        same = new_facts == facts and torch.equal(new_tensors, tensors)
        if not path.name.endswith(".index.json") and ".index." not in path.name:
            assert (hashed(folder) == id) == same, path.name
        path.write_bytes(content)
    assert hashed(folder) == id


@pytest.mark.parametrize("layout", REFUSED)
def test_what_is_ambiguous_or_not_whole_is_refused_in_one_line(folder, layout):
    change, said = REFUSED[layout]
    change(folder)
    for refuse in (hashed, loaded):
        with pytest.raises(ModelError, match=said) as refused:
            refuse(folder)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 600


def test_a_variant_is_the_same_network_in_fewer_bytes(folder):
    _, before = loaded(folder)
    only(folder, variant="fp16")
    assert not (folder / "unet" / WEIGHTS).exists()
    assert (folder / "unet" / CONFIG).exists()
    torch.testing.assert_close(loaded(folder)[1], before, rtol=1e-3, atol=1e-4)


def test_weights_are_hashed_and_their_headers_read_once_until_they_change(folder, monkeypatch):
    opened = []

    def opening(path, *arguments, **options):
        opened.append(Path(path).name)
        return open(path, *arguments, **options)

    for module in (files, weight_files):
        monkeypatch.setattr(module, "open", opening, raising=False)
    time.sleep(0.2)  # what was written just now may be written again
    first = hashed(folder)
    assert opened.count(WEIGHTS) == 2
    assert hashed(folder) == first
    assert opened.count(WEIGHTS) == 2
    alter(folder / "unet" / WEIGHTS)
    assert hashed(folder) != first
