"""Whether outliers can be planted where a job asks for them."""

from dataclasses import replace

from dmqbench.config.errors import ConfigError, require_at_least, require_one_of
from dmqbench.config.schema import ModelConfig
from dmqbench.models.planted import KINDS, Planted

LARGEST_DOSE = 1024.0
"""In either direction; beyond, sums of single precision are of the planted channels alone."""


def with_planted(model: ModelConfig) -> ModelConfig:
    """Return a checked model with what it is to have planted, by kinds; with nothing where the dose is 1.

    Raises:
        ConfigError: a value is not allowed, or the model has no place of a kind.
    """
    planted = model.planted
    if not 1 / LARGEST_DOSE <= planted.dose <= LARGEST_DOSE:
        allowed = [f"1/{LARGEST_DOSE:g} to {LARGEST_DOSE:g}"]
        raise ConfigError("model.planted.dose", planted.dose, allowed, "is out of range", nearest=1.0)
    if not 0 < planted.share <= 1:
        allowed = ["more than 0, up to 1"]
        raise ConfigError("model.planted.share", planted.share, allowed, "is out of range", nearest=1.0)
    require_at_least("model.planted.seed", planted.seed, 0)
    for kind in planted.where:
        require_one_of("model.planted.where", kind, KINDS)
    if not planted:
        return replace(model, planted=Planted())
    from dmqbench.models.planting import kinds_in

    found = kinds_in(replace(model, planted=Planted()).checkpoint)
    if not found:
        problem = f"is not possible: {model.name} has no channels that can be rescaled exactly"
        raise ConfigError("model.planted.dose", planted.dose, [1.0], problem)
    for kind in planted.where:
        require_one_of("model.planted.where", kind, found, f"is nowhere in {model.name}")
    asked = planted.where or found
    return replace(model, planted=replace(planted, where=tuple(kind for kind in found if kind in asked)))
