"""A precision plan that one method finds and others run under, on a tiny model, through whole jobs."""

import json

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import load_file
from tiny import save_pipeline, unet

from dmqbench.api import quantize_
from dmqbench.cli import main
from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.models.quantized import load, save
from dmqbench.results.result import Result
from dmqbench.tasks.run import carry_out as run_job

STAGES = ["outlier_allocation", "weight_range", "activation_range"]
TINY = (
    *("model=local", "dataset=none", "sampler.steps=4", "sampler.chunk=4", "tracker.mode=disabled", "diagnose=false"),
    *("metrics.names=[psnr,mse]", "metrics.samples=8", "metrics.pairs=8"),
    *("budget.trajectories=4", "budget.validation=4", "budget.samples=16", "budget.batch=8"),
    *("budget.scale_iterations=2", "budget.weight_iterations=2", "budget.activation_iterations=1"),
    "bits=w2a4",
)
FIND = ("method=mpq_dm", f"method.stages=[{','.join(STAGES)}]", "method.plus=true")


def network():
    """A network of few layers, with rows enough for bits of their own, in some more than in others."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return unet(class_entries=None, **blocks)


class Bench:
    """A tiny model, a store, and the folder of the job that found the plan."""

    def __init__(self, root):
        self.model = save_pipeline(root / "mine", network())
        self.store = root / "runs"
        self.found = self.run(*FIND)
        self.plan = json.loads((self.last_stage(self.found) / "plan.json").read_text())

    def overrides(self, *more):
        return [*TINY, f"model.path={self.model}", f"store.root={self.store}", *more]

    def run(self, *more):
        return Result.load(run_job(make_job(compose(self.overrides(*more)))))

    def stage(self, result, number):
        return self.store / "quantized" / result.stages[number][1]

    def last_stage(self, result):
        return self.stage(result, -1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("plans"))


def bits_of(plan):
    return {layer["name"]: layer["weight_bits"] for layer in plan["layers"]}


def test_the_plan_that_was_found_is_that_of_every_stage_and_of_what_was_computed(bench):
    [found] = [json.loads(path.read_text()) for path in bench.store.glob("quantized/*/findings.json")]
    expected = {layer["name"]: layer["bits"] for layer in found["layers"]}
    assert len({len(bits) for bits in expected.values()}) > 1
    for number, stage in enumerate(STAGES):
        plan = json.loads((bench.stage(bench.found, number) / "plan.json").read_text())
        assert bits_of(plan) == expected
        assert {layer["activation_bits"] for layer in plan["layers"]} == {32 if stage == "weight_range" else 4}
    state = load_file(bench.last_stage(bench.found) / "state.safetensors")
    for name, bits in expected.items():
        assert state[f"{name}.weight_quantizer.levels"].tolist() == [2**width for width in bits]
        assert "weight_quantizer.codes" not in state


def test_the_result_says_so(bench):
    plan = bench.found.run.plan
    rows = {name: len(bits) for name, bits in bits_of(bench.plan).items()}
    state = load_file(bench.model / "unet" / "diffusion_pytorch_model.safetensors")
    sizes = {name: state[f"{name}.weight"].numel() for name in rows}
    bits = sum(sum(bits) / rows[name] * sizes[name] for name, bits in bits_of(bench.plan).items())
    assert plan.mean_weight_bits == pytest.approx(bits / sum(sizes.values()), abs=1e-6)
    assert 2 < plan.mean_weight_bits < 2.1
    assert (bench.found.label, bench.found.given_plan) == ("mpq_dm no low_rank_tuning, plus=true", None)


@pytest.mark.parametrize("method", ["rtn", "dmq"])
def test_another_method_runs_under_it(bench, method):
    given = bench.run(f"method={method}", f"bits.plan={bench.found.folder}")
    own = json.loads((bench.last_stage(given) / "plan.json").read_text())
    assert bits_of(own) == bits_of(bench.plan)
    state = load_file(bench.last_stage(given) / "state.safetensors")
    for name, bits in bits_of(bench.plan).items():
        assert state[f"{name}.weight_quantizer.levels"].tolist() == [2**width for width in bits]
        codes = state.get(f"{name}.weight_quantizer.codes")
        assert codes is None or (codes.flatten(1).amax(1) < state[f"{name}.weight_quantizer.levels"]).all()
    plan = bench.found.run.plan
    assert given.run.plan == plan
    assert given.label == f"{method} (plan {plan.hash[:8]})"
    plain = bench.run(f"method={method}")
    assert (plain.run.plan, plain.label) == (None, method)
    assert given.value("mse") != plain.value("mse")
    for rule in ("all_layers", "paper_code"):
        assert getattr(given.cost.size_mib, rule) > getattr(plain.cost.size_mib, rule)
    assert given.cost.bops == bench.found.cost.bops > plain.cost.bops


def test_a_killed_job_goes_on_under_the_plan_that_it_found(bench):
    """What is made again from the first stage alone is the same."""
    folder = bench.last_stage(bench.found)
    before = (folder / "state.safetensors").read_bytes()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    bench.run(*FIND)
    assert (folder / "state.safetensors").read_bytes() == before


def test_a_pipeline_of_ones_own_is_quantized_under_it_and_saved(bench, tmp_path):
    pipe = DDIMPipeline(network(), DDIMScheduler(clip_sample=False))
    overrides = [*(each for each in TINY if each.startswith("budget")), f"bits.plan={bench.last_stage(bench.found)}"]
    quantize_(pipe, method="rtn", bits="w2a4", steps=4, store=tmp_path / "store", overrides=overrides)
    assert bits_of(pipe.unet.dmqbench.plan) == bits_of(bench.plan)
    assert pipe.unet.dmqbench.bits["plan"] == bench.found.run.plan.hash
    save(pipe, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(draw(pipe), draw(again))


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="pt").images


def test_what_only_the_traced_network_shows_is_refused_before_anything_is_made(bench, tmp_path, capsys):
    plan = json.loads((bench.last_stage(bench.found) / "plan.json").read_text())
    lacking = plan["layers"].pop(3)["name"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    more = bench.overrides("method=rtn", f"bits.plan={tmp_path}", f"store.root={tmp_path / 'runs'}")
    status = main(more)
    output, errors = capsys.readouterr()
    assert (status, output) == (2, "")
    [line] = errors.strip().splitlines()
    assert f"bits.plan={tmp_path} does not fit bits.scope=common: the precision plan lacks layer {lacking}" in line
    assert not (tmp_path / "runs").exists()
