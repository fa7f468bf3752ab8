import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.eval.protocol import Protocol
from dmqbench.eval.statistics import group_edges
from dmqbench.results.compare import compare
from dmqbench.results.over_seeds import over_seeds
from dmqbench.results.result import Result

PROTOCOL = Protocol(
    **{"metric": "psnr", "version": 1, "tool": "dmqbench", "rounding": "uint8", "n": 64, "seed": 0, "sampler": "ddim"},
    **{"timesteps": (9, 1), "eta": 0.0, "guidance": 1.0, "chunk": 32, "engine": "simulate", "scope": "common"},
)
OPPOSITE = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}


def result(metrics: dict, method: str = "rtn", per_image: dict | None = None, **entries) -> Result:
    record = {"method": method, "model": "digits", "bits": "w4a6", "metrics": metrics, "scope": "common", **entries}
    made = Result.from_json(record, Path("nowhere"))
    made.__dict__["per_image"] = per_image or {}  # a cached property: what per_image.json would hold
    return made


def paired(values, method="rtn", metric="psnr", higher=True, floor=None, protocol=PROTOCOL, **entries) -> Result:
    values = list(values)
    numbers = [value for value in values if value is not None]
    protocol = replace(protocol, metric=metric, n=len(values))
    record = {"value": float(np.mean(numbers)) if numbers else None, "ci95": None, "n": len(values)}
    record |= {"protocol": protocol.id, "higher_is_better": higher, "exact": not numbers}
    if floor is not None:
        record["floor"] = {"kind": "numerical", "value": floor, "n": len(values), "ci95": [floor - 0.5, floor + 0.5]}
    return result({metric: record}, method, {metric: values}, **entries)


def of_set(values, method="rtn", groups=8, **entries) -> Result:
    """A set whose statistic is a mean."""
    values = np.asarray(values)
    edges = group_edges(len(values), groups)
    replicates = [float(np.delete(values, slice(low, high)).mean()) for low, high in pairwise(edges)]
    protocol = replace(PROTOCOL, metric="fd_digits", n=len(values)).id
    record = {"value": float(values.mean()), "ci95": None, "n": len(values), "protocol": protocol}
    record |= {"higher_is_better": False, "extra": {"replicates": replicates}}
    return result({"fd_digits": record}, method, **entries)


def noise(n: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_better_worse_and_cannot_tell_with_this_n():
    low, high = paired(20 + noise()), paired(31.8 + noise() + 0.5 * noise(64, 1), "q_diffusion")
    better = compare(high, low, "psnr")
    assert better.sentence.startswith("q_diffusion w4a6 better than rtn w4a6 in psnr: +11.8 dB [11.7, 11.")
    assert better.sentence.endswith("], 64 pairs")
    assert compare(low, high, "psnr").sentence.startswith("rtn w4a6 worse than q_diffusion w4a6 in psnr: -11.8 dB [-1")
    unclear = compare(paired(20 + noise() + 5 * noise(64, 1), "q_diffusion"), low, "psnr")
    assert unclear.verdict == "cannot tell"
    assert unclear.sentence.startswith("cannot tell q_diffusion w4a6 from rtn w4a6 in psnr with 64 pairs: ")


def test_sets_compare_by_their_replicates():
    base = noise()
    found = compare(of_set(base + 1, "q_diffusion"), of_set(base + 1.5 + 0.1 * noise(64, 1)), "fd_digits")
    assert found.verdict == "better"
    assert found.difference == pytest.approx(-0.5, abs=0.05)
    assert found.ci95 is not None and found.ci95.high - found.ci95.low < 0.2
    assert found.sentence.endswith("64 samples")


def test_without_values_or_replicates_nothing_can_be_told():
    bare = paired(20 + noise())
    bare.__dict__["per_image"] = {"psnr": [1.0, 2.0]}
    found = compare(bare, paired(10 + noise()), "psnr")
    assert (found.verdict, found.ci95, found.reason) == ("cannot tell", None, "the values per image are not kept")
    assert found.difference == pytest.approx(10)
    assert "+10" in found.sentence and found.sentence.endswith("the values per image are not kept")
    old = of_set(noise())
    old.measurements["fd_digits"] = replace(old.measurements["fd_digits"], extra={})
    assert compare(old, of_set(noise()), "fd_digits").reason == "the values without each group of samples are not kept"
    assert compare(of_set(noise(), groups=4), of_set(noise()), "fd_digits").reason == "the groups of samples differ"


def test_exact_and_identical_results():
    exact, other = paired([None] * 64, "fp", bits="w32a32"), paired(40 + noise())
    found = compare(exact, other, "psnr")
    assert (found.verdict, found.difference) == ("better", None)
    assert found.sentence == "fp w32a32 better than rtn w4a6 in psnr: 64 pairs, the first is identical to the reference"
    assert compare(other, exact, "psnr").verdict == "worse"
    both = compare(exact, paired([None] * 64, "q_diffusion"), "psnr")
    assert (both.verdict, both.reason) == ("cannot tell", "both are identical to the reference")
    twins = compare(other, paired(40 + noise(), "q_diffusion"), "psnr")
    assert (twins.verdict, twins.difference, twins.reason) == ("cannot tell", 0, "identical")
    assert compare(of_set(noise()), of_set(noise(), "fp"), "fd_digits").reason == "identical"


def test_identical_pairs_may_not_speak_against_the_others():
    values = (40 + noise()).tolist()
    some = [None] * 8 + values[8:]
    better = compare(paired(some), paired([value - 3 for value in values], "q_diffusion"), "psnr")
    assert better.verdict == "better"
    assert better.reason is not None and better.reason.startswith("8 pairs left out")
    against = compare(paired(some), paired([value + 3 for value in values], "q_diffusion"), "psnr")
    assert against.verdict == "cannot tell"
    assert against.reason is not None and against.reason.endswith("which speak against the others")


def test_two_results_at_the_numerical_floor_do_not_differ():
    a, b = paired(60 + 0.1 * noise(), floor=59.0), paired(62 + 0.1 * noise(), "q_diffusion", floor=59.0)
    found = compare(a, b, "psnr")
    assert (found.verdict, found.reason) == ("cannot tell", "both at the numerical floor")
    assert found.difference == pytest.approx(-2, abs=0.1)
    assert compare(a, paired(30 + 0.1 * noise(), floor=59.0), "psnr").verdict == "better"
    errors = [paired(level + 1e-3 * noise(), metric="mse", higher=False, floor=1.0) for level in (0.2, 1.4, 1.6)]
    assert compare(errors[0], errors[1], "mse").verdict == "cannot tell"
    assert compare(errors[0], errors[2], "mse").verdict == "better"


def test_different_protocols_are_refused_in_one_line_that_names_the_entries():
    a = paired(20 + noise())
    for change, said in (
        ({"eta": 1.0}, r"psnr: values of different protocols do not compare \(eta: 0 \| 1\)"),
        ({"scope": "paper"}, r"scope: common \| paper"),
        ({"reference_hash": "1234", "reference": "fp"}, r"reference: - \| fp@1234"),
        ({"eta": 1e-9}, "eta"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            compare(a, paired(20 + noise(), protocol=replace(PROTOCOL, **change)), "psnr")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"n: 64 \| 32"):
        compare(a, paired(20 + noise(32)), "psnr")
    with pytest.raises(ValueError, match=r"model: digits \| scenes"):
        compare(a, paired(20 + noise(), model="scenes"), "psnr")
    with pytest.raises(ValueError, match="rtn w4a6 has no ssim; it has psnr"):
        compare(a, a, "ssim")


def test_full_precision_has_no_scope_and_foreign_samples_no_settings():
    ours = paired(20 + noise())
    unscoped = paired(30 + noise(64, 1), "fp", protocol=replace(PROTOCOL, scope=None))
    assert compare(ours, unscoped, "psnr").verdict == "worse"
    with pytest.raises(ValueError, match="scope"):
        compare(ours, paired(30 + noise(64, 1), protocol=replace(PROTOCOL, scope=None)), "psnr")
    told = replace(PROTOCOL, scope=None, sampler=None, unknown=("scope", "sampler"))
    foreign = paired(30 + noise(64, 1), "foreign", protocol=told, name="theirs", bits="unknown")
    found = compare(foreign, ours, "psnr")
    assert found.verdict == "better"
    assert found.sentence.startswith("theirs better than rtn w4a6 in psnr: ")
    assert found.sentence.endswith("not all of the protocol is known (sampler, scope)")


exact = st.integers(-200, 200).map(lambda quarters: quarters / 4)  # sums of these round nothing
values = st.lists(exact, min_size=8, max_size=16)


@given(st.data(), values, st.booleans())
def test_swapping_turns_the_verdict_round(data, first, higher):
    second = data.draw(st.permutations(first).map(lambda order: [value + 1 for value in order]))
    for make, metric in ((lambda v: paired(v, higher=higher), "psnr"), (of_set, "fd_digits")):
        there, back = compare(make(first), make(second), metric), compare(make(second), make(first), metric)
        assert there.difference == pytest.approx(-back.difference, abs=1e-9)
        if min(abs(end) for comparison in (there, back) for end in comparison.ci95) > 0.05:
            assert there.verdict == OPPOSITE[back.verdict]


@given(values, exact, st.randoms())
def test_shifting_both_and_permuting_pairs_change_nothing(first, shift, random):
    second = [value + (index % 3) - 1 for index, value in enumerate(first)]
    found = compare(paired(first), paired(second), "psnr")
    moved = compare(paired([v + shift for v in first]), paired([v + shift for v in second]), "psnr")
    assert moved.difference == pytest.approx(found.difference, abs=1e-9)
    assert moved.ci95 == found.ci95
    order = list(range(len(first)))
    random.shuffle(order)
    mixed = compare(paired([first[i] for i in order]), paired([second[i] for i in order]), "psnr")
    assert mixed.difference == pytest.approx(found.difference, abs=1e-9)


def seeds(levels, method: str, make=paired) -> list[Result]:
    return [make(level + noise(64, 7), method, seed=seed) for seed, level in enumerate(levels)]


def test_an_order_over_seeds():
    ours, theirs = seeds([30.1, 30.4, 29.9], "q_diffusion"), seeds([20.0, 20.5, 20.1], "rtn")
    found = over_seeds(ours, list(reversed(theirs)), "psnr")
    assert found.differences == pytest.approx((10.1, 9.9, 9.8))
    assert (found.verdict, found.agree, found.seeds, found.n) == ("better", 3, (0, 1, 2), 64)
    # Student: 9.933 ± 4.303 · 0.1528 / √3.
    assert found.ci95 == pytest.approx((9.554, 10.313), abs=1e-3)
    assert found.sentence.startswith("q_diffusion w4a6 better than rtn w4a6 in psnr: +9.9 dB [9.6, 10.3], 3 seeds")
    assert over_seeds(theirs, ours, "psnr").verdict == "worse"


def test_an_order_that_seeds_contradict():
    ours, theirs = seeds([20.5, 20.6, 19.8], "q_diffusion"), seeds([20.0, 20.0, 20.0], "rtn")
    assert [compare(a, b, "psnr").verdict for a, b in zip(ours, theirs, strict=True)] == ["better", "better", "worse"]
    found = over_seeds(ours, theirs, "psnr")
    assert (found.verdict, found.agree) == ("cannot tell", 2)
    assert "with 3 seeds of which 2 agree" in found.sentence


def test_one_seed_makes_no_claim():
    found = over_seeds(seeds([30.0], "q_diffusion"), seeds([20.0], "rtn"), "psnr")
    assert (found.verdict, found.ci95) == ("cannot tell", None)
    assert found.difference == pytest.approx(10)
    assert found.sentence.endswith("a claim of order needs several calibration seeds")


def test_full_precision_pairs_with_every_seed():
    ours = seeds([1.0, 1.2, 1.1], "q_diffusion", of_set)
    full = of_set(noise(64, 7), "fp", bits="w32a32")
    assert over_seeds(ours, [full], "fd_digits").verdict == "worse"
    assert over_seeds(ours, [full] * 3, "fd_digits").differences == pytest.approx((1.0, 1.2, 1.1))
    exact = paired([None] * 64, "fp", bits="w32a32")
    found = over_seeds([exact], seeds([20.0, 20.5], "rtn"), "psnr")
    assert (found.verdict, found.difference, found.agree) == ("better", None, 2)


def test_seeds_that_change_nothing_are_no_evidence():
    same = over_seeds(seeds([30.0] * 3, "q_diffusion"), seeds([20.0] * 3, "rtn"), "psnr")
    assert same.verdict == "cannot tell"
    assert same.reason is not None and same.reason.startswith("the calibration seed changes neither")
    assert over_seeds(seeds([30.0] * 3, "q_diffusion"), seeds([30.0] * 3, "rtn"), "psnr").reason == "identical"


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (seeds([1, 2], "rtn"), [], "the second results must be of one method and bits, got none"),
        (seeds([1], "rtn") + seeds([1], "dmq"), seeds([1], "rtn"), "of one method and bits, got dmq w4a6, rtn w4a6"),
        (seeds([1], "rtn") + seeds([2], "rtn"), seeds([1], "dmq"), "rtn w4a6 has calibration seed 0 twice"),
        (seeds([1, 2], "rtn")[1:], seeds([1], "dmq"), "no calibration seed in common: 1 against 0"),
    ],
    ids=["none", "methods", "twice", "disjoint"],
)
def test_seeds_that_do_not_pair_are_refused_in_one_line(a, b, said):
    with pytest.raises(ValueError, match=said):
        over_seeds(a, b, "psnr")


def test_it_reads_a_store_without_torch(tmp_path):
    for name, level in (("a", 30), ("b", 20)):
        folder = tmp_path / name
        folder.mkdir()
        made = paired((level + noise()).tolist(), name)
        (folder / "result.json").write_text(json.dumps(made.to_json()))
        (folder / "per_image.json").write_text(json.dumps(made.per_image))
    code = (
        "import sys, pathlib; from dmqbench.results.compare import compare; "
        "from dmqbench.results.result import Result; "
        f"a, b = (Result.load(pathlib.Path({str(tmp_path)!r}) / name) for name in 'ab'); "
        "print(compare(a, b, 'psnr').verdict, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["better", "False"]
