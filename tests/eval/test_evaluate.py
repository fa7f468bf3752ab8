"""The evaluator: which metrics, against what, under which protocol, and what is unavailable."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.config.names import STAND_IN
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval import registry
from dmqbench.eval.evaluate import Evaluator, Floors, SampleSet
from dmqbench.eval.features import Extractor, extract
from dmqbench.eval.protocol import Protocol, entries_of
from dmqbench.eval.registry import PAIRED_METRICS, SET_METRICS

SETTINGS = MetricsConfig(names=("psnr",), pairs=8, samples=64)
PROTOCOL = Protocol(
    metric="shared", version=1, tool="dmqbench", rounding="uint8", n=64, seed=0, sampler="ddim", timesteps=(1, 0),
    eta=0.0, guidance=1.0, chunk=32, engine="simulate", scope="common",
)  # fmt: skip


def samples(seed: int, count: int = 64, id: str | None = None) -> SampleSet:
    generator = torch.Generator().manual_seed(seed)
    state = torch.rand(count, 1, 16, 16, generator=generator) * 2 - 1
    return SampleSet(id or f"samples-{seed}", ((state + 1) * 127.5).round().to(torch.uint8), state)


def slightly(other: SampleSet, amount: int = 3) -> SampleSet:
    images = (other.images.int() + amount).clamp(0, 255).to(torch.uint8)
    return SampleSet("slightly", images, None if other.state is None else other.state + amount / 127.5)


def network(images):
    """Means over rows of quarters of the image: four features, and what a classifier would make of them."""
    pool = images.float().flatten(1).unflatten(1, (4, -1)).mean(2) / 255
    return {"pool": pool, "spatial": pool.flip(1), "logits": 40 * pool}


@pytest.fixture
def asked(monkeypatch):
    """Counts how often features are asked for; every set metric measures in the little network."""
    counted: Counter[str] = Counter()

    def extractor_for(metric, settings, device):
        name = f"{STAND_IN}little" if metric == "kid" else "little"
        return Extractor(name, "abc", "fake", network, ("pool", "spatial", "logits"), "none")

    monkeypatch.setattr("dmqbench.eval.evaluate.extractor_for", extractor_for)
    return counted


@pytest.fixture
def evaluator(asked, monkeypatch):
    def features(samples, extractor):
        asked[samples.id] += 1
        return extract(extractor, samples.images)

    small = {name: replace(metric, least=0) for name, metric in SET_METRICS.items()}
    monkeypatch.setattr(registry, "SET_METRICS", small)
    fp = samples(0, id="fp")
    return Evaluator(
        protocol=PROTOCOL,
        full_precision=fp,
        full_precision_id="fpfpfpfp",
        dataset="digits",
        pairs=8,
        settings=SETTINGS,
        features=features,
        floor_of=lambda about, measure: measure(),
        floors=Floors(slightly(fp, 1), samples(1, id="other")),
    )


def test_every_known_metric_is_registered():
    assert {*PAIRED_METRICS, *SET_METRICS} == {*OWN_METRICS}
    assert {*PAIRED_METRICS} == {name for name, facts in OWN_METRICS.items() if facts.over != "samples"}
    assert all(metric.version == OWN_METRICS[name].version for name, metric in SET_METRICS.items())


def test_paired_metrics_take_the_first_pairs_and_have_a_numerical_floor(evaluator):
    found = evaluator.evaluate(slightly(evaluator.full_precision), ["psnr", "ssim", "mse"])
    for name in ("psnr", "ssim", "mse"):
        assert found.measurements[name].n == len(found.per_image[name]) == 8
        assert found.measurements[name].floor.kind == "numerical"
        assert entries_of(found.measurements[name].protocol)["reference"] == "fp@fpfpfpfp"
    assert found.measurements["psnr"].floor.value > found.measurements["psnr"].value


def test_the_ground_truth_is_compared_with_where_there_is_one(evaluator):
    truth = SampleSet("truthful", samples(5).images[:8])
    found = replace(evaluator, truth=truth).evaluate(slightly(truth), ["psnr_truth"]).measurements["psnr_truth"]
    clamped = truth.images.int().add(3).clamp(max=255) - truth.images.int()
    expected = 10 * torch.log10(255**2 / clamped.double().square().flatten(1).mean(1))
    assert found.value == pytest.approx(expected.mean().item())
    assert (found.n, found.floor) == (8, None)
    assert entries_of(found.protocol)["reference"] == "truth@truthful"
    without = evaluator.evaluate(samples(2), ["psnr_truth", "psnr"])
    assert "no ground truth" in without.unavailable["psnr_truth"] and "psnr" in without.measurements
    assert without.missing_weights == []


def test_set_metrics_take_all_samples_and_have_a_floor_of_another_seed(evaluator):
    found = evaluator.evaluate(samples(2), ["fid2fp32", "sfid", "fid", "precision", "recall"])
    assert not found.unavailable
    for measurement in found.measurements.values():
        assert (measurement.n, measurement.floor.kind) == (64, "other_seed")
        assert entries_of(measurement.protocol)["extractor"] == "little@abc"
    assert entries_of(found.measurements["fid"].protocol)["reference"].startswith("digits@")
    floor = evaluator.evaluate(evaluator.floors.other_seed, ["fid2fp32"]).measurements["fid2fp32"]
    assert floor.value == pytest.approx(found.measurements["fid2fp32"].floor.value)


def test_a_score_of_the_samples_alone_names_no_reference(evaluator):
    many = replace(evaluator, protocol=replace(PROTOCOL, n=1000), floors=None)
    score = many.evaluate(samples(2, 1000), ["is"]).measurements["is"]
    assert score.higher_is_better
    assert "reference" not in entries_of(score.protocol)


def test_metrics_of_one_statistic_share_its_computation(evaluator, asked):
    evaluator.evaluate(samples(3), ["precision"])
    alone = asked["samples-3"]
    evaluator.evaluate(samples(4), ["precision", "recall"])
    assert asked["samples-4"] == alone


def test_what_a_stand_in_gave_is_called_so(evaluator):
    found = evaluator.evaluate(samples(2), ["kid", "fid"])
    assert found.measurements.keys() == {"stand-in-kid", "fid"}
    assert "extractor=stand-in-little@" in found.measurements["stand-in-kid"].protocol


@pytest.mark.parametrize(
    "metric, changes, reason",
    [
        ("psnr", {"full_precision": None}, "no full-precision samples"),
        ("fid2fp32", {"full_precision": None}, "no full-precision samples"),
        ("fid", {"dataset": "none"}, "dataset"),
        ("clip", {}, "no prompts"),
        ("lpips", {"settings": replace(SETTINGS, download=False, weights="nowhere")}, "alexnet-owt-7be5be79.pth"),
    ],
)
def test_what_cannot_be_measured_is_listed_with_the_reason(evaluator, metric, changes, reason):
    evaluator = replace(evaluator, floors=None, **changes)
    found = evaluator.evaluate(samples(2), [metric, "mse"])
    assert reason in found.unavailable[metric]
    assert "\n" not in found.unavailable[metric]
    assert metric not in found.measurements
    assert ("mse" in found.measurements) == (evaluator.full_precision is not None)


def test_samples_without_a_state_have_images_only(evaluator):
    foreign = replace(slightly(evaluator.full_precision), state=None)
    found = evaluator.evaluate(foreign, ["psnr", "mse"])
    assert "psnr" in found.measurements
    assert "no final sampler state" in found.unavailable["mse"]


def test_a_set_of_ten_is_too_small_for_a_frechet_distance(evaluator):
    few = replace(evaluator, protocol=replace(PROTOCOL, n=7), floors=None)
    found = few.evaluate(samples(2).first(7), ["fid2fp32"])
    assert "at least 8" in found.unavailable["fid2fp32"]
