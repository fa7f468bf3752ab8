"""Whether the weights of a folder are those of the network that its configuration makes, by headers alone."""

from pathlib import Path

from dmqbench.models.folders import CONFIG, ModelError, read_config
from dmqbench.models.sources import meta_model, only_errors_logged
from dmqbench.models.weight_files import refuse_misfits, tensor_shapes


def require_weights_fit(folder: Path, advice: str = "") -> None:
    """Compare names and shapes of a network's or a decoder's weights with what its ``config.json`` makes.

    Raises:
        ModelError: one is missing, unknown or of another shape, or nothing can be made of the configuration.
    """
    config = read_config(folder / CONFIG)
    try:
        with only_errors_logged():
            made = meta_model(config).state_dict()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: no network can be made of its {CONFIG} ({reason[:200]})") from error
    given = tensor_shapes(folder, advice)
    refuse_misfits(
        folder,
        missing=made.keys() - given.keys(),
        unknown=given.keys() - made.keys(),
        misfitting=[name for name in made.keys() & given.keys() if tuple(made[name].shape) != given[name]],
        advice=advice,
    )
