"""The denoiser of a pipeline as a model folder, for as long as it is calibrated."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from dmqbench.models.exchange import network_name
from dmqbench.models.families import kind_of
from dmqbench.models.families.family import Family
from dmqbench.models.folders import CONFIG, DECODER_FOLDERS, NETWORK_FOLDERS, SCHEDULER_CONFIG, WEIGHTS, ModelError
from dmqbench.models.likeness import require_as_configured
from dmqbench.models.precision import DTYPES
from dmqbench.models.sizes import decoder_scale
from dmqbench.models.text_files import IMAGE_SCALE, INDEX
from dmqbench.quant.serving import is_quantized
from dmqbench.samplers.schedule import read_schedule, stated
from dmqbench.samplers.spec import PREDICTIONS
from dmqbench.store.files import TEMPORARY_PREFIX, load_json, save_json


def quantizable_parts(pipe: Any, classes: Sequence[str]) -> tuple[Any, Any]:
    """Return the network of a pipeline, which must be unquantized and of one of ``classes``, and its scheduler.

    Raises:
        ModelError: it cannot be quantized.
    """
    name, kind = network_name(pipe), type(pipe).__name__
    network: Any = getattr(pipe, name, None)
    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(f"a {kind} cannot be quantized: give a diffusers pipeline, which has a scheduler too")
    if type(network).__name__ not in classes:
        allowed = f"{' or '.join(NETWORK_FOLDERS)} of {', '.join(classes)}, and a scheduler"
        raise ModelError(f"{kind}: its {name} is {type(network).__name__} (allowed: {allowed})")
    if getattr(pipe, "scheduler", None) is None:
        raise ModelError(f"{kind}: it has no scheduler, which states the noise schedule")
    if getattr(pipe, "controlnet", None) is not None:
        advice = "quantize_ a pipeline of the same network without it; what calls that network is free afterwards"
        raise ModelError(f"{kind}: its controlnet adds to the network what no calibration sees: {advice}")
    if is_quantized(network):
        raise ModelError(f"{kind}: its {name} is quantized already; load the full-precision pipeline again")
    _refuse_adapters(pipe)
    if (dtype := dtype_name(network)) not in DTYPES:
        raise ModelError(f"{kind}: its {name} is in {dtype} (allowed: {', '.join(DTYPES)}): load it in one of these")
    require_as_configured(network, f"{kind}.{name}")
    return network, pipe.scheduler


def dtype_name(network: nn.Module) -> str:
    """Return what the floating parameters of a network are in, of all of them where it is not the same."""
    found = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))


def _refuse_adapters(pipe: Any) -> None:
    """Refuse low-rank changes that lie beside the weights of any part, by the names that peft gives them."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and any(".lora_" in f".{path}" for path, _ in part.named_modules()):
            advice = "fuse it: pipe.fuse_lora(), then pipe.unload_lora_weights()"
            raise ModelError(f"{type(pipe).__name__}: its {name} has LoRA beside its weights; {advice}")


@contextmanager
def exported(pipe: Any, place: Path, sized: bool = False) -> Iterator[Path]:
    """The network and its noise schedule as a folder inside ``place``, for as long as it is needed.

    Only what calibration depends on is written, so that the same pipeline from another place has the same ids.

    Args:
        sized: whether the size of images is asked for, and so how many pixels a latent is wide.
    """
    scheduler = stated_by(pipe.scheduler, type(pipe).__name__)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}pipeline-", dir=place) as temporary:
        folder = Path(temporary)
        part = folder / network_name(pipe)
        network = getattr(pipe, part.name)
        network.save_config(part)
        without_origin(part / CONFIG)
        save_file(untied(network.state_dict()), part / WEIGHTS, {"format": "pt"})
        save_json(folder / SCHEDULER_CONFIG, scheduler)
        config = load_json(part / CONFIG)
        family = kind_of(config)
        index = _export_text(pipe, family, folder)
        if sized or family.is_told_sizes(config):
            index[IMAGE_SCALE] = _image_scale(pipe)
        if index:
            save_json(folder / INDEX, index)
        yield folder


def _image_scale(pipe: Any) -> int:
    """How many pixels of an image a latent is wide, which is the image itself where nothing decodes it."""
    decoder = next((part for name in DECODER_FOLDERS if (part := getattr(pipe, name, None)) is not None), None)
    return 1 if decoder is None else decoder_scale(decoder.config.block_out_channels)


def stated_by(scheduler: Any, title: str) -> dict[str, Any]:
    """Return a configuration with what a diffusers scheduler states of training, and as little else as can be."""
    config = {"_class_name": type(scheduler).__name__, **scheduler.config}
    prediction = config.get("prediction_type", "epsilon")
    try:
        schedule = read_schedule(config)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction_type {prediction}: allowed are {', '.join(PREDICTIONS)}")
    except (TypeError, ValueError) as error:
        raise ModelError(f"{title}: its scheduler cannot be followed ({error})") from None
    return {**stated(schedule), "prediction_type": prediction}


def _export_text(pipe: Any, family: type[Family], folder: Path) -> dict[str, Any]:
    """Write what reads prompts, and return what the pipeline says of how."""
    if not family.text_parts:
        return {}
    lacking = [part for part in family.text_parts if part.optional and getattr(pipe, part.encoder, None) is None]
    present = [part for part in family.text_parts if part not in lacking]
    for name in (name for part in present for name in (part.encoder, part.tokenizer)):
        if getattr(pipe, name, None) is None:
            raise ModelError(f"{type(pipe).__name__}: it has no {name}, and its network is conditioned on text")
        getattr(pipe, name).save_pretrained(folder / name)
    stated = {key: value for key, value in pipe.config.items() if isinstance(value, bool)}
    return {"_class_name": type(pipe).__name__, **stated, **{part.encoder: None for part in lacking}}


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
