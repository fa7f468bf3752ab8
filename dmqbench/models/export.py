"""The denoiser of a pipeline as a model folder, for as long as it is calibrated."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from dmqbench.models.exchange import NETWORK
from dmqbench.models.folders import CONFIG, SCHEDULER_CONFIG, WEIGHTS, ModelError
from dmqbench.models.likeness import require_as_configured
from dmqbench.quant.serving import is_quantized
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import PREDICTIONS
from dmqbench.store.files import TEMPORARY_PREFIX, load_json, save_json


def quantizable_parts(pipe: Any, classes: Sequence[str]) -> tuple[Any, Any]:
    """Return the network of a pipeline, which must be in full precision and of one of ``classes``, and its scheduler.

    Raises:
        ModelError: it cannot be quantized.
    """
    network: Any = getattr(pipe, NETWORK, None)
    kind = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(f"a {kind} cannot be quantized: give a diffusers pipeline, which has a scheduler too")
    if type(network).__name__ not in classes or getattr(pipe, "scheduler", None) is None:
        allowed = f"{NETWORK} of {', '.join(classes)}, and a scheduler"
        raise ModelError(f"{kind}: its {NETWORK} is {type(network).__name__} (allowed: {allowed})")
    if is_quantized(network):
        raise ModelError(f"{kind}: its {NETWORK} is quantized already; load the full-precision pipeline again")
    dtypes = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    if dtypes != {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ModelError(f"{kind}: its {NETWORK} is in {names}; quantization computes in float32: load it in that")
    require_as_configured(network, f"{kind}.{NETWORK}")
    return network, pipe.scheduler


@contextmanager
def exported(pipe: Any, place: Path) -> Iterator[Path]:
    """The network and its noise schedule as a folder inside ``place``, for as long as it is needed.

    Only what calibration depends on is written, so that the same pipeline from another place has the same ids.
    """
    config = dict(pipe.scheduler.config)
    prediction = config.get("prediction_type", "epsilon")
    try:
        schedule = NoiseSchedule.from_scheduler_config(config)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction_type {prediction}: allowed are {', '.join(PREDICTIONS)}")
    except (TypeError, ValueError) as error:
        raise ModelError(f"{type(pipe).__name__}: its scheduler cannot be followed ({error})") from None
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}pipeline-", dir=place) as name:
        folder = Path(name)
        pipe.unet.save_config(folder / NETWORK)
        without_origin(folder / NETWORK / CONFIG)
        save_file(untied(pipe.unet.state_dict()), folder / NETWORK / WEIGHTS, {"format": "pt"})
        save_json(folder / SCHEDULER_CONFIG, {**asdict(schedule), "prediction_type": prediction})
        yield folder


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a safetensors file takes them: none shares its memory with another, as tied weights do."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        own[name] = (tensor.clone() if memory in seen else tensor).contiguous().cpu()
        seen.add(memory)
    return own


def without_origin(path: Path) -> None:
    """Take out of a diffusers configuration where it was loaded from and by which version."""
    config = load_json(path)
    save_json(path, {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")})
