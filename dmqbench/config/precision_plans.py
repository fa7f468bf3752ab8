"""Precision plans as files, and whether one fits a job (``bits.plan``). Imports no torch but to trace a network."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from dmqbench.config.checked_job import GivenPlan, Job, scope_of
from dmqbench.config.errors import ConfigError
from dmqbench.config.model_facts import layer_shapes
from dmqbench.quant.plan import PrecisionPlan, uniform_plan
from dmqbench.quant.spec import FULL_PRECISION, BitWidth
from dmqbench.store.files import load_json, safe_name, short_hash

KEY = "bits.plan"
PLAN_FILE = "plan.json"


def plan_hash(plan: PrecisionPlan) -> str:
    """16 hexadecimal digits over the weight bits of all rows; nothing else of a plan reaches another job."""
    return short_hash({"weight_bits": plan.weight_bits})


def read_plan(path: Path) -> PrecisionPlan:
    """Read a plan, a folder that holds one, or a result's folder: then it is that of the result's last stage.

    Raises:
        ValueError, OSError: there is none, in one line.
    """
    if path.is_dir():
        path = _plan_of_folder(path)
    data = load_json(path)
    try:
        _check_types(data)
        plan = PrecisionPlan.from_json(data)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no precision plan ({type(error).__name__}: {error})") from None
    names = [layer.name for layer in plan.layers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        raise ValueError(f"{path} has layer {twice} twice" if twice else f"{path} has no layers")
    return plan


def _plan_of_folder(folder: Path) -> Path:
    if (folder / PLAN_FILE).is_file():
        return folder / PLAN_FILE
    if not (folder / "result.json").is_file():
        raise ValueError(f"it has neither {PLAN_FILE} nor result.json")
    try:
        stages = (load_json(folder / "result.json").get("artifacts") or {}).get("stages")
        last = safe_name(stages[-1][1]) if stages else None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"its result.json names no stages ({type(error).__name__}: {error})") from None
    if last is None:
        raise ValueError("its job quantized nothing")
    path = folder.parent.parent / "quantized" / last / PLAN_FILE
    if not path.is_file():
        raise ValueError(f"the plan of its job is not in the store: {path}")
    return path


def _check_types(data: Any) -> None:
    """Raise TypeError where a name is no text, or bits are no whole numbers."""
    for layer in data["layers"]:
        bits = layer["weight_bits"]
        numbers = [*(bits if isinstance(bits, list) else [bits]), layer["activation_bits"], *layer["boundaries"]]
        if not isinstance(layer["name"], str) or not all(type(number) is int for number in numbers):
            raise TypeError(f"layer {layer['name']}: bits must be whole numbers")
        if not numbers or bits == []:
            raise TypeError(f"layer {layer['name']}: it has no weight bits")


def given_plan(job: Job) -> GivenPlan:
    """The plan that ``bits.plan`` names, checked against the files of the model.

    Raises:
        ConfigError: it cannot be read, is for another model or other bits, or the job would search for one.
        ModelError: the model has no weights to compare it with.
    """
    path = str(job.bits.plan)
    for stage in job.method.stages:
        if stage.limits.finds_bits:
            problem = f"gives the bits that {stage.name} searches for; take it out of method.stages"
            raise ConfigError(KEY, path, problem=problem)
    try:
        plan = read_plan(Path(path).expanduser())
        shapes = layer_shapes(job.model)
        _check_model(plan, shapes)
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(KEY, path, problem=f"cannot be used: {reason}") from None
    mean = mean_weight_bits(plan, shapes)
    if round(mean) != job.bits.weight:
        problem = f"is not what bits.plan has, {mean:.4g} bits in the mean"
        raise ConfigError("bits.weight", job.bits.weight, [round(mean)], problem)
    return GivenPlan(plan_hash(plan), plan)


def _check_model(plan: PrecisionPlan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for layer in plan.layers:
        if layer.name not in shapes:
            raise ValueError(f"the precision plan names layer {layer.name}, which this model lacks")
        layer.check_rows(shapes[layer.name][0])


def mean_weight_bits(plan: PrecisionPlan, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Mean over the weights of all layers that the plan quantizes, of shapes by name; 32 if there are none."""
    bits = elements = 0
    for layer in plan.layers:
        if layer.quantizes_weight:
            rows, *row = shapes[layer.name]
            bits += sum(layer.bits_of_rows(rows)) * prod(row)
            elements += rows * prod(row)
    return bits / elements if elements else float(FULL_PRECISION)


def check_layers(job: Job) -> None:
    """Compare the plan that a job was given with the layers that the job quantizes, which takes tracing its network.

    Raises:
        ConfigError: they differ; the first difference is named.
    """
    if job.plan is None:
        return
    from dmqbench.models.sources import meta_topology

    topology, _ = meta_topology(job.model.checkpoint)
    bits = BitWidth(job.bits.weight, job.bits.activation)
    quantized = uniform_plan(topology.layers, bits, scope_of(job)).by_name
    rows = {layer.name: layer.weight_shape[0] for layer in topology.layers if layer.name in quantized}
    try:
        job.plan.plan.check_layers(rows)
    except ValueError as error:
        problem = f"does not fit bits.scope={job.bits.scope}: {error}"
        raise ConfigError(KEY, str(job.bits.plan), problem=problem) from None
