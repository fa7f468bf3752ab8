"""A denoiser of the user's own goes through everything that diffusers' networks go through, and is told from others."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from docs.test_readme import ROOT, blocks
from served import TINY
from tiny import smallest_unet
from torch import nn

from dmqbench import api
from dmqbench.api import Conditions, ConfigError, Denoiser, ModelError, evaluate, quantize_, save
from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.config.plugins import own_names
from dmqbench.models.own import own_topology
from dmqbench.models.own_blocks import own_blocks
from dmqbench.models.topology import trace
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.serving import ServingError
from dmqbench.tasks.run import carry_out

FEW = (*TINY, "budget.scale_iterations=2", "metrics.samples=4", "metrics.pairs=4")
METHODS = [name for name in own_names("method") if name != "foreign"]


class ConvNet(nn.Module):
    """A U-Net that diffusers had no part in: in-place activations, a skip, and a convolution of its own kind."""

    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 0.5

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))
        self.enter, self.own = nn.Conv2d(1, 8, 3, padding=1), self.Own(8, 8, 1)
        self.down, self.middle = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.act = nn.Upsample(scale_factor=2), nn.ReLU(inplace=True)
        self.join, self.leave = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, time):
        skip = self.enter(x)
        inner = self.act(self.down(skip)) + self.time(time[:, None])[:, :, None, None]
        inner = self.own(self.act(self.middle(inner)))
        return self.leave(self.act(self.join(torch.cat([self.up(inner), skip], dim=1))))


class TokenNet(nn.Module):
    """torch's own transformer over 4×4 patches, guided by a label; its fused kernel would pass its layers by."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 16), nn.Linear(16, 4)
        self.label, self.time = nn.Embedding(11, 16), nn.Linear(1, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, activation="gelu")
        self.block = nn.Sequential(layer)

    def forward(self, time, x, label):
        tokens = self.enter(x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(x), 16, 4))
        tokens = self.block(tokens + (self.label(label) + self.time(time[:, None] / 1000))[:, None])
        return self.leave(tokens).reshape(len(x), 1, 4, 4, 2, 2).transpose(3, 4).reshape(x.shape)


class VectorNet(nn.Module):
    """Linear layers on vectors, those of the sample and that of the timestep."""

    def __init__(self):
        super().__init__()
        self.time, self.enter = nn.Linear(1, 8), nn.Linear(64, 8)
        self.middle, self.leave = nn.Linear(8, 8), nn.Linear(8, 64)

    def forward(self, x, time):
        inner = torch.relu(self.enter(x.flatten(1)) + self.time(time[:, None].float()))
        return self.leave(torch.relu(self.middle(inner))).reshape(x.shape)


def made(kind, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def conv(network=None, **changes):
    parts = {"call": lambda network, x, timestep, cond: network(x, timestep / 1000), **changes}
    return Denoiser("conv", network or made(ConvNet), (1, 8, 8), DDIMScheduler(clip_sample=False), **parts)


def tokens(**changes):
    given = Conditions({"label": torch.arange(10)}, null={"label": torch.tensor(10)})
    parts = {"conditions": given, **changes}
    call = lambda network, x, timestep, cond: network(timestep, x, label=cond["label"])  # noqa: E731
    return Denoiser("tokens", made(TokenNet), (1, 8, 8), DDIMScheduler(clip_sample=False), call, **parts)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


def measured(denoiser, store, method="rtn", bits="w4a8", *overrides):
    folder = evaluate(denoiser, method, bits, steps=4, store=store, overrides=(*FEW, *overrides))
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method, store):
    found = measured(conv(), store, method), measured(tokens(), store, method, "w4a8", "sampler.guidance=2")
    for result, layers in zip(found, (3, 2), strict=True):
        quantized = method != "fp"
        assert result["cost"]["quantized_layers"] == quantized * layers
        assert result["config"]["model"]["path"] is None  # what lies nowhere
        assert not quantized or 15 < result["metrics"]["psnr"]["value"] < 100
    assert [result["model"] for result in found] == ["conv", "tokens"]


def test_it_computes_what_the_same_network_does_as_a_pipeline(tmp_path):
    """Whatever is known of diffusers' own network from its files must be found in the object as well."""
    pipe = DDIMPipeline(smallest_unet(class_entries=None), DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(tmp_path / "model")
    local = (
        "model=local",
        f"model.path={tmp_path / 'model'}",
        "trainer=cpu",
        f"store.root={tmp_path / 'files'}",
        "tracker=disabled",
    )
    words = ("method=q_diffusion", "bits=w3a8", "bits.ranges=step", "sampler.steps=4", *FEW)
    expected = json.loads((carry_out(make_job(compose([*local, *words]))) / "result.json").read_text())

    call = lambda network, x, timestep, cond: network(x, timestep).sample  # noqa: E731
    own = Denoiser("unet", copy.deepcopy(pipe.unet), (1, 8, 8), pipe.scheduler, call)
    found = measured(own, tmp_path / "own", "q_diffusion", "w3a8", "bits.ranges=step")
    for name in ("psnr", "mse"):
        assert found["metrics"][name]["value"] == expected["metrics"][name]["value"]
    assert {**found["cost"], "model": None} == {**expected["cost"], "model": None}

    options = {"method": "q_diffusion", "bits": "w3a8", "ranges": "step", "steps": 4, "overrides": TINY}
    quantize_(pipe, store=tmp_path / "files", **options)
    quantize_(own, store=tmp_path / "own", **options)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own.network(x, 750).sample, pipe.unet(x, 750).sample)


def test_its_network_is_quantized_in_place_and_told_its_timestep(store):
    denoiser = tokens()
    before = copy.deepcopy(denoiser.network).eval()
    quantize_(denoiser, "rtn", "w4a6", steps=4, ranges="step", store=store, overrides=TINY)
    assert list(quant_layers(denoiser.network)) == ["block.0.linear1", "block.0.linear2"]
    assert not denoiser.network.training
    x, cond = torch.randn(2, 1, 8, 8), {"label": torch.tensor([3, 10])}
    with torch.no_grad():
        error = denoiser.call(denoiser.network, x, torch.tensor([750, 0]), cond) - before(
            torch.tensor([750, 0]), x, cond["label"]
        )
        assert 0 < error.abs().max() < 0.5
        by_name = denoiser.network(x=x, label=cond["label"], time=torch.tensor([750, 0]))
        assert torch.equal(by_name, denoiser.call(denoiser.network, x, torch.tensor([750, 0]), cond))
        with pytest.raises(ServingError, match="timestep 749 was not calibrated"):
            denoiser.call(denoiser.network, x, torch.tensor([749, 0]), cond)
    with pytest.raises(ModelError, match="tokens: a network of your own has no class that load could find"):
        save(denoiser, store / "saved")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="quantized already"):
        quantize_(denoiser, "rtn", "w4a6", store=store)


def test_outliers_are_planted_where_a_network_is_of_known_blocks(store):
    unet = smallest_unet(class_entries=None)
    by_steps = {"scheduler": DDIMScheduler(clip_sample=False), "sample_shape": (1, 8, 8)}
    denoiser = Denoiser("known", unet, call=lambda net, x, t, _: net(x, t, return_dict=False)[0], **by_steps)
    before, weight = unet(torch.ones(1, 1, 8, 8), 750).sample, unet.mid_block.attentions[0].group_norm.weight.clone()
    quantize_(denoiser, "rtn", "w8a8", steps=4, store=store, overrides=(*FEW, "model.planted.dose=32"))
    assert (unet.mid_block.attentions[0].group_norm.weight / weight).unique().tolist() == [1.0, 32.0]
    assert 0 < (unet(torch.ones(1, 1, 8, 8), 750).sample - before).abs().max() < 0.2
    with pytest.raises(ConfigError, match="has no channels that can be rescaled exactly"):
        quantize_(conv(), "rtn", "w8a8", steps=4, store=store, overrides=(*FEW, "model.planted.dose=32"))


def test_a_network_in_bfloat16_is_measured_and_quantized_in_it(store):
    call = lambda network, x, timestep, cond: network(x, (timestep / 1000).to(x))  # noqa: E731
    narrow = conv(made(ConvNet).to(torch.bfloat16), call=call)
    usual, own = (measured(denoiser, store, "q_diffusion") for denoiser in (conv(), narrow))
    assert own["config"]["model"]["dtype"] == "bfloat16"
    assert abs(own["metrics"]["psnr"]["value"] - usual["metrics"]["psnr"]["value"]) < 3
    with pytest.raises(ConfigError, match=r"model\.dtype=float32 is that of the network itself"):
        measured(narrow, store, "rtn", "w8a8", "model.dtype=float32")
    x, timestep = torch.randn(2, 1, 8, 8).to(torch.bfloat16), torch.tensor([750, 0])
    with torch.no_grad():
        before = narrow.call(narrow.network.eval(), x, timestep, {})
        quantize_(narrow, "rtn", "w8a8", steps=4, store=store, overrides=TINY)
        after = narrow.call(narrow.network, x, timestep, {})
    assert after.dtype == torch.bfloat16 and 0 < (after - before).abs().max() < 0.1


def test_vectors_of_the_sample_are_no_embedding_and_flows_are_followed(store):
    denoiser = Denoiser("vectors", made(VectorNet), (1, 8, 8), FlowMatchEulerDiscreteScheduler())
    result = measured(denoiser, store)
    assert result["cost"]["quantized_layers"] == 1  # between the first and the last
    assert result["config"]["sampler"]["name"] == "flow"


def test_what_is_in_the_store_is_of_the_same_weights_conditions_and_function(store):
    def bank(denoiser):
        return measured(denoiser, store)["artifacts"]["trajectories"]

    known = bank(tokens())
    others = [
        tokens(conditions=Conditions({"label": torch.arange(9)}, null={"label": torch.tensor(10)})),
        replace(tokens(), network=made(TokenNet, seed=1)),
        replace(tokens(), name="others"),
    ]
    assert len({known, *map(bank, others)}) == 4
    edited = tokens()
    edited.network.get_submodule("block.0.norm1").eps = 1.0  # type: ignore[assignment]
    with pytest.raises(ModelError, match="something else than when the trajectories in the store were made"):
        bank(edited)


class Level(nn.Module):
    """One block of each kind that is one, and of each that is none."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x, table=None):
            return x + self.mix(x if table is None else x + table)

    class InPlace(Block):
        def forward(self, x, table=None):
            x += self.mix(x)
            return x

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(3, 8))
        self.plain = nn.ModuleList([self.Block(), self.Block()])
        self.named = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "one": nn.Linear(8, 8)})
        self.other = nn.ModuleList([self.Block(), self.InPlace(), self.Block(), self.Block()])

    def forward(self, x):
        for block in self.plain:
            x = block(x)
        x = self.named["one"](self.named["mlp"](x))
        tokens = x[:, None].expand(-1, 3, -1)
        tabled, in_place, twice, flat = self.other
        tokens = in_place(twice(twice(tabled(tokens, self.table))).clone())
        return flat(tokens.flatten(0, 1))


def test_blocks_of_ones_own_run_once_over_the_samples():
    levels = nn.Sequential(made(Level), nn.ReLU())
    found = own_blocks(levels, lambda network, batch: network(torch.randn(batch, 8)))
    assert found == {"0.plain.0", "0.plain.1", "0.named.mlp"}
    topology = trace(levels, (torch.randn(2, 8),), {}, blocks=found)
    kinds = {unit.name: (unit.kind, len(unit.layers)) for unit in topology.units}
    assert kinds["0.plain.0"] == ("block", 2) and kinds["0.other.0.mix.0"] == ("layer", 1)
    assert [unit.name for unit in own_topology(tokens())[0].units if unit.kind == "block"] == ["block.0"]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x, time):
        return self.layer(self.layer(x))


class InPlace(Twice):
    def forward(self, x, time):
        inner = self.layer(x)
        inner += x
        return inner


class Noisy(Twice):
    def forward(self, x, time):
        return self.layer(x) + torch.randn_like(x)


REFUSED = {
    "twice": ({"network": Twice()}, "layer runs twice in one call"),
    "in place": ({"network": InPlace()}, "what layer reads or puts out is changed in place after it: write x = x"),
    "noisy": ({"network": Noisy()}, "predicts something else the second time"),
    "another": ({"call": lambda n, x, t, c: made(ConvNet)(x, t / 1000)}, "runs no nn.Conv1d, nn.Conv2d, nn.Linear of"),
    "half": ({"network": made(ConvNet).half()}, r"its network is in float16 \(allowed: float32, bfloat16\)"),
    "a layer": ({"network": nn.Linear(8, 8)}, "give a module that has layers within"),
    "no module": ({"network": "net"}, "its network is a str"),
    "no float": ({"network": nn.Sequential(nn.ReLU())}, "no float at all"),
    "compiled": ({"network": torch.compile(made(ConvNet), backend="eager")}, "give the module that was compiled"),
    "tuple": ({"call": lambda n, x, t, c: (n(x, t / 1000),)}, "returns a tuple; let call return the prediction"),
    "shape": ({"sample_shape": (1, 7, 8)}, "a call of it fails: RuntimeError"),
    "dimensions": ({"sample_shape": (1, 8)}, r"allowed are three whole numbers \(C, H, W\)"),
    "channels": ({"call": lambda n, x, t, c: n(x, t / 1000)[:, :0]}, r"returns float32 \[2, 0, 8, 8\]; allowed is"),
    "failing": ({"call": lambda n, x, t, c: n(x)}, "a call of it fails: TypeError"),
    "infinite": ({"call": lambda n, x, t, c: n(x, t / 0)}, "what it predicts is not finite"),
    "scheduler": ({"scheduler": 1000}, "its scheduler is a int; give one of diffusers"),
    "betas": ({"scheduler": DDIMScheduler(trained_betas=[0.1] * 10)}, "cannot be followed"),
    "rows": ({"conditions": Conditions({"a": torch.ones(2), "b": torch.ones(3)})}, "other numbers of rows: a 2, b 3"),
    "no rows": ({"conditions": Conditions({"a": torch.ones(0)})}, "no tensor"),
    "null": ({"conditions": Conditions({"a": torch.ones(2)}, null={"a": torch.ones(2)})}, "conditions.null are of"),
    "image": ({"conditions": Conditions({"image": torch.ones(2)})}, "call it otherwise"),
    "name": ({"name": "a/b"}, "a denoiser's name: 'a/b' cannot be a file name"),
    "taken": ({"name": "digits"}, "the name of a model of dmqbench"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_untouched(case, tmp_path):
    changes, problem = REFUSED[case]
    denoiser = replace(conv(), **changes)
    with pytest.raises(ModelError, match=problem) as refusal:
        evaluate(denoiser, "rtn", "w4a8", store=tmp_path)
    assert len(str(refusal.value).splitlines()) == 1
    if isinstance(denoiser.network, nn.Module):
        assert denoiser.network.training and not quant_layers(denoiser.network)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("sampler.guidance=2",), "sampler.guidance=2.0 needs null conditions, and conv has none"),
        (("task=cost",), "task=cost is for the command line only"),
        (("model.classes=3",), "model.classes=3 is for models in files"),
        (("model.path=x",), "model.path=x is the pipeline's own here"),
        (("task_kind=edit", "dataset=digits"), "task_kind=edit|inputs.images"),
        (("method=foreign", "method.path=x"), "method=foreign is for models in files|method.path=x cannot be used"),
    ],
)
def test_settings_of_files_are_refused(overrides, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        measured(conv(), tmp_path, "rtn", "w4a8", *overrides)


def test_a_latent_is_quantized_and_not_evaluated_and_a_source_alone_is_nothing(tmp_path):
    latent = conv(call=lambda network, x, timestep, cond: network(x[:, :1], timestep / 1000).expand_as(x))
    latent = replace(latent, sample_shape=(4, 8, 8))
    with pytest.raises(ConfigError, match=r"sample_shape=\[4,8,8\] is no image"):
        measured(latent, tmp_path)
    untold = replace(latent, call=lambda network, x, timestep, cond: network(x[:, :1], timestep / 500).expand_as(x))
    with pytest.raises(ModelError, match="not given the timestep as it is"):
        quantize_(untold, "rtn", "w4a8", steps=2, ranges="step", store=tmp_path, overrides=TINY)
    assert not quant_layers(untold.network) and untold.network.training
    with pytest.raises(ModelError, match="something else than when"):
        quantize_(latent, "rtn", "w4a8", steps=2, store=tmp_path, overrides=TINY)
    latent = replace(latent, name="latent")
    quantize_(latent, "rtn", "w4a8", steps=2, store=tmp_path, overrides=TINY)
    assert len(quant_layers(latent.network)) == 3
    words = ("model=local", "model.source=own", f"model.path={ROOT / 'dmqbench/zoo/weights/digits'}")
    with pytest.raises(ConfigError, match="source=own is for a script"):
        make_job(compose([*words, "method=rtn", "bits=w4a8"]))


def test_the_script_of_the_guide_runs(tmp_path, monkeypatch):
    script = blocks(ROOT / "docs" / "guides" / "scripts.md", "python")[-1]
    assert len([line for line in script.splitlines() if line]) <= 20
    few = [*FEW, "sampler.guidance=2", "sampler.steps=2"]
    monkeypatch.setattr(api, "evaluate", lambda *args, **given: evaluate(*args, **{**given, "overrides": few}))
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path))
    known = {}
    exec(script, known)
    assert (known["result"] / "result.json").is_file()
