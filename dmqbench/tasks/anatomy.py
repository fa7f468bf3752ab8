"""``task=anatomy``: what makes a model hard to quantize, as ``anatomy.json`` and pictures in the run store.

Statistics of the full-precision model's weights, and of its layers on the calibration trajectories; on the validation
trajectories, what an error at one step does to the final image, and, for a method that quantizes, the errors of its
layers and steps, and what becomes of activations and of the last feature.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmqbench.anatomy.diagnosis import diagnose
from dmqbench.anatomy.feature_statistics import feature_statistics
from dmqbench.anatomy.recorded import batches, spread_calls
from dmqbench.anatomy.sensitivity import sensitivity
from dmqbench.anatomy.statistics import InputStatistics, input_statistics, short, weight_statistics
from dmqbench.anatomy.weight_rows import row_histograms, row_statistics
from dmqbench.config.checked_job import Job
from dmqbench.config.ids import JobIds
from dmqbench.data.bank import TrajectoryBank
from dmqbench.models.topology import LayerInfo
from dmqbench.quant.spec import FULL_PRECISION
from dmqbench.results.plots.anatomy import draw
from dmqbench.store.files import save_json, short_hash
from dmqbench.tasks.calibrate import calibrated
from dmqbench.tasks.cost import quantization_of
from dmqbench.tasks.sample import frozen
from dmqbench.tasks.trajectories import bank_of
from dmqbench.tasks.workshop import OUTCOME, Workshop, open_workshop
from dmqbench.tracking.progress import Meter

KIND = "anatomy"
VERSION = 3
FILE = "anatomy.json"
TRAJECTORIES = 64
"""At most so many are looked at: more change no picture."""
SENSITIVITY_TRAJECTORIES = 16
"""At most so many are disturbed, each once per call and then followed to its end."""
FEATURE_TRAJECTORIES = 16
"""On at most so many both networks' activations are compared."""
ROUNDED_TO = (2, 3, 4)
"""Weight bits at which rows are rounded where the method rounds none."""


def anatomy_id(ids: JobIds, method: str) -> str:
    """Id of a job's anatomy: its trajectories (model, weights, sampler, dataset, sizes, seed) and quantized network.

    The network is named by its samples, whose id holds it and the engine, whoever quantized it.
    """
    quantized = None if method == "fp" else ids.samples
    return short_hash({"kind": KIND, "version": VERSION, "trajectories": ids.trajectories, "quantized": quantized})


def carry_out(job: Job) -> Path:
    """Make the anatomy of the job's model, unless it is in the store; return its folder."""
    shop = open_workshop(job)
    id = anatomy_id(shop.ids, job.method.name)

    def make() -> dict[str, Any]:
        folder = shop.store.work(id) / OUTCOME
        record = {"id": id, **examine(shop)}
        save_json(folder / FILE, record)
        draw(record, folder)
        return {}

    return shop.made_once(KIND, id, make).path


def examine(shop: Workshop) -> dict[str, Any]:
    """Return the content of ``anatomy.json``: numbers of six digits, ``None`` where one is not defined."""
    job, bank = shop.job, bank_of(shop)
    inputs = _full_precision_inputs(shop, bank)
    disturbed = _sensitivity(shop, bank)
    bits, quantization = _rounded_to(job), quantization_of(job)
    network = shop.full_precision.network
    weights = {name: network.get_submodule(name).get_parameter("weight") for name in inputs}
    layers = [_describe(layer, inputs[layer.name], weights[layer.name], bits) for layer in shop.topology.layers]
    for layer, tokens in zip(layers, shop.topology.tokens or (), strict=shop.topology.tokens is not None):
        layer["tokens"] = tokens
    heaviest = _heaviest(layers)
    return {
        "version": VERSION,
        "model": job.model.name,
        "sampler": job.sampler.name,
        "guidance": job.calibration_sampler.guidance,
        "timesteps": list(shop.calibration_sampler.timesteps),
        "trajectories": min(TRAJECTORIES, len(bank.cal)),
        "method": job.method.name,
        "bits": quantization.bits,
        "scope": quantization.scope,
        "layers": layers,
        "rounded_to": list(bits),
        "row_histograms": None if heaviest is None else {"layer": heaviest, **row_histograms(weights[heaviest])},
        "sensitivity": disturbed,
        **_of_quantized(shop, bank),
    }


def _rounded_to(job: Job) -> tuple[int, ...]:
    """Return the weight bits at which rows are rounded: the job's, or several where it rounds no weight."""
    quantizes = job.method.stages and job.bits.weight != FULL_PRECISION
    return (job.bits.weight,) if quantizes else ROUNDED_TO


def _heaviest(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the layer, no embedding's, that has the row of highest kurtosis; None if none is defined."""
    highest = {
        layer["name"]: max((value for value in layer["weight"]["rows"]["kurtosis"] if value is not None), default=0.0)
        for layer in layers
        if not layer["embedding"]
    }
    return max(highest, key=lambda name: highest[name]) if any(highest.values()) else None


def _full_precision_inputs(shop: Workshop, bank: TrajectoryBank) -> Mapping[str, InputStatistics]:
    members, chunk = min(TRAJECTORIES, len(bank.cal)), shop.job.sampler.chunk
    total = bank.cal.calls * len(batches(members, chunk))
    denoising = shop.calibrating(shop.full_precision)
    with Meter(f"anatomy of {shop.job.model.name}", total) as meter:
        return input_statistics(denoising, shop.topology, bank.cal, members=members, chunk=chunk, advance=meter.advance)


def _sensitivity(shop: Workshop, bank: TrajectoryBank) -> dict[str, Any]:
    """Return what equal errors at each call do to the final image of the full-precision model."""
    members, chunk = min(SENSITIVITY_TRAJECTORIES, len(bank.val)), shop.job.sampler.chunk
    total = len(spread_calls(bank.val.calls)) * len(batches(members, chunk))
    denoising = shop.calibrating(shop.full_precision)
    with Meter(f"sensitivity of {shop.job.model.name}", total) as meter:
        disturbed = sensitivity(
            denoising, bank.val, seed=bank.seed, chunk=chunk, members=members, advance=meter.advance
        )
    record = disturbed.to_json()
    means = {key: short(record[key]) for key in ("injected", "mse", "psnr")}
    per_trajectory = {key: short(rows) for key, rows in record["per_trajectory"].items()}
    return record | means | {"per_trajectory": per_trajectory}


def _of_quantized(shop: Workshop, bank: TrajectoryBank) -> dict[str, Any]:
    """Return errors of the quantized network's layers and steps, and what becomes of activations and last feature."""
    if shop.job.method.name == "fp":
        return {"quantized": None, "features": None}
    with shop.record:
        calibrated(shop)
    chunk = shop.job.sampler.chunk
    quantized = shop.calibrating(frozen(shop, shop.calibration_sampler))
    diagnosis = diagnose(quantized, bank.val, seed=bank.seed, chunk=chunk)
    members, teacher = min(FEATURE_TRAJECTORIES, len(bank.val)), shop.calibrating(shop.adapter)
    with Meter(f"features of {shop.job.title}", bank.val.calls * len(batches(members, chunk))) as meter:
        features = feature_statistics(
            quantized, teacher, shop.topology, bank.val, members=members, chunk=chunk, advance=meter.advance
        )
    return {"quantized": diagnosis.to_json(), "features": features.to_json()}


def _describe(layer: LayerInfo, inputs: InputStatistics, weight: Tensor, bits: Sequence[int]) -> dict[str, Any]:
    """Return a layer with statistics of its input, over everything, per call and channel, and of its weight."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "embedding": layer.embedding,
        "macs": layer.macs,
        "weight_shape": list(layer.weight_shape),
        "boundaries": list(layer.boundaries),
        "input": inputs.whole.to_json(),
        "steps": inputs.steps.to_json(),
        "channels": inputs.channels.to_json(),
        "skip": _skip(inputs) if layer.boundaries else None,
        "weight": weight_statistics(weight).to_json() | {"rows": row_statistics(weight, bits).to_json()},
    }


def _skip(inputs: InputStatistics) -> dict[str, Any]:
    """Return statistics of the parts of a concatenated input per call, and ratios of the widest to the narrowest."""
    width, std = inputs.parts.high - inputs.parts.low, inputs.parts.std
    return {
        "parts": [inputs.parts[:, part].to_json() for part in range(width.shape[1])],
        "range_ratio": short((width.amax(1) / width.amin(1).clamp_min(1e-30)).tolist()),
        "std_ratio": short((std.amax(1) / std.amin(1).clamp_min(1e-30)).tolist()),
    }
