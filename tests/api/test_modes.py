"""A caller's modes change no number, and are what they were afterwards: at every entry."""

import threading
import warnings
from contextlib import ExitStack, contextmanager
from operator import attrgetter

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import load_file
from tiny import smallest_unet
from workbench import MSE, WEIGHT_RECONSTRUCTION, workbench

from dmqbench.api import load, quantize_, save
from dmqbench.calibration.run import run_stage
from dmqbench.quant.modes import own_modes, undisturbed
from dmqbench.stages.ranges import WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction


@contextmanager
def setting(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def backend(path, value):
    owner, _, name = f"backends.{path}".rpartition(".")
    read = attrgetter(f"backends.{path}")
    return lambda: setting(lambda: read(torch), lambda new: setattr(attrgetter(owner)(torch), name, new), value)


def dtype(value):
    return lambda: setting(torch.get_default_dtype, torch.set_default_dtype, value)


def deterministic(value):
    return lambda: setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, value)


def precision(value):
    return lambda: setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)


@contextmanager
def default_device_meta():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)  # not "cpu", which every later call of torch would be asked about


MODES = {
    "none": ExitStack,
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default dtype float64": dtype(torch.float64),
    "default dtype bfloat16": dtype(torch.bfloat16),
    "default dtype float16": dtype(torch.float16),
    "default device meta": lambda: torch.device("meta"),
    "default device meta, set": default_device_meta,
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "anomaly mode": torch.autograd.detect_anomaly,
    "anomaly mode without its check": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "deterministic, warning": deterministic(1),
    "deterministic": deterministic(2),
    "cudnn.benchmark": backend("cudnn.benchmark", True),
    "cudnn.deterministic": backend("cudnn.deterministic", True),
    "cudnn.allow_tf32 off": backend("cudnn.allow_tf32", False),
    "matmul.allow_tf32": backend("cuda.matmul.allow_tf32", True),
    "matmul precision medium": precision("medium"),
    "matmul precision high": precision("high"),
    "TF32 everywhere": backend("fp32_precision", "tf32"),
    "convolutions in bfloat16": backend("mkldnn.conv.fp32_precision", "bf16"),
    "products in bfloat16": backend("mkldnn.matmul.fp32_precision", "bf16"),
    "products in TF32, by the newer name": backend("cuda.matmul.fp32_precision", "tf32"),
}

TOGETHER = [
    ("autocast to bfloat16", "default dtype float64", "cudnn.benchmark", "matmul.allow_tf32"),
    ("autocast to float16", "default dtype bfloat16", "deterministic, warning", "convolutions in bfloat16"),
    ("default dtype float16", "inference mode", "cudnn.deterministic", "products in bfloat16"),
    ("default device meta", "no gradients", "deterministic", "TF32 everywhere"),
    ("default device meta, set", "gradients", "cudnn.allow_tf32 off", "matmul precision medium"),
    ("anomaly mode", "matmul precision high"),
    ("anomaly mode without its check", "products in TF32, by the newer name"),
]
"""Every mode once, a few at a time, for what is carried out whole: each by itself is set aside and brought back."""
assert {mode for modes in TOGETHER for mode in modes} == MODES.keys() - {"none"}
every_mode = pytest.mark.parametrize("modes", TOGETHER, ids=", ".join)


def read(path):
    try:
        return attrgetter(path)(torch.backends)
    except RuntimeError:
        return "set by its newer name"


def observed():
    """Every mode that can be read, and the state of the random numbers."""
    paths = (
        "cudnn.benchmark",
        "cudnn.deterministic",
        "cudnn.allow_tf32",
        "cuda.matmul.allow_tf32",
        "fp32_precision",
        "cuda.matmul.allow_bf16_reduced_precision_reduction",
    )
    more = ("cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
    return {
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": (torch.is_inference_mode_enabled(), torch.is_grad_enabled()),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "deterministic": torch.get_deterministic_debug_mode(),
        "random numbers": torch.get_rng_state().tolist(),
        **{path: read(path) for path in (*paths, *(f"{name}.fp32_precision" for name in more))},
    }


@contextmanager
def unchanged(*modes):
    """Inside modes of the caller, which are as they were afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection")
        with ExitStack() as entered:
            for mode in modes:
                entered.enter_context(MODES[mode]())
            before = observed()
            yield
            assert observed() == before


def plain():
    """What is read under modes of our own, whatever those of the caller."""
    with own_modes():
        return {key: value for key, value in observed().items() if key != "random numbers"}


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_ours_and_then_the_callers_again(mode):
    expected = plain()
    expected["autocast"] = (False, expected["autocast"][1])
    with unchanged(mode), undisturbed():
        inside = observed()
        torch.rand(3)
        assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).device == torch.device("cpu")
    assert inside["autocast"][0] is False
    assert {key: inside[key] for key in expected if key != "autocast"} == {
        key: value for key, value in expected.items() if key != "autocast"
    }
    assert inside["gradients"] == (False, True)


def test_modes_come_back_after_an_error():
    with pytest.raises(ZeroDivisionError), unchanged("default dtype float64"), own_modes():
        1 / 0  # noqa: B018
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("first_to_leave", [0, 1])
@pytest.mark.parametrize("mode", ["default dtype float64", "anomaly mode", "deterministic", "TF32 everywhere"])
def test_modes_of_the_process_come_back_when_the_last_of_two_threads_leaves(mode, first_to_leave):
    """Both are inside at once, whichever leaves first."""
    leave, seen = [threading.Event(), threading.Event()], []
    inside = threading.Barrier(3)

    def compute(number):
        with own_modes():
            inside.wait(10)
            leave[number].wait(10)
            seen.append(plain())

    expected = plain()
    with unchanged(mode):
        threads = [threading.Thread(target=compute, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        inside.wait(10)
        for number in (first_to_leave, 1 - first_to_leave):
            leave[number].set()
            threads[number].join(10)
    assert seen == [expected, expected]


# ---- a stage by itself


def reached_under(*modes):
    """What two stages, one of them trained, leave behind."""
    bench = workbench(network=smallest_unet(), trajectories=2)
    stages = (
        WeightRange.of(bench, **{**MSE, "candidates": 4}),
        WeightReconstruction.of(bench, **{**WEIGHT_RECONSTRUCTION, "iterations": 2, "samples": 8}),
    )
    for stage in stages:
        with unchanged(*modes):
            run_stage(stage, "cpu", [])
    return stages[-1].state()


@pytest.fixture(scope="module")
def stage_state():
    return reached_under()


@every_mode
def test_a_stage_reaches_the_same_state(stage_state, modes):
    same(reached_under(*modes), stage_state)


# ---- the functions of a script


def quantized_under(folder, *modes):
    """The state of a pipeline that was quantized, saved, loaded and called under modes, what it then predicts, and
    the trajectories in the store."""
    pipe = DDIMPipeline(smallest_unet(class_entries=None), DDIMScheduler(clip_sample=False))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with unchanged(*modes):
        sizes = ("budget.trajectories=2", "budget.validation=1", "budget.samples=4", "sampler.chunk=4")
        quantize_(pipe, "rtn", "w4a6", steps=2, store=folder / "store", overrides=(*sizes, "bits.ranges=step"))
        again = load(save(pipe, folder / "saved"))
        predicted = again.unet(x, 500, return_dict=False)[0]
    banks = {path.name: load_file(path) for path in (folder / "store" / "trajectories").rglob("*.safetensors")}
    assert len(banks) > 1
    return {
        "predicted": predicted,
        **again.unet.state_dict(),
        **{f"{file} {name}": tensor for file, bank in banks.items() for name, tensor in bank.items()},
    }


@pytest.fixture(scope="module")
def api_state(tmp_path_factory):
    return quantized_under(tmp_path_factory.mktemp("plain"))


@every_mode
def test_quantizing_saving_loading_and_calling_give_the_same_numbers(api_state, modes, tmp_path):
    same(quantized_under(tmp_path, *modes), api_state)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
