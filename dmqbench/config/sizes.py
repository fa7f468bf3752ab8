"""Whether a model can draw at the size that a job asks for."""

from dataclasses import replace
from typing import Any

from dmqbench.config.errors import ConfigError
from dmqbench.config.model_facts import network_family
from dmqbench.config.schema import ModelConfig
from dmqbench.models.families.family import Family
from dmqbench.models.location import locate
from dmqbench.models.sizes import image_scale

_KEY = "model.size"
_FORMS = ("null", "PIXELS", "[HEIGHT,WIDTH]")


def at_size(model: ModelConfig, asked: Any) -> ModelConfig:
    """Return a checked model at the size of images that a job asks for, in pixels; as it is if that is its own.

    Raises:
        ConfigError: the network takes no other size than its own, or not this one.
    """
    if asked is None:
        return model
    sides, family, scale = _sides(asked), network_family(model), image_scale(locate(model.checkpoint))
    own = [scale * side for side in family.sample_shape[1:]]
    if list(sides) == own:
        return model
    if (problem := _problem(model, family)) is not None:
        raise ConfigError(_KEY, asked, ["null"], f"is not possible: {problem}", nearest=own)
    step, largest = scale * (family.size_step or 1), scale * (family.largest_side or max(sides))
    nearest = [step * max(1, min((side + step // 2) // step, largest // step)) for side in sides]
    if list(sides) != nearest:
        bound = f" up to {largest}" if family.largest_side else ""
        raise ConfigError(_KEY, asked, problem=f"must be multiples of {step}{bound} for {model.name}", nearest=nearest)
    sized = replace(model, size=sides, sample_shape=())
    return replace(sized, sample_shape=network_family(sized).sample_shape)


def _sides(asked: Any) -> tuple[int, ...]:
    sides = tuple(asked) if isinstance(asked, (list, tuple)) else (asked, asked)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ConfigError(_KEY, asked, _FORMS, "is no size in pixels", nearest=None)
    return sides


def _problem(model: ModelConfig, family: Family) -> str | None:
    """Why a model has one size alone, if it has."""
    if family.size_step is None:
        return f"{family.network} is for images of the size of its training alone"
    return f"{model.name} is shipped for images of its own size" if model.source == "embedded" else None
