"""Whether the weights of a folder are those of the network that its configuration makes, by headers alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmqbench.models.folders import CONFIG, ModelError, read_config
from dmqbench.models.sources import meta_model, only_errors_logged
from dmqbench.models.weight_files import refuse_misfits, tensor_shapes, weight_files
from dmqbench.store.files import once_per_state


def require_weights_fit(folder: Path, advice: str = "") -> None:
    """Compare names and shapes of a network's or a decoder's weights with what its ``config.json`` makes.

    Raises:
        ModelError: one is missing, unknown or of another shape, or nothing can be made of the configuration.
    """
    _require_fit(folder / CONFIG, *weight_files(folder, advice), advice=advice)


@once_per_state
def _require_fit(config: Path, *_: Path, advice: str) -> None:
    folder = config.parent
    require_shapes_fit(folder, read_config(config), tensor_shapes(folder, advice), advice)


def require_shapes_fit(
    place: Path, config: Mapping[str, Any], given: Mapping[str, tuple[int, ...]], advice: str = ""
) -> None:
    """The same of tensors whose shapes are ``given`` by name; ``place`` says of what, in messages."""
    try:
        with only_errors_logged():
            made = meta_model(config).state_dict()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{place}: no network can be made of its {CONFIG} ({reason[:200]})") from error
    refuse_misfits(
        place,
        missing=made.keys() - given.keys(),
        unknown=given.keys() - made.keys(),
        misfitting=[name for name in made.keys() & given.keys() if tuple(made[name].shape) != given[name]],
        advice=advice,
    )
